"""Reports as plain structure, and the templates that make Markdown and self-contained HTML pages of it."""

from __future__ import annotations

import csv
import io
from base64 import b64encode
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from guided_diffusion.io.atomic import write_atomically
from guided_diffusion.io.reading import decoding, open_regular


class Column(NamedTuple):
    """A table's column. kind: "text", "prose" (wrapped), "number" (aligned right) or "code" (hashes)."""

    title: str
    kind: str = "text"


class Line(NamedTuple):
    """One line of a table, from the second column on.

    :param emphasis: "strong", "weak" or ""; marked: indices of cells that need attention.
    """

    cells: Sequence[str]
    emphasis: str = ""
    marked: Sequence[int] = ()


Groups = Sequence[tuple[str, Sequence[Line]]]  # the lines that share a first cell, with that cell


class Section(NamedTuple):
    """A heading, text, a table, and sentences on it."""

    title: str
    columns: Sequence[Column]
    groups: Groups
    text: Sequence[str] = ()
    findings: Sequence[str] = ()


def markdown_table(groups: Groups, columns: Sequence[Column | str]) -> str:
    """A table in Markdown, aligned for reading raw. columns: also as text, that of a number with ">" before it."""
    columns = [Column(c.lstrip(">"), "number" * c.startswith(">")) if isinstance(c, str) else c for c in columns]
    table = [[column.title for column in columns]]
    for name, lines in groups:
        table += [["" if index else name, *line.cells] for index, line in enumerate(lines)]
    table = [[cell.replace("|", "\\|") for cell in line] for line in table]
    widths = [max(3, *map(len, cells)) for cells in zip(*table, strict=True)]
    right = [column.kind == "number" for column in columns]
    table.insert(1, ["-" * (width - r) + ":" * r for width, r in zip(widths, right, strict=True)])
    lines = []
    for line in table:
        cells = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


_ENVIRONMENT = Environment(
    loader=PackageLoader("experiments"), autoescape=select_autoescape(["html.jinja"]), trim_blocks=True,
    lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined,
)  # fmt: skip
_ENVIRONMENT.filters |= {
    "base64": lambda path: b64encode(path.read_bytes()).decode(), "markdown_table": markdown_table,
}  # fmt: skip


def render(template: str, **values: Any) -> str:
    """A document from a template of templates/. jinja2.UndefinedError for a value that is missing."""
    return _ENVIRONMENT.get_template(f"{template}.jinja").render(values)


def write_text(path: Path, text: str) -> None:
    """Write a document, all of it or nothing; what UTF-8 cannot hold becomes an escape."""
    with write_atomically(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def read_csv(path: Path, expected: str) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and lines of a CSV file, "" for a missing field. InputError, "expected ...", for a damaged one."""
    with decoding(path, expected), open_regular(path) as file:
        reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline=""), restval="")
        rows = list(reader)
    return list(reader.fieldnames or ()), rows


def csv_text(columns: Sequence[str], records: Iterable[dict[str, Any]]) -> str:
    """Text of a CSV file; what a record lacks or has as None is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()

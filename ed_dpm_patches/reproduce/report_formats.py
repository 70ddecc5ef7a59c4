"""A report as plain structure, and that structure as Markdown and as one self-contained HTML page."""

from __future__ import annotations

import html
from dataclasses import dataclass

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 90rem; margin: 2rem auto; padding: 0 1rem; color: #111; }
h2 { margin-top: 3rem; }
p, ul { max-width: 60rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .1rem .6rem; text-align: left; vertical-align: top; white-space: nowrap; }
th { border-bottom: 2px solid #111; }
tbody { border-bottom: 1px solid #bbb; }
td.name { font-weight: 600; white-space: normal; min-width: 9rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.strong td:not(.code) { font-weight: 600; }
.weak td:not(.name) { color: #666; }
td.mark { background: #fde8b0; }
td.code { font-family: ui-monospace, monospace; font-size: .8rem; }
.warning { border: 3px solid #b00; padding: .5rem 1rem; font-weight: 600; }
"""


@dataclass(frozen=True)
class Column:
    """:param kind: "text", "number" (aligned right) or "code" (hashes)."""

    title: str
    kind: str = "text"


@dataclass(frozen=True)
class Line:
    """One line of a table.

    :param emphasis: "strong", "weak" or ""; marked: indices of cells that need attention.
    """

    cells: tuple[str, ...]
    emphasis: str = ""
    marked: tuple[int, ...] = ()


@dataclass(frozen=True)
class Group:
    """Lines that share the first column."""

    name: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Section:
    """A heading, text, a table, and sentences on it. The first column belongs to the groups."""

    title: str
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    text: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """:param warning: what a reader has to know before any figure; "" for nothing."""

    title: str
    warning: str
    text: tuple[str, ...]
    sections: tuple[Section, ...]


def to_markdown(document: Document) -> str:
    """Valid Markdown whose tables are aligned for reading raw."""
    blocks = [f"# {document.title}"]
    if document.warning:
        blocks.append(f"**{document.warning}**")
    blocks += document.text
    for section in document.sections:
        blocks += [f"## {section.title}", *section.text, _markdown_table(section)]
        if section.findings:
            blocks.append("\n".join(f"- {sentence}" for sentence in section.findings))
    return "\n\n".join(blocks) + "\n"


def _markdown_table(section: Section) -> str:
    table = [[column.title for column in section.columns]]
    for group in section.groups:
        for index, line in enumerate(group.lines):
            table.append(["" if index else group.name, *line.cells])
    table = [[cell.replace("|", "\\|") for cell in line] for line in table]
    widths = [max(3, *map(len, cells)) for cells in zip(*table, strict=True)]
    right = [column.kind == "number" for column in section.columns]
    rule = ["-" * (width - 1) + ":" if r else "-" * width for width, r in zip(widths, right, strict=True)]
    table.insert(1, rule)
    lines = []
    for line in table:
        cells = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def to_html(document: Document) -> str:
    """One page without scripts or links to other files."""
    title = html.escape(document.title)
    body = [f"<h1>{title}</h1>"]
    if document.warning:
        body.append(f'<p class="warning">{html.escape(document.warning)}</p>')
    body += map(_paragraph, document.text)
    for section in document.sections:
        body += [f"<h2>{html.escape(section.title)}</h2>", *map(_paragraph, section.text), _html_table(section)]
        if section.findings:
            items = "\n".join(f"<li>{html.escape(sentence)}</li>" for sentence in section.findings)
            body.append(f"<ul>\n{items}\n</ul>")
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(body) + "\n</body></html>\n"


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _html_table(section: Section) -> str:
    kinds = [column.kind for column in section.columns]
    header = (f'<th class="{column.kind}">{html.escape(column.title)}</th>' for column in section.columns)
    parts = [f"<thead><tr>{''.join(header)}</tr></thead>"]
    for group in section.groups:
        lines = []
        for index, line in enumerate(group.lines):
            cells = [] if index else [f'<td class="name" rowspan="{len(group.lines)}">{html.escape(group.name)}</td>']
            for place, (cell, kind) in enumerate(zip(line.cells, kinds[1:], strict=True)):
                mark = " mark" if place in line.marked else ""
                cells.append(f'<td class="{kind}{mark}">{html.escape(cell)}</td>')
            lines.append(f'<tr class="{line.emphasis}">{"".join(cells)}</tr>')
        parts.append("<tbody>\n" + "\n".join(lines) + "\n</tbody>")
    return '<div class="scroll"><table>\n' + "\n".join(parts) + "\n</table></div>"

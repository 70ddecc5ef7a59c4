"""A report as plain structure, and that structure as Markdown and as one self-contained HTML page."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

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
.prose { white-space: normal; max-width: 60rem; }
img { max-width: 100%; }
img.half { max-width: 49%; }
pre { overflow-x: auto; background: #f4f4f4; padding: .5rem; font-size: .8rem; }
.verdict { border-left: .4rem solid #111; padding: .5rem 1rem; background: #eee; font-size: 1.1rem; }
.warning { border: 3px solid #b00; padding: .5rem 1rem; font-weight: 600; }
"""


_ENVIRONMENT = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
_ENVIRONMENT.filters["base64"] = lambda path: b64encode(path.read_bytes()).decode()
_PAGE = _ENVIRONMENT.from_string(
    f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{{{ document.title }}}}</title><style>{STYLE}</style></head><body>
"""
    + """<h1>{{ document.title }}</h1>
{% if document.warning %}
<p class="warning">{{ document.warning }}</p>
{% endif %}
{% for text in document.text %}
<p>{{ text }}</p>
{% endfor %}
{% if document.verdict %}
<p class="verdict">{{ document.verdict }}</p>
{% endif %}
{% for section in document.sections %}
<h2>{{ section.title }}</h2>
{% for path in section.pictures %}
<img{{ " class=half" if loop.length > 1 }} alt="{{ path.stem }}" src="data:image/png;base64,{{ path | base64 }}">
{% endfor %}
{% for text in section.text %}
<p>{{ text }}</p>
{% endfor %}
{% if section.columns %}
<div class="scroll"><table>
<thead><tr>
{%- for column in section.columns %}<th class="{{ column.kind }}">{{ column.title }}</th>{% endfor -%}
</tr></thead>
{% for group in section.groups %}
<tbody>
{% for line in group.lines %}
<tr class="{{ line.emphasis }}">
{%- if loop.first %}<td class="name" rowspan="{{ loop.length }}">{{ group.name }}</td>{% endif %}
{%- for cell in line.cells -%}
<td class="{{ section.columns[loop.index].kind }}{{ " mark" if loop.index0 in line.marked }}">{{ cell }}</td>
{%- endfor -%}
</tr>
{% endfor %}
</tbody>
{% endfor %}
</table></div>
{% endif %}
{% if section.findings %}
<ul>
{% for sentence in section.findings %}
<li>{{ sentence }}</li>
{% endfor %}
</ul>
{% endif %}
{% if section.code %}
<details><summary>show</summary><pre>{{ section.code }}</pre></details>
{% endif %}
{% endfor %}
</body></html>
"""
)


@dataclass(frozen=True)
class Column:
    """:param kind: "text", "prose" (wrapped), "number" (aligned right) or "code" (hashes)."""

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
    """A heading, text, a table, and sentences on it.

    :param columns: of the table, none for a section without; the first belongs to the groups.
    :param pictures: PNG files, inside the page; code: shown as it is. Both are in the HTML page alone.
    """

    title: str
    columns: tuple[Column, ...] = ()
    groups: tuple[Group, ...] = ()
    text: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    pictures: tuple[Path, ...] = ()
    code: str = ""


@dataclass(frozen=True)
class Document:
    """:param warning: what a reader has to know before any figure; verdict: what it all says; "" for nothing."""

    title: str
    warning: str
    text: tuple[str, ...]
    sections: tuple[Section, ...]
    verdict: str = ""


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
    return _PAGE.render(document=document)

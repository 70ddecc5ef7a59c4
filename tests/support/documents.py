"""Commands and code in the Markdown files."""

from __future__ import annotations

import ast
import re

from tests.support.helpers import ROOT, SCRIPTS


def documented_commands() -> list[tuple[str, str]]:
    """(place, command) from the fenced shell blocks of the Markdown files and from the scripts' docstrings."""
    found = []
    # own-data.md is run by tests/scripts/test_own_data.py.
    docs = [path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "own-data.md"]
    readmes = [*sorted(ROOT.glob("*/README.md")), *sorted(ROOT.glob("experiments/*/README.md"))]
    for path in [ROOT / "README.md", *readmes, *docs]:
        for language, block in fenced_blocks(path.read_text()):
            if language in ("", "bash", "sh"):
                found += [(str(path.relative_to(ROOT)), c) for c in block.replace("\\\n", " ").splitlines()]
    for path in sorted(SCRIPTS.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        found += [(path.name, line) for line in docstring.replace("\\\n", " ").splitlines()]
    pattern = re.compile(r"^(mpiexec|torchrun|python|make|srun|ed-dpm)\b")
    commands = [(where, re.sub(r"\s+", " ", c.split(" #")[0].strip())) for where, c in found]
    return [(where, c) for where, c in commands if pattern.match(c)]


def fenced_blocks(markdown: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", markdown, flags=re.DOTALL | re.MULTILINE)


def run_example(document: str, section: str) -> None:
    """Run the Python block of a section of docs/`document`."""
    text = (ROOT / "docs" / document).read_text().partition(f"\n## {section}\n")[2]
    code = next(block for language, block in fenced_blocks(text) if language == "python")
    exec(compile(code, document, "exec"), {})

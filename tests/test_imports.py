"""Imports inside guided_diffusion run one way, and the logger needs little."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

BASE = Path(__file__).resolve().parents[1] / "guided_diffusion"


@cache
def imported(module: str) -> frozenset[str]:
    """Return the modules of guided_diffusion that a module names in its imports, those for type hints too."""
    found = set()
    for node in ast.walk(ast.parse((BASE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom):
            whole = ".".join(filter(None, ["guided_diffusion" if node.level else "", node.module]))
            names = [alias.name for alias in node.names] if whole == "guided_diffusion" else [whole.rpartition(".")[2]]
            if whole.startswith("guided_diffusion"):
                found |= {name for name in names if (BASE / f"{name}.py").is_file()}
    return frozenset(found)


def reached(module: str) -> set[str]:
    """Return all that a module imports, directly or through others."""
    found, new = set(), {module}
    while new:
        found |= (new := {name for source in new for name in imported(source)} - found)
    return found


def test_no_module_imports_itself_through_others():
    modules = [path.stem for path in BASE.glob("*.py") if path.stem != "__init__"]
    assert [module for module in modules if module in reached(module)] == []


def test_the_logger_needs_no_checkpoints():
    assert reached("logger") <= {"errors", "files", "launch", "log_writers", "processes", "streams"}


def test_samplers_and_objectives_keep_to_what_is_public():
    """Upstream's private names are the business of the class that has them."""
    for module in ("samplers", "objectives", "solvers"):
        for node in ast.walk(ast.parse((BASE / f"{module}.py").read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                assert isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"), (module, node.attr)

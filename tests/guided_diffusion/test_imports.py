"""Imports run one way: between the packages, between the rooms of guided_diffusion, without a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.helpers import ROOT

# A file imports from its own package and from those before it.
PACKAGES = (
    "guided_diffusion", "ed_dpm_patches", "guidance_methods", "evaluations", "scripts", "experiments", "benchmarks",
)  # fmt: skip
ROOMS = (
    "system", "io", "runs", "distributed", "data", "models", "diffusion", "config", "sampling", "training",
)  # fmt: skip
OUTSIDE = {"__init__", "errors", "moved"}  # of guided_diffusion, besides the facades under upstream's names


@cache
def modules() -> dict[str, Path]:
    """All product modules by dotted name."""
    found = {}
    for path in sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """Names of what a module imports, anywhere in it: modules of the product where they are that."""
    found = set()
    path = modules()[module]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: None if path.name == "__init__.py" else -1]
            base = ".".join([*above[: len(above) + 1 - node.level], node.module or ""][not node.level :])
            base = (base if node.level else node.module or "").rstrip(".")
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= (names & modules().keys()) or {base}
    return frozenset(found)


def edges() -> Iterator[tuple[str, str]]:
    for module in modules():
        for imported in imports(module):
            yield module, imported


def test_packages_import_downwards():
    wrong = []
    for module, imported in edges():
        own, other = module.split(".")[0], imported.split(".")[0]
        if other == "tests" or (other in PACKAGES and PACKAGES.index(other) > PACKAGES.index(own)):
            wrong.append(f"{module} imports {imported}")
    assert not wrong


def test_rooms_import_downwards():
    wrong = []
    for module, imported in edges():
        own, other = ((name.split(".") + [""])[:2] for name in (module, imported))
        if not own[0] == other[0] == "guided_diffusion" or own[1] not in ROOMS or other[1] in {"", *OUTSIDE}:
            continue
        if other[1] not in ROOMS or ROOMS.index(other[1]) > ROOMS.index(own[1]):
            wrong.append(f"{module} imports {imported}")
    assert not wrong


def test_nothing_imports_a_facade():
    """Upstream's twelve names are for upstream's users; the code is in the rooms."""
    facades = {path.stem for path in (ROOT / "guided_diffusion").glob("*.py")} - OUTSIDE
    assert len(facades) == 12
    users = [module for module, imported in edges() if imported in {f"guided_diffusion.{name}" for name in facades}]
    assert not users


def test_there_is_no_circle():
    graph = {module: {name for name in imports(module) if name in modules()} for module in modules()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_logger_imports_no_more_of_io_than_it_needs():
    found, new = set(), {"guided_diffusion.runs.logger"}
    while new:
        found |= new
        new = {imported for module in new for imported in imports(module) if imported in modules()} - found
    io = {module.rpartition(".")[2] for module in found if module.startswith("guided_diffusion.io.")}
    assert io == {"atomic", "reading", "remote"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_holds(room):
    assert ast.get_docstring(ast.parse((ROOT / "guided_diffusion" / room / "__init__.py").read_text()))


@pytest.mark.parametrize("module", ["samplers", "solvers"])
def test_what_is_private_in_the_process_is_left_alone(module):
    """Upstream's private names are the business of the class that has them."""
    for node in ast.walk(ast.parse(modules()[f"guided_diffusion.diffusion.{module}"].read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            assert isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"), node.attr


def test_no_test_module_imports_another():
    wrong = [
        f"{path.relative_to(ROOT)}: {node.module}"
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and any(part.startswith("test_") for part in f"{node.module}.{node.names[0].name}".split("."))
        and (node.module or "").startswith("tests")
    ]
    assert not wrong

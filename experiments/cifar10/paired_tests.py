"""Rows against each other by the paired test: the same noise and classes, image by image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments.commands import Commands
from experiments.comparison import guidance_name
from experiments.spec import ROOT, Row, Spec, Table
from experiments.steps import Step
from guided_diffusion.io.reading import read_json


@dataclass(frozen=True)
class Comparison:
    """A row and the row that it is compared with, in a table."""

    table: Table
    row: Row
    base: Row


@dataclass(frozen=True)
class Difference:
    """FID of a row less that of its base at one seed, that base's FID, and the test's p."""

    seed: int
    difference: float
    base_fid: float
    p: float


def comparisons(spec: Spec, table: Table) -> Iterator[Comparison]:
    """Each guided row against the table's first constant one, and against the constant one of the same networks.

    EDS also against the timestep-aware rule of the same networks: is it more than growth towards t = 0?
    """
    guided = [row for row in table.rows if row.run and spec.runs[row.run].is_guided]
    rules = {row.name: guidance_name(spec.runs[row.run]) for row in guided}
    networks = {row.name: spec.run_networks(spec.runs[row.run]) for row in guided}
    for row in guided:
        alike = [other for other in guided if networks[other.name] == networks[row.name]]
        wanted = [("constant", guided), ("constant", alike)] + [("timestep", alike)] * (rules[row.name] == "entropy")
        firsts = [next((row for row in rows if rules[row.name] == rule), None) for rule, rows in wanted]
        for base in {base.name: base for base in firsts if base}.values():
            if base.run != row.run:
                yield Comparison(table, row, base)


def steps(commands: Commands, tables: Sequence[Table]) -> list[Step]:
    """The evaluator's paired tests of all rows of some tables, each once."""
    found = (c for table in tables for c in comparisons(commands.spec, table))
    return list({step.name: step for comparison in found for step in _tests(commands, comparison)}.values())


def differences(commands: Commands, comparison: Comparison) -> list[Difference]:
    """The differences that the tests of all seeds found, or none. InputError, naming the file, for a damaged one."""
    paths = [ROOT / step.outputs[0] for step in _tests(commands, comparison)]
    if not all(path.is_file() for path in paths):
        return []
    found = []
    for seed, content in zip(commands.seeds, map(read_json, paths), strict=True):
        test = content["paired"]["fid"]
        found.append(Difference(seed, test["difference"], content["fid"] - test["difference"], test["p"]))
    return found


def _tests(commands: Commands, comparison: Comparison) -> list[Step]:
    run, base = (commands.spec.runs[row.run] for row in (comparison.row, comparison.base))
    return [commands.compare(run, base, seed) for seed in commands.seeds]

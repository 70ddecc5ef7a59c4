"""Rows against each other by the paired test: the same noise and classes, image by image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments import paired
from experiments.commands import Commands
from experiments.comparison import guidance_name
from experiments.paired import Difference
from experiments.spec import Row, Run, Spec, Table
from experiments.steps import Step


@dataclass(frozen=True)
class Comparison:
    """A row and the row that it is compared with, in a table."""

    table: Table
    row: Row
    base: Row


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
    pairs = (_runs(commands, comparison) for table in tables for comparison in comparisons(commands.spec, table))
    return list({step.name: step for pair in pairs for step in paired.steps(commands, *pair)}.values())


def differences(commands: Commands, comparison: Comparison) -> list[Difference]:
    """The differences that the tests of all seeds found, or none. InputError, naming the file, for a damaged one."""
    return paired.differences(commands, *_runs(commands, comparison))


def _runs(commands: Commands, comparison: Comparison) -> tuple[Run, Run]:
    return commands.spec.runs[comparison.row.run], commands.spec.runs[comparison.base.run]

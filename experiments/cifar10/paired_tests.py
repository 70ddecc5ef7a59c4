"""Rows against each other by the paired test: the same noise and classes, image by image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.commands import Commands
from experiments.comparison import guidance_name
from experiments.results import read_json
from experiments.spec import ROOT, Book, Row, Run, Table
from experiments.steps import Step


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


def comparisons(book: Book, table: Table) -> Iterator[Comparison]:
    """Each guided row against the table's first constant one, and against the constant one of the same networks.

    EDS also against the timestep-aware rule of the same networks: is it more than growth towards t = 0?
    """
    guided = [row for row in table.rows if row.run and book.runs[row.run].classifier]
    constants, timesteps = ([row for row in guided if _rule(book, row) == rule] for rule in ("constant", "timestep"))
    for row in guided:
        bases = [*constants[:1], *_of_same_networks(book, row, constants)[:1]]
        if _rule(book, row) == "entropy":
            bases += _of_same_networks(book, row, timesteps)[:1]
        for base in {base.name: base for base in bases}.values():
            if base.run != row.run:
                yield Comparison(table, row, base)


def _rule(book: Book, row: Row) -> str:
    return guidance_name(book.runs[row.run])


def _of_same_networks(book: Book, row: Row, others: Sequence[Row]) -> list[Row]:
    return [other for other in others if _networks(book.runs[other.run]) == _networks(book.runs[row.run])]


def _networks(run: Run) -> tuple[str, str | None]:
    return run.model, run.classifier


def steps(commands: Commands, tables: Sequence[Table]) -> list[Step]:
    """The evaluator's paired tests of all rows of some tables, each once."""
    found = {}
    for comparison in (comparison for table in tables for comparison in comparisons(commands.book, table)):
        run, base = (commands.book.runs[row.run] for row in (comparison.row, comparison.base))
        for seed in commands.seeds:
            output = _output(commands, comparison, seed)
            command = paired_command(commands.evaluate(run, seed), commands.samples(base, seed), output)
            inputs = (
                commands.reference(run.reference), commands.samples(run, seed), commands.samples(base, seed),
                commands.judge(),
            )  # fmt: skip
            found[output] = Step(f"paired-{output.stem}", tuple(command), inputs, (output,))
    return list(found.values())


def differences(commands: Commands, comparison: Comparison) -> list[Difference]:
    """What the tests found, those of all seeds or none. InputError, naming the file, for a damaged one."""
    paths = {seed: ROOT / _output(commands, comparison, seed) for seed in commands.seeds}
    if not all(path.is_file() for path in paths.values()):
        return []
    return [read_difference(path, seed) for seed, path in paths.items()]


def read_difference(path: Path, seed: int) -> Difference:
    """What the evaluator's paired test left. InputError, naming the file, for a damaged one."""
    content = read_json(path)
    test = content["paired"]["fid"]
    return Difference(seed, test["difference"], content["fid"] - test["difference"], test["p"])


def paired_command(evaluate: Sequence[str], samples: Path, output: Path) -> list[str]:
    """An evaluation's command made one of the paired test against other samples, without intervals."""
    command = list(evaluate)
    if "--bootstrap" in command:
        place = command.index("--bootstrap")
        del command[place : place + 2]
    command[command.index("--json") + 1] = str(output)
    return [*command, "--paired", str(samples)]


def _output(commands: Commands, comparison: Comparison, seed: int) -> Path:
    run, base = comparison.row.run, comparison.base.run
    count = commands.count(commands.book.runs[run])
    return commands.out / "paired" / f"{run}-against-{base}-seed{seed}-{count}.json"

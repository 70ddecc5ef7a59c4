"""The whole ablation on photographs: data, networks, tuning, the rows that are reported, their tests, the report.

    python -m experiments.cifar10 --protocol reduced
    python -m experiments.cifar10 --protocol full --tables rules table2
    python -m experiments.cifar10 --protocol reduced --at_once 2      # two steps at a time, one core each
    python -m experiments.cifar10 --protocol short --tables rules+table2 table3 --at_once 3      # one GPU

Interrupted? The same command goes on. Table after table is tuned, sampled, tested and reported;
results/cifar10/PROTOCOL.md says what is done and why.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.cifar10 import paired_tests
from experiments.cifar10.choice import (
    MATCHED,
    Choice,
    choose,
    matches,
    move,
    refine,
    with_matched_rows,
    with_wider_scales,
)
from experiments.cifar10.report import figure_words, write_results
from experiments.cli import NoLongerActs, Parser, count
from experiments.commands import Commands, Options
from experiments.figures import cli as figures
from experiments.plan import plan, preparation
from experiments.report import runs_csv
from experiments.results import Results, read_results
from experiments.runner import Runner
from experiments.spec import ROOT, Book, Figures, Row, Table, short
from experiments.spec_files import load
from experiments.steps import Step, claim
from guided_diffusion.distributed import shutdown
from guided_diffusion.errors import InputError
from guided_diffusion.io.atomic import write_atomically

RECIPES = Path(__file__).resolve().parent / "recipes"
RESULTS = ROOT / "results" / "cifar10"
TUNING_SEEDS = (101,)
MOST_MOVES = 3  # of a method's values, while its best is the first or last
BOOTSTRAP = 200  # rounds behind the 95 % intervals of what is reported
# The short ones first: each leaves a report.
TABLES = (
    "rules", "table2", "table3", "classifiers", "sharpness", "eta", "subclasses", "table2-ddpm", "table3-ddpm",
    "logits",
)  # fmt: skip


@dataclass(frozen=True)
class Protocol:
    """:param out: for all that is made, below runs/; tuning_share: tuning runs have so many times fewer samples."""

    out: str
    tuning_share: int


PROTOCOLS = {
    "reduced": Protocol("cifar10-16", 4),
    "sharpness": Protocol("cifar10-16-sharpness", 4),
    "short": Protocol("cifar10-32-short", 5),
    "full": Protocol("cifar10-32", 5),
}


def main() -> None:
    """Do what is not done yet. InputError for a bad option or a step that failed."""
    parser = Parser(
        prog="python -m experiments.cifar10", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--protocol", choices=PROTOCOLS, required=True,
                        help="32x32 on a GPU (full, short), or 16x16 on a CPU")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="for all that is made (runs/cifar10-...)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR",
                        help="the report: DIR/PROTOCOL, with DIR/README.md above (results/cifar10)")  # fmt: skip
    parser.add_argument("--tables", nargs="+", type=_tables, default=[[name] for name in TABLES], metavar="TABLE",
                        help=f"of {', '.join(TABLES)} (all), one after the other, TABLE+TABLE at once")  # fmt: skip
    parser.add_argument("--recipes", type=Path, metavar="DIR",
                        help="another book, for a trial (experiments/cifar10/recipes/...)")  # fmt: skip
    parser.add_argument("--at_once", type=count, default=1, metavar="K", help="steps at a time (1)")
    parser.add_argument("--samplers", action=NoLongerActs, help=argparse.SUPPRESS)
    parser.add_argument("--dry_run", action="store_true", help="show the networks' and the tuning's commands, run none")
    args = parser.parse_args()
    recipes = args.recipes or RECIPES / args.protocol
    ablation = Ablation(
        load(recipes),
        short(args.out or ROOT / "runs" / PROTOCOLS[args.protocol].out),
        args.results.absolute() / args.protocol,
        PROTOCOLS[args.protocol].tuning_share,
        args.at_once,
    )
    groups = [[name for name in group if name in ablation.book.tables] for group in args.tables]
    names = [name for group in groups for name in group]
    if args.dry_run:
        ablation.show(names)
        return
    claim(ROOT / ablation.out / "book.json", {"recipes": str(short(recipes)), "rehearsal": False})
    ablation.make_networks(names)
    for group in groups:
        if group:
            ablation.finish(group)


def _tables(text: str) -> list[str]:
    """A group of tables. argparse.ArgumentTypeError for a name that is none's."""
    names = text.split("+")
    if unknown := [name for name in names if name not in TABLES]:
        raise argparse.ArgumentTypeError(f"found {unknown[0]!r}, expected of {', '.join(TABLES)}")
    return names


class Ablation:
    """A book, the folder of its runs, the folder of its report.

    :param tuning_share: a tuning run has so many times fewer samples than one that is reported.
    :param at_once: steps at a time.
    """

    def __init__(self, book: Book, out: Path, results: Path, tuning_share: int, at_once: int = 1):
        self.at_once, self.tuning_share = at_once, tuning_share
        known = [name for name in TABLES if name in book.tables]
        book = replace(book, tables={name: book.tables[name] for name in dict.fromkeys([*known, *book.tables])})
        book = with_wider_scales(book)
        self.book, self.out, self.results = book, out, results
        self.tuning = self._tuning(book)
        self.runner = Runner(out, {"OMP_NUM_THREADS": "1"})

    def show(self, names: Sequence[str]) -> None:
        """Print every step that is not done, but for the rows, which tuning decides."""
        rows = [row for name in names for row in self.book.tables[name].rows]
        for step in plan(self.tuning, rows):
            if not self.runner.records.is_done(step):
                print(f"{step.name}\n{self.runner.line(step.command)}")

    def make_networks(self, names: Sequence[str]) -> None:
        """Train and derive all that the tables need."""
        rows = [row for name in names for row in self.book.tables[name].rows]
        self._run("networks", preparation(self.tuning, rows))

    def finish(self, names: Sequence[str]) -> None:
        """Tune, sample and test all rows of some tables, and write the report of all that there is."""
        title = ", ".join(names)
        self._tune(f"{title}: tuning", self.tuning, names)
        for _ in range(MOST_MOVES):
            moved = move(self.book, read_results(self.tuning.book, ROOT / self.out, TUNING_SEEDS))
            if moved.tables == self.book.tables:
                break
            self.book, self.tuning = moved, self._tuning(moved)
            self._tune(f"{title}: tuning beyond the edge", self.tuning, names)
        tuner = self._refined()
        self._tune(f"{title}: tuning around the best", tuner, names)
        self._widen(tuner)
        choice, tuning = self._choice(tuner)
        commands = self._reporting(choice)
        tables = [choice.book.tables[key] for key in (*names, MATCHED) if key in choice.book.tables]
        try:
            self._run(f"{title}: rows", self._rows(commands, tables))
        finally:  # what there is, whatever failed
            self._report(choice, tuner, tuning, commands)

    def _tune(self, title: str, tuner: Commands, names: Sequence[str]) -> None:
        self._run(title, plan(tuner, [row for name in names for row in tuner.book.tables[name].rows if row.sweep]))

    def _widen(self, tuner: Commands) -> None:
        """Larger constant scales, one after the other, until the norm of EDS's guidance is among theirs."""
        while runs := [match.next_run for match in matches(*self._tuned(tuner)) if match.next_run]:
            rows = [Row(run, run, Figures(), Figures(), run) for run in runs]
            self._run(f"{MATCHED}: larger constant scales", plan(tuner, rows))

    def _rows(self, commands: Commands, tables: Sequence[Table]) -> list[Step]:
        return plan(commands, [row for table in tables for row in table.rows]) + paired_tests.steps(commands, tables)

    def _tuning(self, book: Book) -> Commands:
        """Of a book's runs with fewer samples, at the tuning seed."""
        fewer = {run.name: run.num_samples // self.tuning_share for run in book.runs.values()}
        runs = {name: replace(run, flags=run.flags | {"num_samples": fewer[name]}) for name, run in book.runs.items()}
        options = Options(out=self.out, processes=1, seeds=TUNING_SEEDS, trace=True)
        return Commands(replace(book, runs=runs, seeds=TUNING_SEEDS), options)

    def _refined(self) -> Commands:
        return self._tuning(refine(self.book, read_results(self.tuning.book, ROOT / self.out, TUNING_SEEDS)))

    def _tuned(self, tuner: Commands) -> tuple[Choice, Commands, Results]:
        tuning = read_results(tuner.book, ROOT / self.out, TUNING_SEEDS)
        return choose(refine(self.book, tuning), tuning), tuner, tuning

    def _choice(self, tuner: Commands) -> tuple[Choice, Results]:
        choice, _, tuning = self._tuned(tuner)
        return with_matched_rows(choice, tuner, tuning), tuning

    def _reporting(self, choice: Choice) -> Commands:
        return Commands(choice.book, Options(out=self.out, processes=1, trace=True, bootstrap=BOOTSTRAP))

    def _run(self, title: str, steps: list[Step]) -> None:
        print(f"{title}: {len(steps)} steps; logs: {self.runner.logs}", flush=True)
        self.runner.run(steps, self.at_once)

    def _report(self, choice: Choice, tuner: Commands, tuning: Results, commands: Commands) -> None:
        results = read_results(choice.book, ROOT / self.out, commands.seeds)
        folder = ROOT / self.out / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        with write_atomically(folder / "tuning-runs.csv") as file:
            # A curve has one point a scale; the capped rule is another curve that a CSV of runs does not tell apart.
            shown = {name: run for name, run in tuning.runs.items() if "eds_cap" not in tuner.book.runs[name].flags}
            file.write(runs_csv(tuner.book, replace(tuning, runs=shown)).encode())
        for name, words in figure_words(choice, results, commands, folder).items():
            try:
                figures.draw(words, folder / name)
            except InputError as error:
                print(f"no figure {name}: {error}", flush=True)
        for path in write_results(choice, tuner, tuning, results, commands, self.runner, self.results):
            print(f"report: {path}")


if __name__ == "__main__":
    shutdown.run_main(main)

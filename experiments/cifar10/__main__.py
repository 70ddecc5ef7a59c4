"""The whole ablation on CIFAR-10: data, networks, tuning, the rows that are reported, their tests, the report.

    python -m experiments.cifar10 --protocol reduced
    python -m experiments.cifar10 --protocol full --tables rules table2
    python -m experiments.cifar10 --protocol reduced --jobs 2      # two steps at a time, one core each
    python -m experiments.cifar10 --protocol short --tables rules+table2 table3 --jobs 3      # one GPU

After an interruption the same command resumes. Table after table is tuned, sampled, tested and reported;
results/cifar10/PROTOCOL.md says what is done and why.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.cifar10 import paired_tests
from experiments.cifar10.report import figure_words, write_results
from experiments.cifar10.tuning import (
    MATCHED,
    Choice,
    choose,
    matches,
    move,
    refine,
    with_matched_rows,
    with_wider_scales,
)
from experiments.cli import Parser, add_jobs
from experiments.commands import Commands
from experiments.documents import write_text
from experiments.figures import cli as figures
from experiments.plan import plan, preparation
from experiments.report import runs_csv
from experiments.results import Results
from experiments.spec import ROOT, Row, Spec, short
from experiments.spec_files import load
from experiments.steps import claim
from experiments.study import Study
from guided_diffusion.distributed import shutdown
from guided_diffusion.errors import InputError

RECIPES = Path(__file__).resolve().parent / "recipes"
RESULTS = ROOT / "results" / "cifar10"
MOST_MOVES = 3  # of a method's values, while its best is the first or last
# The short ones first: each writes a report.
TABLES = (
    "rules", "table2", "table3", "classifiers", "sharpness", "eta", "subclasses", "table2-ddpm", "table3-ddpm",
    "logits", "methods", "methods-sharpened", "pairs", "early", "late", "training",
)  # fmt: skip


# By protocol: the folder below runs/, and how many times fewer samples a tuning run has.
PROTOCOLS = {
    "reduced": ("cifar10-16", 4), "sharpness": ("cifar10-16-sharpness", 4), "short": ("cifar10-32-short", 5),
    "full": ("cifar10-32", 5), "methods": ("cifar10-16-methods", 1),
    "training": ("cifar10-16-training", 2),
}  # fmt: skip


def main() -> None:
    """Run what is not done yet. InputError for a bad option or a step that failed."""
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
                        help="another spec, for a trial (experiments/cifar10/recipes/...)")  # fmt: skip
    add_jobs(parser, "steps at a time (1)", default=1)
    parser.add_argument("--dry_run", action="store_true", help="show the networks' and the tuning's commands, run none")
    args = parser.parse_args()
    recipes = args.recipes or RECIPES / args.protocol
    folder, tuning_share = PROTOCOLS[args.protocol]
    out, results = short(args.out or ROOT / "runs" / folder), args.results.absolute() / args.protocol
    ablation = Ablation(load(recipes), out, results, tuning_share, args.jobs)
    groups = [[name for name in group if name in ablation.spec.tables] for group in args.tables]
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


class Ablation(Study):
    """A spec, the folder of its runs, the folder of its report. The other arguments are those of `Study`."""

    def __init__(self, spec: Spec, out: Path, results: Path, tuning_share: int, jobs: int = 1):
        super().__init__(out, tuning_share, jobs, trace=True)
        self.results = results
        known = [name for name in TABLES if name in spec.tables]
        spec = replace(spec, tables={name: spec.tables[name] for name in dict.fromkeys([*known, *spec.tables])})
        self.spec = with_wider_scales(spec)

    def show(self, names: Sequence[str]) -> None:
        """Print every step that is not done, but for the rows, which tuning decides."""
        for step in plan(self.tuning(self.spec), _rows(self.spec, names)):
            if not self.runner.records.is_done(step):
                print(f"{step.name}\n{self.runner.line(step.command)}")

    def make_networks(self, names: Sequence[str]) -> None:
        """Train and derive all that the tables need."""
        self.run("networks", preparation(self.tuning(self.spec), _rows(self.spec, names)))

    def finish(self, names: Sequence[str]) -> None:
        """Tune, sample and test all rows of some tables, and write the report of all that there is."""
        title = ", ".join(names)
        tuning = self._tune(f"{title}: tuning", self.tuning(self.spec), names)
        for _ in range(MOST_MOVES):
            moved = move(self.spec, tuning, names)  # the other tables' moves are not made here
            if moved.tables == self.spec.tables:
                break
            self.spec = moved
            tuning = self._tune(f"{title}: tuning beyond the edge", self.tuning(moved), names)
        tuned = self.tuning(refine(self.spec, tuning))
        tuning = self._tune(f"{title}: tuning around the best", tuned, names)
        while True:  # Larger constant scales, one after the other, until the norm of EDS's guidance is among theirs.
            choice = choose(refine(self.spec, tuning), tuning)
            found = list(matches(choice, tuned, tuning))
            wider = [Row(match.next_run, match.next_run, run=match.next_run) for match in found if match.next_run]
            if not wider:
                break
            self.run(f"{MATCHED}: larger constant scales", plan(tuned, wider))
            tuning = self.read(tuned)
        choice = with_matched_rows(choice, found)
        commands = self.reporting(choice.spec)
        tables = [choice.spec.tables[key] for key in (*names, MATCHED) if key in choice.spec.tables]
        rows = [row for table in tables for row in table.rows]
        try:
            self.run(f"{title}: rows", plan(commands, rows) + paired_tests.steps(commands, tables))
        finally:  # report what there is, whatever failed
            self._report(choice, tuned, tuning, commands)

    def _tune(self, title: str, tuned: Commands, names: Sequence[str]) -> Results:
        self.run(title, plan(tuned, [row for row in _rows(tuned.spec, names) if row.sweep]))
        return self.read(tuned)

    def _report(self, choice: Choice, tuned: Commands, tuning: Results, commands: Commands) -> None:
        results, folder = self.read(commands), ROOT / self.out / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        # A curve has one point a scale; the capped rule is another curve that a CSV of runs does not tell apart.
        shown = {name: run for name, run in tuning.runs.items() if "eds_cap" not in tuned.spec.runs[name].flags}
        write_text(folder / "tuning-runs.csv", runs_csv(tuned.spec, replace(tuning, runs=shown)))
        for name, words in figure_words(choice, results, commands, folder).items():
            try:
                figures.draw(words, folder / name)
            except InputError as error:
                print(f"no figure {name}: {error}", flush=True)
        for path in write_results(choice, tuned, tuning, results, commands, self.runner, self.results):
            print(f"report: {path}")


def _rows(spec: Spec, names: Sequence[str]) -> list[Row]:
    return [row for name in names for row in spec.tables[name].rows]


if __name__ == "__main__":
    shutdown.run_main(main)

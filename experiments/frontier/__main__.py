"""The frontier: FID against the work of a sample, over samplers, steps, feature cache, classifier calls and rules.

    ed-dpm run frontier                                                  # CIFAR-10, 16x16: hours of CPU
    ed-dpm run frontier --recipes experiments/frontier/recipes/digits    # handwritten digits
    ed-dpm run frontier --dry_run                                        # the settings of the first round, their work

Settings are chosen at one seed, with half of the images: all of the recipes first, then cheaper variants of the best.
The Pareto-optimal ones, with and without EDS, are sampled at five other seeds and compared with upstream's DDIM 25 and
DDIM 250 by paired tests. After an interruption the same command resumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments import paired
from experiments.cli import Parser, add_jobs, count
from experiments.frontier.known import RESULTS
from experiments.frontier.report import write_results
from experiments.frontier.settings import Setting, fronts, grid, references, variants, with_work
from experiments.plan import plan
from experiments.spec import ROOT, Row, Run, Spec, short
from experiments.spec_files import load
from experiments.steps import claim
from experiments.study import Study
from guided_diffusion.distributed import shutdown
from guided_diffusion.errors import InputError

RECIPES = Path(__file__).resolve().parent / "recipes"
TUNING_SHARE = 2


def create_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recipes", type=Path, default=RECIPES / "cifar10", metavar="DIR",
                        help="of a spec with the tables references and frontier (CIFAR-10's)")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="for all that is made (runs/frontier-NAME; trial: runs/frontier-trial-NAME)")  # fmt: skip
    parser.add_argument("--results", type=Path, metavar="DIR",
                        help="the report: DIR/NAME, NAME that of the recipes' folder (results/frontier; "
                        "of a trial, runs/frontier-trial)")  # fmt: skip
    parser.add_argument("--num_samples", type=count, metavar="N",
                        help="of a run, in place of the recipe's: a trial, in another folder")  # fmt: skip
    add_jobs(parser, "steps at a time (1); with more, seconds are not reported", default=1)
    parser.add_argument("--dry_run", action="store_true", help="show the first round's settings and their work")
    return parser


def main() -> None:
    """Run what is not done yet and write the report. InputError for a bad option or a step that failed."""
    args = create_parser().parse_args()
    name = args.recipes.resolve().name
    spec = load(args.recipes)
    if missing := {"references", "frontier"} - spec.tables.keys():
        raise InputError(f"--recipes {args.recipes}: found no table {min(missing)}, expected references and frontier")
    kind, results = "frontier", RESULTS
    if args.num_samples:  # a trial: the results of the study stay what they are
        if args.num_samples < TUNING_SHARE:
            raise InputError(f"--num_samples: found {args.num_samples}, expected at least {TUNING_SHARE}")
        kind, results = "frontier-trial", ROOT / "runs" / "frontier-trial"
        few = {"num_samples": args.num_samples}
        spec = replace(spec, runs={key: replace(run, flags=run.flags | few) for key, run in spec.runs.items()})
    if args.dry_run:
        print(f"{'work':>8}  setting; work: FLOPs an image over those of {references(spec)[0].name}", flush=True)
        for setting in sorted(with_work(spec, [*grid(spec), *references(spec)[1:]]), key=lambda one: one.work):
            print(f"{setting.work:8.3f}  {setting.name}")
        return
    out = short(args.out or ROOT / "runs" / f"{kind}-{name}")
    claim(ROOT / out / "book.json", {"recipes": str(short(args.recipes)), "rehearsal": False})
    Frontier(spec, out, (args.results or results).absolute() / name, args.jobs).finish()


class Frontier(Study):
    """A spec, the folder of its runs, the folder of its report."""

    def __init__(self, spec: Spec, out: Path, results: Path, jobs: int = 1):
        super().__init__(out, TUNING_SHARE, jobs)
        self.spec, self.results = spec, results

    def finish(self) -> None:
        """Choose, sample, test and report."""
        settings = self._screen("first round", grid(self.spec))
        added = variants(settings)
        self.spec = replace(self.spec, runs=self.spec.runs | {run.name: run for run in added})
        settings += self._screen("second round", added)
        runs = [*references(self.spec), *(setting.run for setting in fronts(settings))]
        commands = self.reporting(self.spec)
        tests = [
            step for run in runs for base in references(self.spec) if run.name != base.name
            for step in paired.steps(commands, run, base)
        ]  # fmt: skip
        steps = {step.name: step for step in [*plan(commands, _rows(runs)), *tests]}
        try:
            self.run("Pareto-optimal settings", list(steps.values()))
        finally:  # report what there is, whatever failed
            for path in write_results(settings, commands, self.read(commands), self.results):
                print(f"report: {path}")

    def _screen(self, title: str, runs: Sequence[Run]) -> list[Setting]:
        """Runs with their work, and their FID at the tuning seed."""
        commands = self.tuning(self.spec)
        self.run(f"{title}, {len(runs)} settings", plan(commands, _rows(runs)))
        found = self.read(commands).runs
        return with_work(self.spec, runs, {run.name: found[run.name].mean("fid") for run in runs})


def _rows(runs: Sequence[Run]) -> list[Row]:
    return [Row(run.name, run.name, run=run.name) for run in {run.name: run for run in runs}.values()]


if __name__ == "__main__":
    shutdown.run_main(main)

"""A study in rounds: settings are chosen at a seed of their own and with fewer samples, then reported at others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.commands import Commands
from experiments.results import Results, read_results
from experiments.runner import Runner
from experiments.spec import ROOT, Spec
from experiments.steps import Step

TUNING_SEEDS = (101,)
BOOTSTRAP = 200  # rounds behind the 95 % intervals of what is reported


class Study:
    """The folder of a study's runs, with the runner of its steps, one core each.

    :param tuning_share: a tuning run has so many times fewer samples than one that is reported.
    :param jobs: steps at a time; trace: write a trace beside the samples of guided runs.
    """

    def __init__(self, out: Path, tuning_share: int, jobs: int = 1, trace: bool = False):
        self.out, self.tuning_share, self.jobs, self.trace = out, tuning_share, jobs, trace
        self.runner = Runner(out, {"OMP_NUM_THREADS": "1"})

    def tuning(self, spec: Spec) -> Commands:
        """The steps of a spec's runs with fewer samples, at the tuning seed."""
        runs = {
            name: replace(run, flags=run.flags | {"num_samples": run.num_samples // self.tuning_share})
            for name, run in spec.runs.items()
        }
        return Commands(replace(spec, runs=runs, seeds=TUNING_SEEDS), out=self.out, processes=1, trace=self.trace)

    def reporting(self, spec: Spec) -> Commands:
        """The steps of a spec's runs at its own seeds."""
        return Commands(spec, out=self.out, processes=1, trace=self.trace, bootstrap=BOOTSTRAP)

    def run(self, title: str, steps: Sequence[Step]) -> None:
        """Run the steps that are not done. InputError at the end where one failed."""
        print(f"{title}: {len(steps)} steps; logs: {self.runner.logs}", flush=True)
        self.runner.run(steps, self.jobs)

    def read(self, commands: Commands) -> Results:
        """The results of the commands' seeds."""
        return read_results(commands.spec, ROOT / self.out, commands.seeds)

"""One run against another by the evaluator's paired test at every seed: the same noise and classes, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.commands import Commands
from experiments.spec import ROOT, Run
from experiments.steps import Step
from guided_diffusion.io.reading import read_json


@dataclass(frozen=True)
class Difference:
    """A metric, FID if nothing else is said, of a run less that of its base at one seed, the base's, the test's p."""

    seed: int
    difference: float
    base: float
    p: float


def steps(commands: Commands, run: Run, base: Run) -> list[Step]:
    """The evaluator's paired test at every seed of the commands."""
    return [commands.compare(run, base, seed) for seed in commands.seeds]


def differences(commands: Commands, run: Run, base: Run) -> list[Difference]:
    """The differences that the tests of all seeds found, or none. InputError, naming the file, for a damaged one."""
    paths = [ROOT / step.outputs[0] for step in steps(commands, run, base)]
    if not all(path.is_file() for path in paths):
        return []
    return [read(path, seed) for seed, path in zip(commands.seeds, paths, strict=True)]


def read(path: Path, seed: int, metric: str = "fid") -> Difference:
    """The difference that a test wrote. InputError, naming the file, for a damaged one."""
    content = read_json(path)
    test = content["paired"][metric]
    return Difference(seed, test["difference"], content[metric] - test["difference"], test["p"])


def percents(found: Sequence[Difference]) -> list[float]:
    """Differences by seed, in percent of the base's mean."""
    base = np.mean([value.base for value in found])
    return [float(100 * value.difference / base) for value in found]

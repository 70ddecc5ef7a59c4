"""One run against another by the evaluator's paired test at every seed: the same noise and classes, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.commands import Commands
from experiments.spec import ROOT, Run
from experiments.steps import Step
from guided_diffusion.io.reading import read_json


@dataclass(frozen=True)
class Difference:
    """FID of a run less that of its base at one seed, that base's FID, and the test's p."""

    seed: int
    difference: float
    base_fid: float
    p: float


def steps(commands: Commands, run: Run, base: Run) -> list[Step]:
    """The evaluator's paired test at every seed of the commands."""
    return [commands.compare(run, base, seed) for seed in commands.seeds]


def differences(commands: Commands, run: Run, base: Run) -> list[Difference]:
    """The differences that the tests of all seeds found, or none. InputError, naming the file, for a damaged one."""
    paths = [ROOT / step.outputs[0] for step in steps(commands, run, base)]
    if not all(path.is_file() for path in paths):
        return []
    found = []
    for seed, content in zip(commands.seeds, map(read_json, paths), strict=True):
        test = content["paired"]["fid"]
        found.append(Difference(seed, test["difference"], content["fid"] - test["difference"], test["p"]))
    return found


def percents(found: Sequence[Difference]) -> list[float]:
    """Differences by seed, in percent of the base's mean FID."""
    base = np.mean([value.base_fid for value in found])
    return [float(100 * value.difference / base) for value in found]

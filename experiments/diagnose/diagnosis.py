"""From images to estimates, in memory or batch by batch in files: `diagnose` and the `Parts` of a resumable run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ed_dpm_patches.rules import GuidanceRule
from experiments.comparison import UNIT_FACTORS
from experiments.diagnose.measures import Arrays, Measurement
from experiments.diagnose.statistics import CONSTANT, summarize
from experiments.diagnose.verdict import verdict
from guidance_methods import RULES
from guided_diffusion.diffusion.process import DiffusionProcess
from guided_diffusion.errors import InputError, InputValueError
from guided_diffusion.io.atomic import write_atomically
from guided_diffusion.io.npz import list_arrays, read_array

DEFAULT_RULES = "constant,timestep,entropy,elucd,reverse-kl"
_FREE = ("constant", "timestep", "entropy", "elucd", "kl", "reverse-kl", "js")  # their one scale is gamma
FEWEST = 4  # images: two to fit on, two to judge by


def named_rules(text: str, num_timesteps: int) -> dict[str, GuidanceRule]:
    """Return the rules of a list such as DEFAULT_RULES, the constant one before them. InputError for others."""
    names = list(dict.fromkeys([CONSTANT, *(part.strip() for part in text.split(",") if part.strip())]))
    if unknown := [name for name in names if name not in _FREE]:
        raise InputError(f"--rules: found {unknown[0]}, expected some of {','.join(_FREE)}")
    arguments = {"timestep": {"factor": UNIT_FACTORS["timestep"](num_timesteps), "num_timesteps": num_timesteps}}
    return {name: RULES[name](**arguments.get(name, {})) for name in names}


def diagnose(
    model: Callable[..., Tensor] | None, classifiers: Mapping[str, Callable[..., Any]], diffusion: DiffusionProcess,
    images: Tensor, labels: Tensor, *, cond_model: Callable[..., Tensor] | None = None,
    rules: Mapping[str, GuidanceRule] | None = None, levels: int = 20, seed: int = 0, batch_size: int = 16,
    replicates: int = 1000,
) -> dict[str, Any]:  # fmt: skip
    """Return what `ed-dpm diagnose` writes as diagnose.json, for networks of any library; see `summarize`.

    :param model, classifiers, diffusion, cond_model: as for `Measurement`.
    :param images: x_0 in random order [N, ...], as the model was trained on, mostly in [-1, 1], on the networks'
        device; every second one is fitted on. labels: int64 [N].
    :param rules: by name, each with a gamma of 1; None: DEFAULT_RULES.
    :raises InputError: fewer than 4 images or as many labels as images are not there; see `Measurement`.
    """
    if len(images) < FEWEST or labels.shape != (len(images),):
        found = f"{len(images)} images and labels of shape {tuple(labels.shape)}"
        raise InputValueError(f"images: found {found}, expected at least {FEWEST} and a label for each")
    if rules is None:
        rules = named_rules(DEFAULT_RULES, diffusion.model_timesteps.original_num_steps)
    rules = {CONSTANT: named_rules(CONSTANT, 1)[CONSTANT]} | dict(rules)
    measurement = Measurement(model, classifiers, diffusion, rules, cond_model, levels, seed)
    parts = []
    for start in range(0, len(images), batch_size):
        numbers = range(start, min(start + batch_size, len(images)))
        part = slice(numbers.start, numbers.stop)
        parts.append(measurement.measure(images[part], labels[part], numbers))
    return conclude(measurement, joined(parts), measurement.num_classes, replicates)


def conclude(measurement: Measurement, arrays: Arrays, classes: int, replicates: int) -> dict[str, Any]:
    """Return the estimates with their verdict, once all images are measured."""
    result = summarize(
        arrays, measurement.names, list(measurement.rules), measurement.times, classes, replicates, measurement.seed
    )
    result |= {"steps": measurement.diffusion.model_timesteps.original_num_steps}
    return {"verdict": verdict(result)} | result


def joined(parts: Iterable[Arrays]) -> Arrays:
    """Return the arrays of consecutive batches as one."""
    parts = list(parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class Parts:
    """The measured batches of a run as npz files in a folder, each of consecutive images, START-STOP.npz."""

    def __init__(self, folder: Path, images: int):
        self.folder, self.images = folder, images

    def missing(self, batch_size: int) -> list[range]:
        """Return the batches of images that are not measured, at most `batch_size` each."""
        batches, position = [], 0
        for done in [*self._done(), range(self.images, self.images)]:
            batches += [range(at, min(at + batch_size, done.start)) for at in range(position, done.start, batch_size)]
            position = done.stop
        return batches

    def write(self, batch: range, arrays: Arrays) -> None:
        """Keep a batch's arrays."""
        with write_atomically(self._path(batch)) as file:
            np.savez(file, **arrays)

    def read(self) -> Arrays:
        """Return the arrays of all images. InputError for a damaged file."""
        paths = [self._path(done) for done in self._done()]
        return joined({name: read_array(path, name) for name in list_arrays(path)} for path in paths)

    def _path(self, batch: range) -> Path:
        return self.folder / f"{batch.start:07d}-{batch.stop:07d}.npz"

    def _done(self) -> list[range]:
        names = [re.fullmatch(r"(\d+)-(\d+)\.npz", path.name) for path in self.folder.glob("*.npz")]
        return sorted((range(int(name[1]), int(name[2])) for name in names if name), key=lambda done: done.start)

"""The runs that are disturbed: sampling and training with networks of a few thousand weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tests.support.helpers import DIFFUSION, MODEL, SCRIPTS, as_arguments, make_checkpoint, make_images

SAMPLES, STEPS = 48, 60


@dataclass(frozen=True)
class Job:
    """A command, and how to read its results.

    :param flags: without --log_dir.
    """

    name: str  # sampling | training
    script: str
    flags: dict

    @property
    def program(self) -> Path:
        return SCRIPTS / f"{self.script}.py"

    def arguments(self, folder: Path) -> list[str]:
        return as_arguments(self.flags | {"log_dir": folder})

    def finished(self, folder: Path) -> int:
        """How much is safely on disk: samples, or steps of the newest checkpoint."""
        if self.name == "training":
            return max((int(path.stem[-6:]) for path in folder.glob("state*.json")), default=0)
        if (folder / RESULT).exists():
            return SAMPLES
        return sum(_rows(path) for path in (folder / "parts").glob("part-*.npz"))

    def result(self, folder: Path) -> dict[str, bytes] | None:
        """Every array or tensor of the finished run, as bytes; None while there is none."""
        if self.name == "sampling":
            return _arrays(folder / RESULT) if (folder / RESULT).exists() else None
        files = sorted(folder.glob(f"*{STEPS:06d}.pt"))
        return {k: v for path in files for k, v in _tensors(path).items()} or None


RESULT = f"samples_{SAMPLES}x8x8x3.npz"


def make_jobs(folder: Path) -> dict[str, Job]:
    """Both jobs, with checkpoints and images in a folder."""
    images = make_images(folder / "images")
    model = make_checkpoint(folder / "model", "model", class_cond=True)
    sampling = {"model_path": model, "num_samples": SAMPLES, "batch_size": 2, "seed": 3}
    training = MODEL | DIFFUSION | {
        "data_dir": images, "batch_size": 4, "iterations": STEPS, "save_interval": 5, "log_interval": 5, "keep": 3,
        "class_cond": True, "seed": 3, "ema_rate": "0.9", "schedule_sampler": "loss-second-moment",
    }  # fmt: skip
    return {
        "sampling": Job("sampling", "image_sample", sampling),
        "training": Job("training", "image_train", training),
    }


def _rows(path: Path) -> int:
    with np.load(path) as part:
        return len(part["arr_0"])


def _arrays(path: Path) -> dict[str, bytes]:
    with np.load(path) as arrays:
        return {name: arrays[name].tobytes() for name in arrays.files}


def _tensors(path: Path) -> dict[str, bytes]:
    """Tensors of a checkpoint or an optimizer's state, by file and path inside it."""
    found, todo = {}, [(path.name, torch.load(path, weights_only=True))]
    while todo:
        name, value = todo.pop()
        if isinstance(value, torch.Tensor):
            found[name] = value.detach().numpy().tobytes()
        elif isinstance(value, dict):
            todo += [(f"{name}/{key}", inner) for key, inner in value.items()]
        elif isinstance(value, (list, tuple)):
            todo += [(f"{name}/{i}", inner) for i, inner in enumerate(value)]
        else:
            found[name] = repr(value).encode()
    return found

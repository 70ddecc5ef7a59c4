"""The runs that the sweep disturbs: every program that leaves files, with networks of a few thousand weights.

A job works in a folder of its own, in which the programs put everything into the folder `run`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from guided_diffusion.io.reading import hash_file
from tests.faults.jobs import _arrays, _tensors
from tests.faults.points import KILL, WRITE, Plan, Point
from tests.support.helpers import (
    CLASSIFIER,
    DIFFUSION,
    MODEL,
    ROOT,
    SCRIPTS,
    as_arguments,
    make_checkpoint,
    make_images,
)

RUN = "run"  # folder that a job's programs write to, below the job's own
_SAMPLES = re.compile(r"samples_(\d+)x8x8x\d\.npz")
_PART = re.compile(r"part-(\d+)\.npz")
_STATE = re.compile(r"state(\d+)\.json")

Result = dict[str, bytes]


@dataclass(frozen=True)
class Job:
    """A command that is repeated, and how to read its results.

    :param arguments: relative to the job's folder, which is the working directory.
    :param before: what was run in the folder earlier, arguments and how it was killed. The sweep leaves it alone.
    :param every: K of the sweep, of this job: see `sweep`.
    """

    name: str
    program: Path
    arguments: list[str]
    before: tuple[tuple[list[str], Plan | None], ...] = ()
    every: int = 12

    def finished(self, run: Path) -> int:
        """How much of the run is safely on disk."""
        raise NotImplementedError

    def result(self, run: Path) -> Result | None:
        """All results of the finished run, as bytes; None while it is not finished."""
        raise NotImplementedError

    def found(self, stdout: str) -> int | None:
        """How much of it a run said that it resumes from; None for a job that does not say so."""
        return None

    def kept_files(self, run: Path) -> set[str]:
        """Files that must never disappear once they exist."""
        return set()


@dataclass(frozen=True)
class Sampling(Job):
    """:param samples: number of samples that the command asks for."""

    samples: int = 6

    def finished(self, run: Path) -> int:
        safe: set[int] = set()
        for path in [*run.glob("samples_*.npz"), *run.glob("parts/part-*.npz")]:
            if match := _SAMPLES.fullmatch(path.name):
                safe |= set(range(int(match[1])))
            elif match := _PART.fullmatch(path.name):
                safe |= set(range(int(match[1]), int(match[1]) + len(np.load(path)["arr_0"])))
        return len(safe)

    def result(self, run: Path) -> Result | None:
        path = run / f"samples_{self.samples}x8x8x3.npz"
        if not path.exists():
            return None
        files = [path, *run.glob("trace.npz")]
        found = {f"{path.name}/{name}": value for path in files for name, value in _arrays(path).items()}
        return found | {path.name: np.asarray(Image.open(path)).tobytes() for path in run.glob("*.png")}

    def found(self, stdout: str) -> int:
        if "already complete" in stdout:
            return self.samples
        match = re.search(r"resuming: (\d+) of", stdout)
        return int(match[1]) if match else 0

    def kept_files(self, run: Path) -> set[str]:
        return {path.name for path in run.glob("samples_*.npz")}


@dataclass(frozen=True)
class Training(Job):
    """:param last: number of the run's last checkpoint."""

    last: int = 0

    def finished(self, run: Path) -> int:
        """One more than the newest checkpoint's number."""
        return max((int(_STATE.fullmatch(path.name)[1]) + 1 for path in run.glob("state*.json")), default=0)

    def result(self, run: Path) -> Result | None:
        files = sorted(run.glob(f"*{self.last:06d}.pt"))
        if not files or not (run / f"state{self.last:06d}.json").exists():
            return None
        for state in run.glob("state*.json"):
            for name, said in json.loads(state.read_text())["files"].items():
                if hash_file(run / name) != said["sha256"]:
                    raise ValueError(f"{state.name}: {name} is not the file that it was")
        return {name: value for path in files for name, value in _tensors(path).items()}

    def found(self, stdout: str) -> int:
        match = re.search(r"(?:resuming from|already complete:) \S*model(\d+)\.pt", stdout)
        return int(match[1]) + 1 if match else 0


@dataclass(frozen=True)
class Files(Job):
    """A job that writes its files at its end.

    :param patterns: that the result is in; cached: that may be left out by a run that could not write them.
    """

    patterns: tuple[str, ...] = ()
    cached: tuple[str, ...] = ()

    def finished(self, run: Path) -> int:
        return sum(1 for pattern in (*self.patterns, *self.cached) for _ in run.glob(pattern))

    def result(self, run: Path) -> Result | None:
        found: Result = {}
        for pattern in self.patterns:
            paths = sorted(run.glob(pattern))
            if not paths:
                return None
            for path in paths:
                found |= {f"{path.relative_to(run)}/{name}": value for name, value in _contents(path).items()}
        return found


def _contents(path: Path) -> Result:
    if path.suffix == ".npz":
        return _arrays(path)
    if path.suffix == ".pt":
        return _tensors(path)
    values = json.loads(path.read_text())
    return {name: repr(value).encode() for name, value in values.items() if isinstance(value, (int, float))}


JOB_NAMES = (
    "sampling", "sampling-resumed", "guided", "guided-extended", "grid", "classifier_train", "image_train",
    "image_train-resumed", "evaluator", "make_reference", "ed-dpm",
)  # fmt: skip


def make_jobs(folder: Path, names: tuple[str, ...] = JOB_NAMES) -> dict[str, Job]:
    """Return the jobs, with the checkpoints and images that they read in a folder."""
    images = make_images(folder / "images", per_class=2)
    return {name: _MAKERS[name](name, folder, images) for name in names}


def _sampling(name: str, folder: Path, images: Path) -> Job:
    flags = _common(folder) | {"num_samples": 6} | ({"save_images": True} if name == "grid" else {})
    before = ()
    if name == "sampling-resumed":  # killed when two of three batches were there
        before = ((as_arguments(flags), Plan(KILL, Point(WRITE, "open", "parts/.part-*.npz.*.tmp", 3))),)
    return Sampling(name, SCRIPTS / "image_sample.py", as_arguments(flags), before)


def _guided(name: str, folder: Path, images: Path) -> Job:
    classifier = make_checkpoint(folder / "classifier", "classifier")
    flags = _common(folder) | {
        "classifier_path": classifier, "classifier_scale": 2.0, "eds": True, "trace": f"{RUN}/trace.npz",
        "trace_samples": 1, "trace_maps": 2,
    }  # fmt: skip
    program = SCRIPTS / "classifier_sample.py"
    if name == "guided":
        return Sampling(name, program, as_arguments(flags | {"num_samples": 4}), samples=4)
    first = as_arguments(flags | {"num_samples": 4})
    return Sampling(name, program, as_arguments(flags | {"num_samples": 8}), ((first, None),), samples=8)


def _common(folder: Path) -> dict:
    model = make_checkpoint(folder / "model", "model", class_cond=True)
    return {"model_path": model, "timestep_respacing": "4", "batch_size": 2, "seed": 3, "log_dir": RUN}


def training_flags(images: Path, **more) -> dict:
    """Flags of both kinds of training but for those of the network."""
    return DIFFUSION | {
        "data_dir": images, "batch_size": 2, "save_interval": 2, "log_interval": 2, "seed": 3,
        "log_dir": RUN,
    } | more  # fmt: skip


def _classifier_train(name: str, folder: Path, images: Path) -> Job:
    flags = CLASSIFIER | training_flags(images, iterations=7, keep=2)  # checkpoints 2, 4, 6
    return Training(name, SCRIPTS / "classifier_train.py", as_arguments(flags), last=6)


def _image_train(name: str, folder: Path, images: Path) -> Job:
    flags = MODEL | training_flags(images, iterations=4, ema_rate="0.9", class_cond=True, keep=2)  # checkpoints 0, 2, 4
    before = ()
    if name == "image_train-resumed":  # killed in the midst of its third checkpoint, which is number 4
        before = ((as_arguments(flags), Plan(KILL, Point(WRITE, "replace", "opt000004.pt", 1))),)
    return Training(name, SCRIPTS / "image_train.py", as_arguments(flags), before, last=4)


def _evaluator(name: str, folder: Path, images: Path) -> Job:
    judge = make_checkpoint(folder / "judge", "classifier", noised=False)
    for seed, file in enumerate(("reference", "samples")):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / f"{file}.npz", pixels)
    flags = {"features": judge, "cache": f"{RUN}/cache", "json": f"{RUN}/metrics.json"}
    arguments = [str(folder / "reference.npz"), str(folder / "samples.npz"), *as_arguments(flags)]
    program = ROOT / "evaluations" / "evaluator.py"
    return Files(name, program, arguments, patterns=("metrics.json",), cached=("cache/*.npz",))


def _make_reference(name: str, folder: Path, images: Path) -> Job:
    judge = make_checkpoint(folder / "judge", "classifier", noised=False)
    arguments = [str(images), f"{RUN}/reference.npz", "--image_size", "8", "--features", str(judge)]
    program = ROOT / "evaluations" / "make_reference.py"
    return Files(name, program, arguments, patterns=("reference.npz",))


def _book(name: str, folder: Path, images: Path) -> Job:
    recipes = Path(__file__).with_name("book")
    # The folder is absolute to `ed-dpm`, which takes other names for relative to the repository: see `sweep.execute`.
    flags = {"recipes": recipes, "out": f"{{folder}}/{RUN}", "nproc": 1, "jobs": 1}
    patterns = ("samples/*/samples_*.npz", "networks/features/model*.pt", "metrics/*.json")
    program, arguments = Path(__file__).with_name("book_program.py"), ["run", "all", *as_arguments(flags)]
    return Files(name, program, arguments, patterns=patterns, cached=("report.*",), every=60)


_MAKERS: dict[str, Callable[[str, Path, Path], Job]] = {
    "sampling": _sampling, "sampling-resumed": _sampling, "grid": _sampling,
    "guided": _guided, "guided-extended": _guided,
    "classifier_train": _classifier_train, "image_train": _image_train, "image_train-resumed": _image_train,
    "evaluator": _evaluator, "make_reference": _make_reference, "ed-dpm": _book,
}  # fmt: skip

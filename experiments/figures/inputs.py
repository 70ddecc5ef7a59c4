"""Inputs of figures: LABEL=FILE arguments, traces, samples, names of classes. InputError for bad ones."""

from __future__ import annotations

import argparse
import os
import zipfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guided_diffusion.config.class_labels import Classes
from guided_diffusion.config.configs import NUM_CLASSES
from guided_diffusion.data.image_files import is_image_archive
from guided_diffusion.errors import InputError, some_of
from guided_diffusion.io import checkpoint
from guided_diffusion.io.reading import check_readable, decoding, list_names, open_regular, read_json
from guided_diffusion.runs.run_directory import read_manifest

SERIES = ("entropy_ratio", "grad_norm", "scale", "relative_guidance")
MAPS = ("map_t", "map_x_t", "map_pred_xstart", "map_guidance")
_MADE_BY = "a trace that scripts/classifier_sample.py --trace wrote"


@dataclass(frozen=True)
class Labelled:
    """A file, or a folder of samples, and what the figure calls it."""

    label: str
    path: Path


@dataclass(frozen=True)
class Maps:
    """The maps that a trace has of its first n samples at k steps."""

    t: np.ndarray  # int64 [k], decreasing
    y: np.ndarray  # int64 [n]: classes
    x_t: np.ndarray  # [n, k, C, H, W], about unit noise to [-1, 1]
    pred_xstart: np.ndarray  # the same shape, [-1, 1]
    guidance: np.ndarray  # the same shape: scale times the gradient of log p(y | x_t)


@dataclass(frozen=True)
class Trace:
    """One run's record, all samples over the same steps."""

    label: str
    path: Path
    t: np.ndarray  # int64 [S]: original timesteps, decreasing
    series: dict[str, np.ndarray]  # by name of SERIES: float64 [N, S]
    maps: Maps | None


def labelled(text: str) -> Labelled:
    """Parse a LABEL=SAMPLES argument: a file or a folder."""
    label, separator, name = text.partition("=")
    if not separator or not label.strip() or not name:
        raise InputError(f"{text}: expected LABEL=FILE")
    if not os.path.isdir(name):
        check_readable(text, name)
    return Labelled(label.strip(), Path(name))


def labelled_trace(text: str) -> Labelled:
    """Parse a LABEL=TRACE argument: a file, or a run's folder with one trace in it."""
    file = labelled(text)
    if not file.path.is_dir():
        return file
    found = [name for name in list_names(file.path) if name.endswith(".npz") and is_trace(file.path / name)]
    if len(found) != 1:
        shown = f"{len(found)} traces ({some_of(found)})" if found else "no trace"
        raise InputError(f"{text}: a folder, found {shown} in it, expected one: {_MADE_BY}")
    return Labelled(file.label, file.path / found[0])


def is_trace(path: Path) -> bool:
    """Return whether an npz file has the arrays of a trace; False for one that cannot be read."""
    with suppress(InputError, OSError, ValueError, zipfile.BadZipFile), open_regular(path) as file:
        return {f"{name}.npy" for name in ("t", *SERIES)} <= set(zipfile.ZipFile(file).namelist())
    return False


def check_labels(files: Sequence[Labelled]) -> None:
    """InputError when two files have the same label."""
    labels = [file.label for file in files]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"{label}: found as label of {labels.count(label)} files, expected different labels")


def read_arrays(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The named arrays of an npz file as far as it has them; all for None."""
    with decoding(path, "not a readable npz file of plain arrays"), open_regular(path) as file:
        arrays = np.load(file, allow_pickle=False)
        return {name: arrays[name] for name in arrays.files if names is None or name in names}


def read_trace(file: Labelled, *, with_maps: bool = False) -> Trace:
    """A trace; its maps only if asked for, and None if it has none."""
    arrays = read_arrays(file.path, {"t", "y", *SERIES, *MAPS} if with_maps else {"t", *SERIES})
    _require(file.path, arrays, ("t", *SERIES))
    t = arrays["t"]
    if t.ndim != 2 or 0 in t.shape:
        raise InputError(f"{file.path}: found t of shape {t.shape}, expected [samples, steps]: {_MADE_BY}")
    for name in SERIES:
        if arrays[name].shape != t.shape:
            raise InputError(f"{file.path}: found {name} of shape {arrays[name].shape}, expected {t.shape} as t has")
    series = {name: arrays[name].astype(np.float64) for name in SERIES}
    maps = _maps(file.path, arrays) if with_maps and any(name in arrays for name in MAPS) else None
    return Trace(file.label, file.path, _steps(file.path, "t", t), series, maps)


def read_maps(file: Labelled) -> Maps:
    """A trace's maps. InputError if it has none."""
    arrays = read_arrays(file.path, {"y", *MAPS})
    return _maps(file.path, arrays)


def read_samples(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Images uint8 [N, H, W, 1 or 3] and, if the file has them, their classes int64 [N].

    A folder or an archive is what it is for the evaluator: a run's samples, or images.
    """
    if path.is_dir() or is_image_archive(str(path)):
        from evaluations.image_sets import open_image_set  # a checkout has it, an installed package does not

        found = open_image_set(path)
        if not found.count:
            raise InputError(f"{path}: found statistics only, expected images")
        return np.concatenate(list(found.batches(64))), found.labels()
    arrays = read_arrays(path, {"arr_0", "arr_1"})
    _require(path, arrays, ("arr_0",), "samples as the sampling scripts write them")
    images, labels = arrays["arr_0"], arrays.get("arr_1")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        found = f"{images.dtype} {list(images.shape)}"
        raise InputError(f"{path}: found arr_0 of {found}, expected uint8 [samples, height, width, 1 or 3]")
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
        found = f"{labels.dtype} {list(labels.shape)}"
        raise InputError(f"{path}: found arr_1 of {found}, expected one integer for each of {len(images)} images")
    return images, labels


def add_class_names(parser: argparse.ArgumentParser) -> None:
    """The option that `class_names` understands."""
    told = "names of the classes, one a line, or a config.json (default: those of the checkpoints that run.json names)"
    parser.add_argument("--class_names", type=Path, metavar="FILE", help=told)


def read_class_names(path: Path | None, files: Sequence[Labelled] = ()) -> list[str] | None:
    """Names in the order of the classes: of a text file with one a line, or of a config.json.

    Without a path: of the first checkpoint that the run.json beside one of the files names; None if there are none.
    """
    if path is None:
        return next(filter(None, (_names_of_run(file.path) for file in files)), None)
    if path.suffix == ".json":
        if names := _names(read_json(path, "a checkpoint's config"), path.with_name("model.pt")):
            return names
        raise InputError(f"--class_names {path}: found no class_names, expected those of a trained checkpoint")
    with decoding(f"--class_names {path}", "expected a text file with one name a line"), open_regular(path) as file:
        return [name.strip() for name in file.read().decode().splitlines()]


def _names_of_run(path: Path) -> list[str] | None:
    with suppress(InputError, OSError):
        run = read_manifest(path if path.is_dir() else path.parent)
        for flag in ("classifier_path", "model_path"):
            if run.get(flag) and (names := _names(checkpoint.read_config(run[flag]) or {}, run[flag])):
                return names
    return None


def _names(saved: Mapping[str, Any], path: str | Path) -> list[str]:
    """The classes' names by a checkpoint's config, numbers for those that its training data did not have.

    InputError, which names the checkpoint, where that is nonsense.
    """
    classes = Classes.from_config(saved.get("num_classes", NUM_CLASSES), saved, str(path))
    if not classes.names:
        return []
    return [*classes.names, *(f"class {n}" for n in range(len(classes.names), classes.count))]


def class_name(names: list[str] | None, label: int) -> str:
    """The name of a class, or its number where there are no names."""
    if names is None:
        return f"class {label}"
    if not 0 <= label < len(names):
        raise InputError(f"--class_names: found {len(names)} names, expected one for class {label}")
    return names[label]


def indices(text: str) -> list[int]:
    """Parse a list of samples such as 0,3,5."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [-1]
    if min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"found {text}, expected numbers from 0, as in 0,3,5")
    return numbers


def _maps(path: Path, arrays: dict[str, np.ndarray]) -> Maps:
    _require(path, arrays, ("y", *MAPS), f"{_MADE_BY}, with --trace_samples above 0")
    t, y, pictures = arrays["map_t"], arrays["y"], [arrays[name] for name in MAPS[1:]]
    shape = pictures[0].shape
    fits = len(shape) == 5 and shape[:2] == t.shape and shape[2] in (1, 3) and 0 not in shape
    if not fits or any(other.shape != shape for other in pictures) or y.ndim != 1 or len(y) < shape[0]:
        found = ", ".join(f"{name} {list(arrays[name].shape)}" for name in ("y", *MAPS))
        raise InputError(f"{path}: found {found}; expected y [N], map_t [n, k], the others [n, k, 1 or 3, H, W]")
    return Maps(_steps(path, "map_t", t), y[: shape[0]], *pictures)


def _require(path: Path, arrays: Collection[str], names: Sequence[str], made_by: str = _MADE_BY) -> None:
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InputError(f"{path}: found no {', '.join(missing)}, expected {made_by}")


def _steps(path: Path, name: str, t_NS: np.ndarray) -> np.ndarray:
    """The steps that all samples share."""
    t_S = t_NS[0]
    if t_NS.dtype.kind not in "iu" or (t_NS != t_S).any() or (np.diff(t_S.astype(np.int64)) >= 0).any():
        raise InputError(f"{path}: {name}: expected whole timesteps, decreasing and the same for all samples")
    return t_S.astype(np.int64)

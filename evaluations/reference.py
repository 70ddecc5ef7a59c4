"""The arrays of a samples or reference file: images, labels, stored statistics and settings."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from evaluations.metrics.statistics import Gaussian
from guided_diffusion.data import image_labels
from guided_diffusion.data.image_files import ImageFiles
from guided_diffusion.errors import InputError, InputValueError
from guided_diffusion.io.npz import ArrayReader, list_arrays, open_npz_array, read_array

log = logging.getLogger(__name__)


@contextmanager
def open_images(path: str | os.PathLike) -> Iterator[ArrayReader]:
    """Open the images ``arr_0`` of a samples or reference file: uint8 [N, H, W, C], C 1 or 3, values 0..255.

    Raises ``InputValueError`` as ``open_npz_array`` does and for any other shape or dtype.
    """
    with open_npz_array(path, "arr_0") as reader:
        shape = reader.shape
        if reader.dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
            raise InputValueError(
                f"{path}: expected images in arr_0 as uint8 [N, H, W, 1 or 3], "
                f"found {reader.dtype} {list(shape)}"
            )
        yield reader


def read_labels(path: str | os.PathLike, count: int) -> np.ndarray | None:
    """Return class labels ``arr_1`` of ``count`` images, int64 [N], or None where the file has none.

    Raises ``InputValueError`` if they are not ``count`` integers.
    """
    if "arr_1" not in list_arrays(path):
        return None
    labels = read_array(path, "arr_1")
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise InputValueError(
            f"{path}: expected {count} integer labels in arr_1, found {labels.dtype} {list(labels.shape)}"
        )
    return labels.astype(np.int64)


def labels_to_write(files: ImageFiles, rule: str) -> image_labels.Labels | None:
    """Return labels as training reads them, and log them; None, with a warning, where auto finds none."""
    try:
        found = image_labels.read_labels(files, rule)
    except InputError as error:
        if rule != "auto":
            raise
        log.warning("warning: no labels are written: %s", error)
        return None
    log.info("%s: %s", files.place, found.describe())
    for line in found.warnings:
        log.warning("warning: %s", line)
    return found


def read_stored_statistics(path: str | os.PathLike) -> tuple[Gaussian, Gaussian | None] | None:
    """Return the stored statistics of pooled (``mu``, ``sigma``) and spatial features (``mu_s``, ``sigma_s``).

    None where the file has no ``mu``; the spatial ones are None where it has neither of them, as files of most other
    projects. Raises ``InputValueError`` if one of a pair is missing or they do not fit together.
    """
    present = list_arrays(path)
    if "mu" not in present:
        return None
    found = [_read_gaussian(path, present, suffix) for suffix in ("", "_s")[: 1 + ("mu_s" in present)]]
    return found[0], found[1] if len(found) > 1 else None


def _read_gaussian(path: str | os.PathLike, present: list[str], suffix: str) -> Gaussian:
    if f"sigma{suffix}" not in present:
        raise InputValueError(f"{path}: holds the statistics mu{suffix} but not sigma{suffix}")
    mean, covariance = (read_array(path, f"{name}{suffix}") for name in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean),) * 2 or {mean.dtype.kind, covariance.dtype.kind} != {"f"}:
        raise InputValueError(
            f"{path}: expected real mu{suffix} [D] and sigma{suffix} [D, D], "
            f"found {mean.dtype} {list(mean.shape)} and {covariance.dtype} {list(covariance.shape)}"
        )
    return Gaussian(mean, covariance)


def read_settings(path: str | os.PathLike) -> dict[str, Any]:
    """Return what ``make_reference`` noted in a file's ``settings``, a JSON text; empty where there is no such text."""
    if "settings" in list_arrays(path):
        with suppress(ValueError, RecursionError):  # other programs may store anything there
            text = read_array(path, "settings")
            found = json.loads(str(text)) if text.shape == () and text.dtype.kind == "U" else None
            return found if isinstance(found, dict) else {}
    return {}

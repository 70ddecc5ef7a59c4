"""Activations of sets seen before, in a folder, under a hash of everything they depend on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluations.engine import Activations
from evaluations.metrics.npz import read_array
from guided_diffusion.errors import DamagedError, InputError, InputValueError
from guided_diffusion.files import remove_leftovers, write_atomically

_FORMAT = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """Of N images: their ``activations``, and a hash of each one's pixels, uint64 [N]."""

    activations: Activations
    image_hashes: np.ndarray

    def without_spatial(self) -> Seen:
        """A third of the memory less, once their statistics are known."""
        return replace(self, activations=replace(self.activations, spatial=self.activations.spatial[:0].copy()))


class ActivationCache:
    """One npz file an entry in ``directory``. It never stands in the way: what fails is one warning."""

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory).absolute()
        self._unreadable: set[Path] = set()  # what may be intact

    def load(self, count: int, **key: Any) -> Seen | None:
        """The entry of ``count`` images under ``key`` (JSON values), or None where there is no good one."""
        path = self._path(key)
        if not os.path.exists(path):
            return None
        try:
            arrays = [read_array(path, name) for name in ("pool", "spatial", "probabilities", "image_hashes")]
            if any(len(array) != count for array in arrays):
                raise DamagedError(f"{path}: found {len(arrays[0])} images, expected {count}")
            if any(array.ndim != 2 or array.dtype != np.float32 for array in arrays[:3]):
                raise DamagedError(f"{path}: expected float32 activations [N, D]")
        except (DamagedError, InputValueError) as error:
            log.warning("warning: the cache entry is of no use and will be made again (%s)", error)
            return None
        except InputError as error:
            log.warning("warning: the cache entry is left alone, its activations are computed (%s)", error)
            self._unreadable.add(path)
            return None
        log.info("activations from %s", path)
        return Seen(Activations(*arrays[:3]), arrays[3])

    def store(self, seen: Seen, **key: Any) -> None:
        """Write an entry atomically, unless one is there that cannot be read; a full disk or the like is a warning."""
        path = self._path(key)
        if path in self._unreadable:
            return
        remove_leftovers(self.directory)
        try:
            with write_atomically(path) as file:
                np.savez(file, **vars(seen.activations), image_hashes=seen.image_hashes)
        except InputError as error:
            log.warning("warning: activations are not cached: %s", error)

    def _path(self, key: dict[str, Any]) -> Path:
        text = json.dumps({"format": _FORMAT, **key}, sort_keys=True)
        return self.directory / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"

"""From a set of images to activations: through the network, or out of a folder of those seen before."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluations.engine import Activations, FeatureEngine
from evaluations.image_sets import ImageBatches, ImageSet
from evaluations.metrics.npz import read_array
from guided_diffusion.errors import DamagedError, InputError, InputValueError
from guided_diffusion.io.atomic import remove_leftovers, write_atomically

_FORMAT = 1  # of the cache
_LARGEST = 1e15  # squares of sums of which still fit into float32

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """Of N images: their ``activations``, and a hash of each one's pixels, uint64 [N]."""

    activations: Activations
    image_hashes: np.ndarray

    def without_spatial(self) -> Seen:
        """A third of the memory less, once their statistics are known."""
        return replace(self, activations=replace(self.activations, spatial=self.activations.spatial[:0].copy()))


def see(
    images: ImageSet, engine: FeatureEngine, digest: str, network: str | None, cache: ActivationCache | None
) -> Seen:
    """Activations and pixel hashes of all images.

    ``digest`` and ``network`` are the sha256 of the set's files and of the network's weights; without the
    latter nothing is cached. The engine's ``config`` belongs to the key. Raises ``InputError`` naming the set if its
    images cannot be read or judged, or an output is not finite.
    """
    key = {"images": digest, "engine": type(engine).__name__, "network": network}
    key |= {"config": config} if (config := getattr(engine, "config", None)) else {}
    cache = cache if network else None
    if cache and (seen := cache.load(images.count, **key)):
        return seen
    log.info("%s: computing activations of %d images", images.name, images.count)
    batches = _Fingerprinted(images.batches(engine.batch_size))
    try:
        found = engine.compute_activations(batches)
    except InputError as error:
        shown = images.parts[0].path
        named = any(str(error).startswith(part.path) for part in images.parts)
        raise error if named else InputError(f"{shown}: {error}") from error
    for kind, array in (("pooled", found.pool), ("spatial", found.spatial), ("class", found.probabilities)):
        if array.size and not (array.min() > -_LARGEST and array.max() < _LARGEST):  # nan is neither
            raise InputError(
                f"{images.parts[0].path}: {engine.name} yields {kind} outputs that are nan or infinite, "
                f"or beyond {_LARGEST}"
            )
    seen = Seen(found, np.array(batches.hashes, dtype=np.uint64))
    if cache:
        cache.store(seen, **key)
    return seen


class _Fingerprinted:
    """Batches that leave a hash of each image behind as they pass."""

    def __init__(self, batches: ImageBatches):
        self.hashes: list[int] = []
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[np.ndarray]:
        for batch in self._batches:
            for image in batch:
                digest = hashlib.blake2b(np.ascontiguousarray(image), digest_size=8).digest()
                self.hashes.append(int.from_bytes(digest, "little"))
            yield batch


class ActivationCache:
    """Activations under a hash of everything they depend on, one npz file an entry in ``directory``.

    It never stands in the way: what fails is one warning.
    """

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

"""Features of image sets: from the network or from a cache, with their means and covariances."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluations.features.base import Activations, FeatureExtractor
from evaluations.image_sets import ImageSet
from evaluations.metrics.statistics import Gaussian, fit_gaussian
from guided_diffusion.errors import DamagedError, InputError, InputValueError
from guided_diffusion.io.atomic import remove_leftovers, write_atomically
from guided_diffusion.io.npz import read_array

Statistics = tuple[Gaussian, Gaussian | None]  # of pooled and spatial features, the latter None where there are none

_FORMAT = 1  # of the cache
_LARGEST = 1e15  # squares of sums of which still fit into float32

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Features(Activations):
    """Activations of N images, and a hash of each one's pixels, uint64 [N]."""

    image_hashes: np.ndarray


@dataclass(frozen=True)
class FeatureSet:
    """An image set with labels, features (None for statistics alone), and their means and covariances."""

    images: ImageSet
    labels: np.ndarray | None
    features: Features | None
    pool: Gaussian
    spatial: Gaussian | None


def extract(
    images: ImageSet,
    labels: np.ndarray | None,
    digest: str,
    cache: ActivationCache | None,
    extractor: FeatureExtractor,
    network: str | None,
    keep_spatial: bool,
) -> FeatureSet:
    """Run the network on a set, unless the cache has its activations, and fit the statistics that are not stored.

    ``digest`` and ``network`` are the sha256 of the set and of the network's weights; without the latter nothing is
    cached. Without ``keep_spatial`` the
    spatial features, a third of the memory, are dropped once their statistics are known. Raises ``InputError`` naming
    the set if its images cannot be read or evaluated, or an output is not finite.
    """
    features = _compute_features(images, digest, cache, extractor, network) if images.count else None
    statistics = _fit_statistics(images.path, images.stored, features, extractor)
    if features and not keep_spatial:
        features = replace(features, spatial=features.spatial[:0].copy())
    return FeatureSet(images, labels, features, *statistics)


def _compute_features(
    images: ImageSet, digest: str, cache: ActivationCache | None, extractor: FeatureExtractor, network: str | None
) -> Features:
    kind = type(extractor).__name__.replace("Extractor", "Engine")  # as in entries of the version before
    key = {"images": digest, "engine": kind, "network": network}
    key |= {"config": config} if (config := getattr(extractor, "config", None)) else {}
    cache = cache if network else None
    if cache and (features := cache.load(images.count, **key)):
        return features
    log.info("%s: computing activations of %d images", images.name, images.count)
    batches = images.batches(extractor.batch_size)
    try:
        found = extractor.compute_activations(batches)
    except InputError as error:
        named = any(str(error).startswith(part.path) for part in images.parts)
        raise error if named else InputError(f"{images.path}: {error}") from error
    for kind, array in (("pooled", found.pool), ("spatial", found.spatial), ("class", found.probabilities)):
        if array.size and not (array.min() > -_LARGEST and array.max() < _LARGEST):  # nan is neither
            raise InputError(
                f"{images.path}: {extractor.name} yields {kind} outputs that are nan or infinite, or beyond {_LARGEST}"
            )
    features = Features(**vars(found), image_hashes=np.array(batches.hashes, dtype=np.uint64))
    if cache:
        cache.store(features, **key)
    return features


def usable_statistics(
    images: ImageSet, extractor: FeatureExtractor, network: str | None
) -> tuple[Statistics | None, list[str]]:
    """Return the statistics stored with a set, None where this network did not make them; and warnings about them.

    ``network`` is the sha256 of the extractor's weights. A file tells by which network they were made if
    ``make_reference`` wrote it. Raises ``InputError`` where they are of no use and there are no images to compute
    others from, or where they have another width.
    """
    path = images.path
    if images.stored is None:
        return None, []
    if not extractor.uses_stored_statistics:
        if not images.count:
            found = "found statistics only, which are Inception's"
            raise InputError(f"{path}: {found}, expected images for {extractor.name}")
        log.info("%s: its stored statistics are Inception's; computing new ones from its images", path)
        return None, []
    made_by = images.settings.get("network_sha256")
    if isinstance(made_by, str) and network and made_by != network:
        found = f"{path}: its statistics were made by another network (sha256 {made_by[:12]}..., not {network[:12]}...)"
        if not images.count:
            raise InputError(
                f"{found} and it holds no images to compute others from; expected those of {extractor.name}"
            )
        return None, [f"{found}; they are computed anew from the {images.count} images in it"]
    _check_width(path, len(images.stored[0].mu), getattr(extractor, "pool_dims", None), extractor)
    log.info("%s: using its stored statistics", path)
    if images.stored[1] is None and images.count:
        log.info("%s: none of them are of spatial features: sFID is to its %d images", path, images.count)
    if made_by and made_by == network:
        return images.stored, []
    known = "the file does not say"
    if made_by:
        known = f"the file says sha256 {made_by[:12]}..., {extractor.name} nothing"
    return images.stored, [f"{path}: whether its statistics were made by this network is unknown: {known}"]


def _fit_statistics(
    path: str, stored: Statistics | None, features: Features | None, extractor: FeatureExtractor
) -> Statistics:
    """Return the stored statistics, and those of ``features`` in place of missing ones.

    Raises ``InputError`` if stored ones are not as wide as the network's features.
    """
    found = list(stored or (None, None))
    if features is not None:
        for i, (kind, array) in enumerate((("", features.pool), ("_s", features.spatial))):
            if found[i] is not None:
                _check_width(path, len(found[i].mu), array.shape[1], extractor, kind)
            elif array.shape[1]:
                found[i] = fit_gaussian(array)
    return found[0], found[1]


def _check_width(path: str, found: int, expected: int | None, extractor: FeatureExtractor, kind: str = "") -> None:
    if expected is not None and found != expected:
        raise InputError(
            f"{path}: found stored statistics mu{kind} of {found} dimensions, expected {expected} for {extractor.name}"
        )


class ActivationCache:
    """Activations under a hash of everything they depend on, one npz file an entry in ``directory``.

    Failing to read or write an entry is a warning only.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory).absolute()
        self._unreadable: set[Path] = set()  # entries that may be intact

    def load(self, count: int, **key: Any) -> Features | None:
        """Return the entry of ``count`` images under ``key`` (JSON values), or None where there is no good one."""
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
        return Features(*arrays)

    def store(self, features: Features, **key: Any) -> None:
        """Write an entry atomically, unless an existing one cannot be read; a full disk or the like is a warning."""
        path = self._path(key)
        if path in self._unreadable:
            return
        remove_leftovers(self.directory)
        try:
            with write_atomically(path) as file:
                np.savez(file, **vars(features))
        except InputError as error:
            log.warning("warning: activations are not cached: %s", error)

    def _path(self, key: dict[str, Any]) -> Path:
        text = json.dumps({"format": _FORMAT, **key}, sort_keys=True)
        return self.directory / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"

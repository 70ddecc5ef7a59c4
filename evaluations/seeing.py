"""From a set of images to activations: through the network, or out of the cache."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator

import numpy as np

from evaluations.cache import ActivationCache, Seen
from evaluations.engine import FeatureEngine
from evaluations.image_sets import ImageBatches, ImageSet
from guided_diffusion.errors import InputError

_LARGEST = 1e15  # squares of sums of which still fit into float32

log = logging.getLogger(__name__)


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

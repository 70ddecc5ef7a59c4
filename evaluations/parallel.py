"""One feature extractor on several ranks: rank 0 reads the images and scatters them, batch by batch.

The batches are those of a single process, and their results come back in order, so figures do not depend on the
number of ranks. Rank 0 alone computes the metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import islice
from typing import Any

import numpy as np
import torch.distributed as dist

from evaluations.features.base import RunBatch

# The others wait while rank 0 computes its metrics, however long that takes.
_PATIENCE = timedelta(days=30)
_END = "no more batches"  # in place of images, or of None for a rank without a batch


class BatchScatter:
    """Batches from rank 0 to all ranks and their results back; needs a process group and one on every rank.

    On the other ranks ``serve`` runs what rank 0 sends. A rank that fails ends its process, which the others notice
    (see ``dist_util.run_main``).
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)  # images and results are on the CPU

    def spread(self, run: RunBatch, batches: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield the results of ``run`` in order, on rank 0, each rank having run every world-size-th batch."""
        waiting, size = iter(batches), dist.get_world_size()
        while some := list(islice(waiting, size)):
            own = self._scatter(some + [None] * (size - len(some)))
            found: list[Any] = [None] * size
            dist.gather_object(run(own), found, group=self._group)
            yield from found[: len(some)]

    def serve(self, run: RunBatch) -> None:
        """Run what is received until rank 0 calls ``release``, on every other rank."""
        while not isinstance(images := self._scatter(), str):
            dist.gather_object(None if images is None else run(images), group=self._group)

    def release(self) -> None:
        """End ``serve`` on the other ranks, from rank 0."""
        self._scatter([_END] * dist.get_world_size())

    def _scatter(self, items: list[Any] | None = None) -> Any:
        """Return this rank's item of the list that rank 0 gives."""
        own = [None]
        dist.scatter_object_list(own, items, group=self._group)
        return own[0]

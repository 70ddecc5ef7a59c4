"""One feature extractor on several ranks: rank 0 reads the images and scatters them, batch by batch.

The batches are those of a single process, and their results come back in order, so figures do not depend on the
number of ranks. Rank 0 alone computes the metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import islice

import numpy as np
import torch
import torch.distributed as dist

from evaluations.features.base import RunBatch

# The others wait while rank 0 computes its metrics, however long that takes.
_PATIENCE = timedelta(days=30)
_DIMS = 4  # of images; outputs have at most as many, so that either's shape is a message of fixed length


class BatchScatter:
    """Batches from rank 0 to all ranks and their results back; needs a process group and one on every rank.

    On the other ranks ``serve`` runs what rank 0 sends. A rank that fails ends its process, which the others notice
    (see ``dist_util.run_main``).
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)  # images and results are on the CPU

    def spread(self, run: RunBatch, batches: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield the results of ``run`` in order, on rank 0, each rank having taken its turn."""
        waiting = iter(batches)
        while batches_of_ranks := list(islice(waiting, dist.get_world_size())):
            for rank, images in enumerate(batches_of_ranks[1:], start=1):
                self._send(images, rank)
            yield run(batches_of_ranks[0])
            for rank in range(1, len(batches_of_ranks)):
                yield tuple(self._receive(rank) for _ in range(self._receive_shape(rank)[0]))

    def serve(self, run: RunBatch) -> None:
        """Run what is received until rank 0 calls ``release``, on every other rank."""
        while any(shape := self._receive_shape(0)):
            outputs = run(self._receive_rows(shape, torch.uint8, 0))
            self._send_shape((len(outputs),), 0)
            for output in outputs:
                self._send(output, 0)

    def release(self) -> None:
        """End ``serve`` on the other ranks, from rank 0."""
        for rank in range(1, dist.get_world_size()):
            self._send_shape((), rank)

    def _send(self, rows: np.ndarray, rank: int) -> None:
        self._send_shape(rows.shape, rank)
        dist.send(torch.from_numpy(np.array(rows)), rank, group=self._group)  # torch needs writable memory

    def _receive(self, rank: int) -> np.ndarray:
        return self._receive_rows(self._receive_shape(rank), torch.float32, rank)

    def _receive_rows(self, shape: tuple[int, ...], kind: torch.dtype, rank: int) -> np.ndarray:
        rows = torch.empty(tuple(length for length in shape if length), dtype=kind)
        dist.recv(rows, rank, group=self._group)
        return rows.numpy()

    def _send_shape(self, shape: tuple[int, ...], rank: int) -> None:
        dist.send(torch.tensor([*shape, *[0] * (_DIMS - len(shape))]), rank, group=self._group)

    def _receive_shape(self, rank: int) -> tuple[int, ...]:
        """Return a shape padded with zeros; all zeros after ``release``."""
        shape = torch.empty(_DIMS, dtype=torch.int64)
        dist.recv(shape, rank, group=self._group)
        return tuple(shape.tolist())

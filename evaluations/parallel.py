"""One feature network on several ranks: rank 0 reads the images and deals them out, batch by batch.

The batches are those of a single process, and their results come back in order, so figures do not depend on the
number of ranks. Metrics are rank 0's affair alone.
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


class Dealer:
    """Needs a process group, and a ``Dealer`` on every rank. On the others ``serve`` does what rank 0 hands out.

    A rank that fails ends its process, which the others notice (see ``dist_util.run_main``).
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)  # images and results are on the CPU

    def spread(self, run: RunBatch, batches: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, ...]]:
        """On rank 0: the results of ``run``, in order, each rank having taken its turn."""
        waiting = iter(batches)
        while dealt := list(islice(waiting, dist.get_world_size())):
            for rank, images in enumerate(dealt[1:], start=1):
                self._send(images, rank)
            yield run(dealt[0])
            for rank in range(1, len(dealt)):
                yield tuple(self._receive(rank) for _ in range(self._receive_shape(rank)[0]))

    def serve(self, run: RunBatch) -> None:
        """On every other rank: run what comes until rank 0 calls ``release``."""
        while any(shape := self._receive_shape(0)):
            outputs = run(self._receive_rows(shape, torch.uint8, 0))
            self._send_shape((len(outputs),), 0)
            for output in outputs:
                self._send(output, 0)

    def release(self) -> None:
        """On rank 0: the others may go."""
        for rank in range(1, dist.get_world_size()):
            self._send_shape((), rank)

    def _send(self, rows: np.ndarray, rank: int) -> None:
        self._send_shape(rows.shape, rank)
        dist.send(torch.from_numpy(np.array(rows)), rank, group=self._group)  # torch wants memory it may write to

    def _receive(self, rank: int) -> np.ndarray:
        return self._receive_rows(self._receive_shape(rank), torch.float32, rank)

    def _receive_rows(self, shape: tuple[int, ...], kind: torch.dtype, rank: int) -> np.ndarray:
        rows = torch.empty(tuple(length for length in shape if length), dtype=kind)
        dist.recv(rows, rank, group=self._group)
        return rows.numpy()

    def _send_shape(self, shape: tuple[int, ...], rank: int) -> None:
        dist.send(torch.tensor([*shape, *[0] * (_DIMS - len(shape))]), rank, group=self._group)

    def _receive_shape(self, rank: int) -> tuple[int, ...]:
        """Padded with zeros; all zeros after ``release``."""
        shape = torch.empty(_DIMS, dtype=torch.int64)
        dist.recv(shape, rank, group=self._group)
        return tuple(shape.tolist())

"""What a feature network hands to the metrics, whichever network it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from tqdm.auto import tqdm

RunBatch = Callable[[np.ndarray], tuple[np.ndarray, ...]]  # images [B, H, W, C] -> a few arrays [B, ...]
Spread = Callable[[RunBatch, Iterable[np.ndarray]], Iterator[tuple[np.ndarray, ...]]]


@dataclass(frozen=True)
class Activations:
    """Of N images in file order, float32: ``pool`` [N, D], ``spatial`` [N, S], ``probabilities`` [N, K].

    S or K is 0 where a network has no such output.
    """

    pool: np.ndarray
    spatial: np.ndarray
    probabilities: np.ndarray


class FeatureEngine(Protocol):
    """A feature network.

    ``name`` says which one in results. ``batch_size`` is how many images it is handed at once.
    ``uses_stored_statistics`` tells whether mu and sigma in a reference file were made by this network.
    An engine whose weights are a file has its path as ``weights_path``; without it nothing is cached. What else
    decides about its outputs (an architecture) are the JSON values ``config``. One that says in ``resize`` how images
    come to the network's size has that in its results. ``pool_dims`` is the width of its pooled features, where that
    is known before it runs; ``class_names`` are the names of its classes, in order.
    """

    name: str
    batch_size: int
    uses_stored_statistics: bool

    def check(self, path: str, shape: tuple[int, ...]) -> None:
        """Raise ``InputError`` naming ``path`` if images of ``shape`` [N, H, W, C] cannot be judged."""

    def compute_activations(self, batches: Iterable[np.ndarray]) -> Activations:
        """Run the network on batches of images [B, H, W, C], values 0..255."""


class BatchEngine(FeatureEngine, Protocol):
    """One that several processes can share: it works batch by batch.

    ``spread`` is how batches get through ``run_batch``: the built-in ``map``, or ``ranks.Dealer.spread``.
    """

    spread: Spread

    def run_batch(self, images_BHWC: np.ndarray) -> tuple[np.ndarray, ...]:
        """What the network makes of one batch: float32 arrays [B, ...]."""


def run_batches(engine: BatchEngine, batches: Iterable[np.ndarray], description: str) -> tuple[np.ndarray, ...]:
    """The rows of ``engine.run_batch`` of all batches, in order, with a progress bar.

    Raises ``ValueError`` if there is no batch.
    """
    expected = len(batches) * engine.batch_size if isinstance(batches, Sized) else 0
    stacks: list[RowStack] = []
    for outputs in engine.spread(engine.run_batch, tqdm(batches, desc=description, unit="batch")):
        stacks = stacks or [RowStack(expected) for _ in outputs]
        for stack, rows in zip(stacks, outputs, strict=True):
            stack.append(rows)
    if not stacks:
        raise ValueError("expected batches of images, found none")
    return tuple(stack.rows() for stack in stacks)


class RowStack:
    """Arrays [B, ...] on top of each other, without the second copy that ``np.concatenate`` needs at its end.

    ``expected`` rows are allocated at once, which costs nothing until they are written; beyond them it doubles.
    """

    def __init__(self, expected: int):
        self._expected, self._count = expected, 0
        self._array: np.ndarray | None = None

    def append(self, rows: np.ndarray) -> None:
        end = self._count + len(rows)
        if self._array is None:
            self._array = np.empty((max(self._expected, end), *rows.shape[1:]), rows.dtype)
        elif end > len(self._array):
            larger = np.empty((max(2 * len(self._array), end), *rows.shape[1:]), rows.dtype)
            larger[: self._count] = self.rows()
            self._array = larger
        self._array[self._count : end] = rows
        self._count = end

    def rows(self) -> np.ndarray:
        """All rows so far, [N, ...]."""
        return self._array[: self._count]

"""Interface between feature extractors and metrics, whichever network extracts the features."""

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
    """Activations of N images in file order, float32: ``pool`` [N, D], ``spatial`` [N, S], ``probabilities`` [N, K].

    S or K is 0 where a network has no such output.
    """

    pool: np.ndarray
    spatial: np.ndarray
    probabilities: np.ndarray


class FeatureExtractor(Protocol):
    """A network that gives features.

    ``name`` identifies it in results. ``batch_size`` is how many images it is handed at once.
    ``uses_stored_statistics`` tells whether mu and sigma in a reference file were made by this network.

    Optional attributes: ``weights_path``, the file of its weights, without which nothing is cached; ``config``, JSON
    values of whatever else decides about its outputs (an architecture); ``resize``, how images are brought to the
    network's size, for the results; ``pool_dims``, the width of its pooled features where that is known before it
    runs; ``class_names``, the names of its classes in order.
    """

    name: str
    batch_size: int
    uses_stored_statistics: bool

    def check(self, path: str, shape: tuple[int, ...]) -> None:
        """Raise ``InputError`` naming ``path`` if images of ``shape`` [N, H, W, C] cannot be evaluated."""

    def compute_activations(self, batches: Iterable[np.ndarray]) -> Activations:
        """Run the network on batches of images [B, H, W, C], values 0..255."""


class BatchExtractor:
    """A ``FeatureExtractor`` that several processes can share, as it works batch by batch.

    ``spread`` applies ``run_batch`` to batches: the built-in ``map``, or ``parallel.BatchScatter.spread``.
    """

    spread: Spread = staticmethod(map)

    def __init__(self, batch_size: int):
        self.batch_size = batch_size

    def check(self, path: str, shape: tuple[int, ...]) -> None:
        """Accept images of any size, grey or RGB."""

    def run_batch(self, images_BHWC: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return what the network makes of one batch: float32 arrays [B, ...]."""
        raise NotImplementedError


def run_batches(
    extractor: BatchExtractor, batches: Iterable[np.ndarray], description: str
) -> tuple[np.ndarray, ...]:
    """Return the rows of ``extractor.run_batch`` of all batches, in order, with a progress bar.

    Raises ``ValueError`` if there is no batch.
    """
    expected = len(batches) * extractor.batch_size if isinstance(batches, Sized) else 0
    found = stack_rows(extractor.spread(extractor.run_batch, tqdm(batches, desc=description, unit="batch")), expected)
    if not found:
        raise ValueError("expected batches of images, found none")
    return found


def stack_rows(batches: Iterable[tuple[np.ndarray, ...]], expected: int) -> tuple[np.ndarray, ...]:
    """Concatenate the i-th arrays [B, ...] of all batches, without the second copy that ``np.concatenate`` needs.

    ``expected`` rows are allocated at once, which costs nothing until they are written; beyond them the room doubles.
    """
    stacks: list[np.ndarray] = []
    count = 0
    for batch in batches:
        end = count + len(batch[0])
        stacks = stacks or [np.empty((max(expected, end), *rows.shape[1:]), rows.dtype) for rows in batch]
        for stack, rows in zip(stacks, batch, strict=True):
            if end > len(stack):
                stack.resize((max(2 * len(stack), end), *stack.shape[1:]), refcheck=False)
            stack[count:end] = rows
        count = end
    return tuple(stack[:count] for stack in stacks)

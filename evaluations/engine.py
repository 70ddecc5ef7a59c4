"""What a feature network hands to the metrics, whichever network it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Activations:
    """Of N images in file order, float32: ``pool`` [N, D], ``spatial`` [N, S], ``probabilities`` [N, K]."""

    pool: np.ndarray
    spatial: np.ndarray
    probabilities: np.ndarray


class FeatureEngine(Protocol):
    """A feature network.

    ``name`` says which one in results. ``batch_size`` is how many images it is handed at once.
    ``uses_stored_statistics`` tells whether mu and sigma in a reference file were made by this network.
    An engine whose weights are a file has its path as ``weights_path``; without it nothing is cached.
    """

    name: str
    batch_size: int
    uses_stored_statistics: bool

    def check(self, path: str, shape: tuple[int, ...]) -> None:
        """Raise ``InputError`` naming ``path`` if images of ``shape`` [N, H, W, C] cannot be judged."""

    def compute_activations(self, batches: Iterable[np.ndarray]) -> Activations:
        """Run the network on batches of images [B, H, W, C], values 0..255."""

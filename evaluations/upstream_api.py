"""Upstream's evaluator classes with its names and signatures, over these metrics and the Inception extractor."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from evaluations.features.inception_tensorflow import InceptionExtractor
from evaluations.metrics import precision_recall
from evaluations.metrics.frechet import frechet_distance
from evaluations.metrics.inception_score import SPLIT_SIZE, inception_score
from evaluations.metrics.manifolds import distance_blocks
from evaluations.metrics.statistics import Gaussian, fit_gaussian
from evaluations.reference import read_stored_statistics
from guided_diffusion.io.npz import open_npz_array

__all__ = ["Evaluator", "FIDStatistics", "InvalidFIDException", "ManifoldEstimator", "open_npz_array"]


class InvalidFIDException(ValueError):
    """Raised for statistics without a Fréchet distance."""


class FIDStatistics:
    """Mean ``mu`` [D] and covariance ``sigma`` [D, D]."""

    def __init__(self, mu: np.ndarray, sigma: np.ndarray):
        self.mu = mu
        self.sigma = sigma

    def frechet_distance(self, other: FIDStatistics, eps: float = 1e-6) -> float:
        """Return the distance of ``evaluations.metrics.frechet``.

        ``eps`` is accepted and unused: upstream adds it to covariances whose matrix root fails, and here no such
        root is taken. Raises ``InvalidFIDException`` (a ``ValueError``) for unfit statistics.
        """
        try:
            return frechet_distance(Gaussian(self.mu, self.sigma), Gaussian(other.mu, other.sigma))
        except ValueError as error:
            raise InvalidFIDException(str(error)) from error


class ManifoldEstimator:
    """Manifolds as unions of balls: ``evaluations.metrics.precision_recall`` with upstream's interface.

    ``session`` is accepted and not used: distances are NumPy's, in float64, where upstream's are half
    precision whenever that does not overflow. ``row_batch_size`` and ``col_batch_size`` bound the memory and
    change no result. ``nhood_sizes`` lists the k for which radii are computed; radii above
    ``clamp_to_percentile`` (in percent, None for no limit) become 0; ``eps`` keeps realism scores finite.
    """

    def __init__(
        self,
        session: Any,
        row_batch_size: int = 10000,
        col_batch_size: int = 10000,
        nhood_sizes: Sequence[int] = (3,),
        clamp_to_percentile: float | None = None,
        eps: float = 1e-5,
    ):
        self.row_batch_size = row_batch_size
        self.col_batch_size = col_batch_size
        self.nhood_sizes = nhood_sizes
        self.num_nhoods = len(nhood_sizes)
        self.clamp_to_percentile = clamp_to_percentile
        self.eps = eps

    def warmup(self) -> None:
        """Do nothing; part of upstream's interface."""

    def manifold_radii(self, features: np.ndarray) -> np.ndarray:
        """Return squared radii, float32 [N, K], of features [N, D]."""
        radii = precision_recall.manifold_radii(
            features, self.nhood_sizes, self.row_batch_size, self.col_batch_size
        )
        if self.clamp_to_percentile is not None:
            radii[radii > np.percentile(radii, self.clamp_to_percentile, axis=0)] = 0
        return radii

    def evaluate(
        self, features: np.ndarray, radii: np.ndarray, eval_features: np.ndarray
    ) -> dict[str, float | np.ndarray]:
        """Locate ``eval_features`` [M, D] relative to the manifold of ``features`` [N, D], ``radii`` [N, K].

        Returns ``fraction`` (share inside, over all K), ``batch_predictions`` (int32 [M, K], 1 for inside),
        ``max_realisim_score`` (upstream's spelling; float32 [M], the largest ratio of the first squared
        radius to the squared distance + eps) and ``nearest_indices`` (int32 [M]).
        """
        count = len(eval_features)
        inside = np.zeros((count, radii.shape[1]), dtype=bool)
        realism = np.full(count, -np.inf, dtype=np.float32)
        nearest = np.zeros(count, dtype=np.int32)
        closest = np.full(count, np.inf, dtype=np.float32)
        blocks = distance_blocks(eval_features, features, self.row_batch_size, self.col_batch_size)
        for rows, columns, distances in blocks:
            for k in range(radii.shape[1]):
                inside[rows, k] |= (distances <= radii[None, columns, k]).any(axis=1)
            ratios = radii[columns, 0] / (distances + np.float32(self.eps))
            realism[rows] = np.maximum(realism[rows], ratios.max(axis=1))
            smallest = distances.min(axis=1)
            closer = smallest < closest[rows]
            nearest[rows] = np.where(closer, distances.argmin(axis=1) + columns.start, nearest[rows])
            closest[rows] = np.minimum(closest[rows], smallest)
        return {
            "fraction": float(inside.mean()),
            "batch_predictions": inside.astype(np.int32),
            "max_realisim_score": realism,
            "nearest_indices": nearest,
        }

    def evaluate_pr(
        self, features_1: np.ndarray, radii_1: np.ndarray, features_2: np.ndarray, radii_2: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (precision [K1], recall [K2]) with set 1 the reference and set 2 the samples."""
        first_inside, second_inside = precision_recall.covered(
            features_1, radii_1, features_2, radii_2, self.row_batch_size, self.col_batch_size
        )
        return second_inside.mean(axis=0), first_inside.mean(axis=0)


class Evaluator:
    """Inception activations and the metrics on them, with upstream's interface.

    ``session`` is a TensorFlow 1 session; the Inception graph is taken from the working directory and
    downloaded there if absent. ``batch_size`` counts images, ``softmax_batch_size`` rows of features.
    """

    def __init__(self, session: Any, batch_size: int = 64, softmax_batch_size: int = 512):
        self.sess = session
        self.batch_size = batch_size
        self.softmax_batch_size = softmax_batch_size
        self.manifold_estimator = ManifoldEstimator(session)
        self._extractor = InceptionExtractor(
            session=session, batch_size=batch_size, softmax_batch_size=softmax_batch_size
        )

    def warmup(self) -> None:
        """Run the network once, so that TensorFlow's start-up is over."""
        self.compute_activations([np.zeros((8, 64, 64, 3), dtype=np.float32)])

    def read_activations(self, npz_path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
        """Return pooled and spatial activations of the images ``arr_0`` in a file."""
        with open_npz_array(npz_path, "arr_0") as reader:
            return self.compute_activations(reader.read_batches(self.batch_size))

    def compute_activations(self, batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return pooled [N, 2048] and spatial [N, 2023] activations, float32, of batches [B, H, W, C] in 0..255."""
        return self._extractor.compute_features(batches)

    def read_statistics(
        self, npz_path: str | os.PathLike, activations: tuple[np.ndarray, np.ndarray]
    ) -> tuple[FIDStatistics, FIDStatistics]:
        """Return the statistics of both kinds stored in a file, those of ``activations`` in place of missing ones."""
        stored = read_stored_statistics(npz_path) or (None, None)
        first, second = (
            self.compute_statistics(kind) if gaussian is None else FIDStatistics(gaussian.mu, gaussian.sigma)
            for gaussian, kind in zip(stored, activations, strict=True)
        )
        return first, second

    def compute_statistics(self, activations: np.ndarray) -> FIDStatistics:
        """Return mean and covariance of activations [N, D]."""
        gaussian = fit_gaussian(activations)
        return FIDStatistics(gaussian.mu, gaussian.sigma)

    def compute_inception_score(self, activations: np.ndarray, split_size: int = SPLIT_SIZE) -> float:
        """Return the inception score from pooled activations [N, 2048]."""
        return inception_score(self._extractor.compute_probabilities(activations), split_size)

    def compute_prec_recall(
        self, activations_ref: np.ndarray, activations_sample: np.ndarray
    ) -> tuple[float, float]:
        """Return (precision, recall) from pooled activations."""
        return precision_recall.precision_recall(activations_ref, activations_sample)

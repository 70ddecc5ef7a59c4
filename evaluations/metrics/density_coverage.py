"""Density and coverage (Naeem et al. 2020, arXiv:2002.09797): precision and recall that outliers cannot inflate."""

from __future__ import annotations

from functools import partial

import numpy as np

from evaluations.metrics.manifolds import BLOCK, distance_blocks, manifold_radii
from evaluations.metrics.metric import Metric, Score, Sets

NEIGHBOURS = 5


def density_coverage(
    reference_ND: np.ndarray, samples_MD: np.ndarray, neighbours: int = NEIGHBOURS, block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """Return per sample how many reference balls hold it over k, float64 [M], and per reference image whether its
    ball holds any sample, bool [N]. Their means are density (about 1 for equal distributions) and coverage (0..1).

    A ball reaches to the k-th nearest other reference image and does not hold its edge. Distances as in
    ``manifolds``. Raises ``ValueError`` if there are not more than ``neighbours`` reference features.
    """
    radii = manifold_radii(reference_ND, (neighbours,), block, block)
    holding = np.zeros(len(samples_MD))
    covered = np.zeros(len(reference_ND), dtype=bool)
    for rows, columns, distances in distance_blocks(reference_ND, samples_MD, block, block):
        inside = distances < radii[rows]
        holding[columns] += inside.sum(axis=0)
        covered[rows] |= inside.any(axis=1)
    return holding / neighbours, covered


def _per_image(sets: Sets) -> tuple[np.ndarray, np.ndarray] | None:
    return None if sets.pools is None else density_coverage(*sets.pools)


def _mean(place: int, sets: Sets) -> Score | None:
    """Return density (place 0) or coverage (1)."""
    found = sets.once(_per_image)
    return found and Score.mean(found[place])


DENSITY = Metric("density", "Density", partial(_mean, 0), "density", extra=True, least_reference=NEIGHBOURS + 1)
COVERAGE = Metric("coverage", "Coverage", partial(_mean, 1), "coverage", extra=True, least_reference=NEIGHBOURS + 1)

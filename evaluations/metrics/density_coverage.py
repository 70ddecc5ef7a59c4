"""Density and coverage (Naeem et al. 2020, arXiv:2002.09797): precision and recall that outliers cannot inflate."""

from __future__ import annotations

import numpy as np

from evaluations.metrics.manifolds import BLOCK, manifold_radii, squared_distances

NEIGHBOURS = 5


def density_coverage(
    reference_ND: np.ndarray, samples_MD: np.ndarray, neighbours: int = NEIGHBOURS, block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """Per sample how many reference balls hold it over k, float64 [M]; per reference image whether its ball holds
    any sample, bool [N]. Their means are density (about 1 for equal distributions) and coverage (0..1).

    A ball reaches to the k-th nearest other reference image and does not hold its edge. Distances as in
    ``manifolds``. Raises ``ValueError`` if there are not more than ``neighbours`` reference features.
    """
    radii = manifold_radii(reference_ND, (neighbours,), block, block)
    holding = np.zeros(len(samples_MD))
    covered = np.zeros(len(reference_ND), dtype=bool)
    for begin in range(0, len(reference_ND), block):
        rows = slice(begin, begin + block)
        for start in range(0, len(samples_MD), block):
            columns = slice(start, start + block)
            inside = squared_distances(reference_ND[rows], samples_MD[columns]) < radii[rows]
            holding[columns] += inside.sum(axis=0)
            covered[rows] |= inside.any(axis=1)
    return holding / neighbours, covered

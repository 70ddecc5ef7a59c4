"""How far samples are from the mixture: within classes, on the marginal, and by class."""

from __future__ import annotations

import torch
from torch import Tensor

from evaluations.metrics.frechet import frechet_distance
from evaluations.metrics.statistics import fit_gaussian
from experiments.mixture.distribution import Mixture


def energy_distance(x_ND: Tensor, y_MD: Tensor) -> float:
    """Return 2 E|x - y| - E|x - x'| - E|y - y'| over pairs of different points (Szekely & Rizzo 2013); unbiased."""
    within = [
        torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").sum() / (len(z) * (len(z) - 1))
        for z in (x_ND, y_MD)
    ]
    between = torch.cdist(x_ND, y_MD, compute_mode="donot_use_mm_for_euclid_dist").mean()
    return float(2 * between - sum(within))


def measure(mixture: Mixture, samples_ND: Tensor, y_N: Tensor, reference_ND: Tensor) -> dict[str, float]:
    """Compare samples with draws of the same labels.

    "within": the mean over the classes of the energy distance; "marginal": that of all together; "frechet": the
    Frechet distance of the coordinates, without labels, as FID is; "right": the share of the samples whose nearest
    component is of their class; "finite": the share of the samples that are finite (the others are left out).
    """
    finite_N = samples_ND.isfinite().all(dim=1)
    samples_ND, y_N, reference_ND = samples_ND[finite_N].double(), y_N[finite_N], reference_ND[finite_N]
    if len(y_N) < 2 * mixture.num_classes:
        return dict.fromkeys(("within", "marginal", "frechet", "right"), float("inf")) | {"finite": 0.0}
    classes = [y_N == k for k in range(mixture.num_classes)]
    within = [energy_distance(samples_ND[k], reference_ND[k]) for k in classes if k.sum() > 1]
    nearest_N = torch.cdist(samples_ND, mixture.means_JD).argmin(dim=1)
    gaussians = (fit_gaussian(points.numpy()) for points in (samples_ND, reference_ND))
    return {
        "within": sum(within) / len(within),
        "marginal": energy_distance(samples_ND, reference_ND),
        "frechet": float(frechet_distance(*gaussians)),
        "right": float((mixture.class_J[nearest_N] == y_N).double().mean()),
        "finite": float(finite_N.double().mean()),
    }

"""How far samples are from the mixture: within classes, on the marginal, and by class."""

from __future__ import annotations

import torch
from torch import Tensor

from evaluations.metrics.frechet import frechet_distance
from evaluations.metrics.statistics import fit_gaussian
from experiments.mixture.distribution import Mixture


class Truth:
    """Draws of the mixture that samples are compared with; what depends on them alone is computed once.

    :param y_N: the labels of the samples, every class as often; reference_ND: draws of these labels.
    :param box: bound of every coordinate, in units of `Mixture.reach`. Samples are clamped to it, as images are when
        they are saved: one that diverged counts, but not without bound.
    """

    def __init__(self, mixture: Mixture, y_N: Tensor, reference_ND: Tensor, box: float):
        self.mixture, self.y_N, self.reference_ND, self.bound = mixture, y_N, reference_ND, box * mixture.reach
        self.onehot_NK = torch.nn.functional.one_hot(y_N, mixture.num_classes).double()
        self._own_KK = self._class_sums(reference_ND, reference_ND)
        self._gaussian = fit_gaussian(reference_ND.numpy())

    def measure(self, samples_ND: Tensor) -> dict[str, float]:
        """Compare samples with the draws.

        "within": the mean over the classes of the energy distance 2 E|x - y| - E|x - x'| - E|y - y'| over pairs of
        different points (Szekely & Rizzo 2013), unbiased, so that it is around 0 for draws of the mixture;
        "marginal": that of all classes together; "frechet": the Frechet distance of the coordinates, without labels,
        as FID is; "right": the share of the samples whose nearest component is of their class; "lost": the share that
        is outside the box or not finite.
        """
        lost_N = ~(samples_ND.abs() <= self.bound).all(dim=1)
        x_ND = samples_ND.double().nan_to_num(self.bound).clamp(-self.bound, self.bound)
        nearest_N = torch.cdist(x_ND, self.mixture.means_JD).argmin(dim=1)
        between_KK, x_KK = self._class_sums(x_ND, self.reference_ND), self._class_sums(x_ND, x_ND)
        within_K = _energy_distance(between_KK.diag(), x_KK.diag() + self._own_KK.diag(), self.onehot_NK.sum(dim=0))
        marginal = _energy_distance(between_KK.sum(), (x_KK + self._own_KK).sum(), len(x_ND))
        return {
            "within": float(within_K.mean()),
            "marginal": float(marginal),
            "frechet": float(frechet_distance(fit_gaussian(x_ND.numpy()), self._gaussian)),
            "right": float((self.mixture.class_J[nearest_N] == self.y_N).double().mean()),
            "lost": float(lost_N.double().mean()),
        }

    def _class_sums(self, x_ND: Tensor, y_ND: Tensor) -> Tensor:
        """Return the sum of |x - y| over all pairs of a class of x with a class of y, [K, K]."""
        distance_NN = torch.cdist(x_ND, y_ND, compute_mode="use_mm_for_euclid_dist")
        return self.onehot_NK.T @ distance_NN @ self.onehot_NK


def _energy_distance(between: Tensor, inside: Tensor, count: Tensor | int) -> Tensor:
    """The unbiased energy distance of `count` points and as many others, by sums over pairs between and inside."""
    return 2 * between / count**2 - inside / (count * (count - 1))

"""A Gaussian mixture with classes, and everything about its diffusion in closed form.

Component j has mean m_j, isotropic deviation s and weight 1/J; a class is a set of components. With abar = abar_t,
x_t = sqrt(abar) x_0 + sqrt(1 - abar) noise is a mixture of the same weights with means sqrt(abar) m_j and variance
v = abar s^2 + 1 - abar, from which follow

    log p(x_t | j) = (sqrt(abar) <x_t, m_j> - abar |m_j|^2 / 2) / v + a number that is the same for every j,
    E[x_0 | x_t, j] = m_j + sqrt(abar) s^2 / v (x_t - sqrt(abar) m_j).

Given a class, the same holds with its components alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """A mixture of J components in K classes of equal weight.

    :param means_JD: of the components, float64.
    :param class_J: the class of each component, 0 to K - 1, ascending, as many of each.
    :param deviation: of every component in every direction.
    :param abar_T: abar of the process's T steps, float64.
    """

    means_JD: Tensor
    class_J: Tensor
    deviation: float
    abar_T: Tensor

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.class_J[-1]) + 1

    @property
    def reach(self) -> float:
        """The largest coordinate of a component's mean, without its sign."""
        return float(self.means_JD.abs().max())

    def draw(self, y_B: Tensor, generator: torch.Generator) -> Tensor:
        """Draw x_0 [B, D], float64, of the classes y [B]."""
        each = len(self.class_J) // self.num_classes
        component_B = y_B * each + torch.randint(each, y_B.shape, generator=generator)
        noise_BD = torch.randn(len(y_B), self.means_JD.shape[1], generator=generator, dtype=torch.float64)
        return self.means_JD[component_B] + self.deviation * noise_BD

    def log_components(self, x_BD: Tensor, t_B: Tensor, deviation: float | None = None) -> Tensor:
        """Return log p(x_t | j) [B, J], float64, up to a number that is the same for every j; differentiable in x.

        :param t_B: timesteps of the process.
        """
        signal_B, variance_B = self._level(t_B, deviation)
        inner_BJ = x_BD.double() @ self.means_JD.T
        size_J = self.means_JD.square().sum(dim=1)
        return (signal_B[:, None] * inner_BJ - signal_B[:, None] ** 2 * size_J / 2) / variance_B[:, None]

    def log_classes(self, x_BD: Tensor, t_B: Tensor) -> Tensor:
        """Return log p(x_t, y) [B, K], float64, up to a number for each sample: logits of the exact classifier."""
        log_p_BJ = self.log_components(x_BD, t_B)
        return log_p_BJ.unflatten(1, (self.num_classes, -1)).logsumexp(dim=2)

    def denoise(self, x_BD: Tensor, t_B: Tensor, deviation: float | None = None, y_B: Tensor | None = None) -> Tensor:
        """Return E[x_0 | x_t] [B, D], float64, or with labels y [B] E[x_0 | x_t, y].

        :param deviation: of the components in place of the mixture's own.
        """
        signal_B, variance_B = self._level(t_B, deviation)
        log_p_BJ = self.log_components(x_BD, t_B, deviation)
        if y_B is not None:
            log_p_BJ = log_p_BJ.where(self.class_J == y_B[:, None], -math.inf)
        mean_BD = log_p_BJ.softmax(dim=1) @ self.means_JD
        gain_B = signal_B * (deviation or self.deviation) ** 2 / variance_B
        return mean_BD + gain_B[:, None] * (x_BD.double() - signal_B[:, None] * mean_BD)

    def _level(self, t_B: Tensor, deviation: float | None) -> tuple[Tensor, Tensor]:
        """Return sqrt(abar) and the variance of a component in x_t, [B] each."""
        abar_B = self.abar_T[t_B.long()]
        return abar_B.sqrt(), abar_B * (deviation or self.deviation) ** 2 + 1 - abar_B


def make_mixture(
    layout: str, classes: int, components: int, dimensions: int, radius: float, spread: float, deviation: float,
    alphas_cumprod: np.ndarray, seed: int = 0,
) -> Mixture:  # fmt: skip
    """Place the components of each class at `spread` around its centre, and the centres at `radius`.

    :param layout: "circle" (the first two of the dimensions) or "directions" (random ones).
    :raises ValueError: another layout.
    """
    generator = torch.Generator().manual_seed(seed)

    def on_circle(count: int, turn: float) -> Tensor:
        angle_N = 2 * math.pi * torch.arange(count, dtype=torch.float64) / count + turn
        plane_N2 = torch.stack([angle_N.cos(), angle_N.sin()], dim=1)
        return torch.cat([plane_N2, torch.zeros(count, dimensions - 2, dtype=torch.float64)], dim=1)

    def directions(count: int) -> Tensor:
        vectors_ND = torch.randn(count, dimensions, generator=generator, dtype=torch.float64)
        return vectors_ND / vectors_ND.norm(dim=1, keepdim=True)

    if layout == "circle":
        centres_KD = radius * on_circle(classes, 0.0)
        turns = 2 * math.pi * torch.rand(classes, generator=generator, dtype=torch.float64)
        around = [on_circle(components, float(turn)) for turn in turns]
    elif layout == "directions":
        centres_KD = radius * directions(classes)
        around = [directions(components) for _ in range(classes)]
    else:
        raise ValueError(f"layout: found {layout}, expected circle or directions")
    means_JD = torch.cat([centre + spread * offsets for centre, offsets in zip(centres_KD, around, strict=True)])
    class_J = torch.arange(classes).repeat_interleave(components)
    return Mixture(means_JD, class_J, deviation, torch.from_numpy(alphas_cumprod))

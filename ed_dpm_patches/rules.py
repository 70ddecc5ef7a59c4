"""Guidance rules: how strongly each sample is pushed towards its class.

A rule maps (logits [B, K], labels y [B], timesteps t [B]) to a cotangent v [B, K] on the logits. The guidance
is v pulled back through the classifier, so a scale inside v meets the gradient before anything can
underflow. Plain guidance is the logits' gradient of log p_y times gamma: v = gamma * (onehot(y) - p).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .softmax import Softmax

# exp() of more overflows float64. Only reached when H < 1e-300 and the classifier is wrong.
_LARGEST_LOG = 700.0


@dataclass(frozen=True)
class GuidanceRule(ABC):
    """Scales the plain gradient of log p_y by one factor a sample.

    A rule that needs the gradient's norm also has a method `late_factor`: from the L2 norm [B] of the
    gradient of log p_y at x_t to a further factor [B]. Where there is none the norm is not computed.

    :param gamma: classifier scale, the paper's gamma (>= 0).
    """

    gamma: float = 1.0

    def __post_init__(self):
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"gamma: found {self.gamma}, expected a finite number of at least 0")

    @abstractmethod
    def log_scale(self, p: Softmax, t: Tensor) -> Tensor:
        """log of the factor on top of gamma, [B], float64."""

    def __call__(self, logits: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """The cotangent v [B, K], float64, always finite for finite logits; not differentiable."""
        p = Softmax.of(logits)
        log_size_B, u_BK = p.residual(y)
        log_factor_B = (log_size_B + self.log_scale(p, t)).clamp(max=_LARGEST_LOG)
        return self.gamma * log_factor_B.exp()[:, None] * u_BK


@dataclass(frozen=True)
class ConstantRule(GuidanceRule):
    """s = gamma (Dhariwal & Nichol 2021)."""

    def log_scale(self, p: Softmax, t: Tensor) -> Tensor:
        return torch.zeros_like(p.log_r_B)


@dataclass(frozen=True)
class EntropyRule(GuidanceRule):
    """s = gamma * log K / H(p): entropy-driven sampling, Eq. 9-10 of the paper; `--eds`.

    s >= gamma, with equality where the prediction is uniform; it is recomputed for every sample and step
    and not differentiated.
    """

    def log_scale(self, p: Softmax, t: Tensor) -> Tensor:
        return math.log(math.log(p.num_classes)) - p.log_entropy


@dataclass(frozen=True)
class RangeRule(GuidanceRule):
    """s = gamma * factor for t <= until, gamma before: "Constant (range 0-700)", supplement Eq. 1.

    :param factor: the paper's C (> 0); until: on the original timestep scale, whatever the respacing.
    """

    factor: float = 1.0
    until: int = 700

    def log_scale(self, p: Softmax, t: Tensor) -> Tensor:
        return torch.where(t <= self.until, math.log(self.factor), 0.0).to(p.log_r_B)


@dataclass(frozen=True)
class TimestepRule(GuidanceRule):
    """s = gamma * factor * (T - t): "Timestep-aware", supplement Eq. 2.

    :param factor: the paper's C (> 0); num_timesteps: T of the original process.
    """

    factor: float = 1.0
    num_timesteps: int = 1000

    def log_scale(self, p: Softmax, t: Tensor) -> Tensor:
        return torch.log(self.factor * (self.num_timesteps - t).to(p.log_r_B))


@dataclass(frozen=True)
class GradientNormRule(GuidanceRule):
    """s = gamma * factor where the gradient of log p_y is weak (L2 norm below bound), else gamma.

    "Gradient Norm", Eq. 13 and supplement Eq. 3. Both print the branches the other way round; this is what
    the text says: a gradient below the bound "is weak and needs to be rescaled".

    :param factor: the paper's C (> 0); bound: its M.
    """

    factor: float = 1.0
    bound: float = 0.2

    def log_scale(self, p: Softmax, t: Tensor) -> Tensor:
        return torch.zeros_like(p.log_r_B)

    def late_factor(self, grad_norm: Tensor) -> Tensor:
        return torch.where(grad_norm < self.bound, self.factor, 1.0)


RULES = ("constant", "range", "timestep", "gradnorm", "entropy")


def make_rule(
    name: str, gamma: float, *, factor: float, until: int, bound: float, num_timesteps: int
) -> GuidanceRule:
    """The rule of a name in RULES, with those of the parameters that it has. ValueError for other names."""
    if name == "constant":
        return ConstantRule(gamma)
    if name == "range":
        return RangeRule(gamma, factor, until)
    if name == "timestep":
        return TimestepRule(gamma, factor, num_timesteps)
    if name == "gradnorm":
        return GradientNormRule(gamma, factor, bound)
    if name == "entropy":
        return EntropyRule(gamma)
    raise ValueError(f"guidance: found {name!r}, expected one of {', '.join(RULES)}")

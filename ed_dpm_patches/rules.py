"""Guidance rules: how strongly each sample is pushed towards its class.

A rule has a direction v [B, K] on the logits and a scale [B]. The guidance is their product, pulled back through the
classifier to x_t. Plain guidance follows the gradient of log p_y on the logits, v = onehot(y) - p, times gamma.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .softmax import Softmax

# exp() of more overflows float64. Only reached when H < 1e-300 and the classifier is wrong.
LARGEST_LOG = 700.0

Direction = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class GuidanceRule(ABC):
    """Guidance along `direction`, times gamma and a factor for each sample and step.

    :param gamma: classifier scale, the paper's gamma (>= 0).
    """

    gamma: float = 1.0
    needs_grad_norm: ClassVar[bool] = False  # whether `log_scale` reads grad_norm, which takes time to compute

    def __init_subclass__(cls):
        super().__init_subclass__()
        former = {"__call__": "override direction, or pass a function", "late_factor": "its log belongs in log_scale"}
        for name in former.keys() & vars(cls):
            raise TypeError(f"{cls.__name__}.{name}: no longer called; {former[name]}")
        if "grad_norm" not in inspect.signature(cls.log_scale).parameters:
            raise TypeError(f"{cls.__name__}.log_scale: expected the arguments (self, p, t, grad_norm)")

    def __post_init__(self):
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"gamma: found {self.gamma}, expected a finite number of at least 0")

    def direction(self, p: Softmax, y: Tensor) -> Direction:
        """The gradient v [B, K] on the logits, or (log_size [B], u [B, K]) with v = exp(log_size) u.

        The default is onehot(y) - p, in the second form: near certainty v itself underflows.
        """
        return p.residual(y)

    @abstractmethod
    def log_scale(self, p: Softmax, t: Tensor, grad_norm: Tensor | None) -> Tensor:
        """The log of the factor on top of gamma, [B], float64.

        :param t: [B], on the original timestep scale, whatever the respacing.
        :param grad_norm: L2 norm [B], float64, of the direction pulled back to x_t; None unless `needs_grad_norm`.
        """

    def __call__(self, logits: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """The scaled direction [B, K], float64, finite for finite logits, as if no gradient at x_t were weak."""
        p = Softmax.of(logits)
        log_norm_B, unit_BK = unit_direction(self.direction(p, y))
        log_scale_B = self.log_scale(p, t, torch.full_like(log_norm_B, math.inf))
        return self.gamma * (log_scale_B + log_norm_B).clamp(max=LARGEST_LOG).exp()[:, None] * unit_BK


def unit_direction(direction: Direction) -> tuple[Tensor, Tensor]:
    """Return the log of a direction's L1 norm [B], and the direction with an L1 norm of 1 [B, K], float64."""
    log_size_B, u_BK = direction if isinstance(direction, tuple) else (0.0, direction)
    norm_B = u_BK.double().abs().sum(dim=1).clamp(min=1e-300)  # a direction of zeros stays one
    return log_size_B + norm_B.log(), u_BK / norm_B[:, None]


@dataclass(frozen=True)
class ConstantRule(GuidanceRule):
    """s = gamma (Dhariwal & Nichol 2021)."""

    def log_scale(self, p: Softmax, t: Tensor, grad_norm: Tensor | None) -> Tensor:
        return torch.zeros_like(p.log_r_B)


@dataclass(frozen=True)
class EntropyRule(GuidanceRule):
    """s = gamma * log K / H(p): entropy-driven sampling, Eq. 9-10 of the paper; `--eds`.

    s >= gamma, with equality where the prediction is uniform; it is recomputed for every sample and step
    and not differentiated.
    """

    def log_scale(self, p: Softmax, t: Tensor, grad_norm: Tensor | None) -> Tensor:
        return math.log(math.log(p.num_classes)) - p.log_entropy


@dataclass(frozen=True)
class RangeRule(GuidanceRule):
    """s = gamma * factor for t <= until, gamma before: "Constant (range 0-700)", supplement Eq. 1.

    :param factor: the paper's C (> 0); until: on the original timestep scale, whatever the respacing.
    """

    factor: float = 1.0
    until: int = 700

    def log_scale(self, p: Softmax, t: Tensor, grad_norm: Tensor | None) -> Tensor:
        return (t <= self.until).double() * math.log(self.factor)


@dataclass(frozen=True)
class TimestepRule(GuidanceRule):
    """s = gamma * factor * (T - t): "Timestep-aware", supplement Eq. 2.

    :param factor: the paper's C (> 0); num_timesteps: T of the original process.
    """

    factor: float = 1.0
    num_timesteps: int = 1000

    def log_scale(self, p: Softmax, t: Tensor, grad_norm: Tensor | None) -> Tensor:
        return torch.log(self.factor * (self.num_timesteps - t).double())


@dataclass(frozen=True)
class GradientNormRule(GuidanceRule):
    """s = gamma * factor where the gradient of log p_y is weak (L2 norm below bound), else gamma.

    "Gradient Norm", Eq. 13 and supplement Eq. 3. Both print the branches the other way round; this is what
    the text says: a gradient below the bound "is weak and needs to be rescaled".

    :param factor: the paper's C (> 0); bound: its M.
    """

    factor: float = 1.0
    bound: float = 0.2
    needs_grad_norm = True

    def log_scale(self, p: Softmax, t: Tensor, grad_norm: Tensor | None) -> Tensor:
        return (grad_norm < self.bound).double() * math.log(self.factor)


# Rules by their names in --guidance, reports and plots; see `config.rule_flags` for the arguments that have flags.
RULES: dict[str, Callable[..., GuidanceRule]] = {
    "constant": ConstantRule,
    "range": RangeRule,
    "timestep": TimestepRule,
    "gradnorm": GradientNormRule,
    "entropy": EntropyRule,
}

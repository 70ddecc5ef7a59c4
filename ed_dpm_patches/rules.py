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

from .probabilities import Softmax

# exp() of more overflows float64. Only reached when H < 1e-300 and the classifier is wrong.
_LARGEST_LOG = 700.0


@dataclass(frozen=True)
class GuidanceRule(ABC):
    """Scales the plain gradient of log p_y by one factor a sample.

    :param gamma: classifier scale, the paper's gamma (>= 0).
    """

    gamma: float = 1.0

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

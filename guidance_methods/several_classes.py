"""Rules for several classes at once: a mixture of them, and classes to stay away from.

Both are gradients of log-probabilities (derived here) and cost no network evaluations beyond plain guidance's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ed_dpm_patches.rules import ConstantRule, Direction
from ed_dpm_patches.softmax import Softmax

from .log_odds import check_finite, log_p


@dataclass(frozen=True)
class MultiRule(ConstantRule):
    """v = sum_k w_k onehot(k) - (sum_k w_k) p [B, K]: the gradient of sum_k w_k log p_k, besides the label's own.

    With several classes it does not vanish where one of them is certain: it rests where p is w / sum w.

    :param classes: the same for all samples; weights: one each, finite, negative ones too (ValueError otherwise).
    :param label_weight: weight of each sample's label y, in addition; 0: the label has no say.
    """

    classes: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    label_weight: float = 1.0
    vanishes_at_certainty: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        if len(self.classes) != len(self.weights):
            raise ValueError(f"weights: found {len(self.weights)} for {len(self.classes)} classes, expected one each")
        for weight in (*self.weights, self.label_weight):
            check_finite("weights", weight)
        if not any((*self.weights, self.label_weight)):
            raise ValueError("weights: found none but 0, expected one that is not")

    def direction(self, p: Softmax, y: Tensor) -> Direction:
        _check_classes(self.classes, p)
        parts = [(self.label_weight, *p.residual(y))] if self.label_weight else []
        for number, weight in zip(self.classes, self.weights, strict=True):
            parts.append((weight, *p.residual(torch.full_like(p.top_B, number))))
        log_size_B = torch.stack([log_size for _, log_size, _ in parts]).amax(dim=0)
        u_BK = sum(weight * (log_size - log_size_B).exp()[:, None] * u for weight, log_size, u in parts)
        return log_size_B, u_BK


@dataclass(frozen=True)
class NegativeRule(ConstantRule):
    """v = the gradient of log(1 - P), P the sum of p_k over the classes to avoid; the label y has no say. [B, K].

    With c and n the softmax over the other classes and over those alone, v = P (c - n). It vanishes as P does: where
    a class that is allowed is certain.

    :param classes: to avoid, at least one and not all of them (ValueError otherwise).
    """

    classes: tuple[int, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if not self.classes:
            raise ValueError("classes: found none, expected at least one to stay away from")

    def direction(self, p: Softmax, y: Tensor) -> Direction:
        _check_classes(self.classes, p)
        avoided_K = torch.zeros(p.num_classes, dtype=torch.bool, device=p.rest_BK.device)
        avoided_K[list(self.classes)] = True
        if len(set(self.classes)) == p.num_classes:
            raise ValueError(f"classes: found all {p.num_classes}, expected one that is left")
        log_p_BK = log_p(p).clamp(min=-1e6)  # all of them -inf would have no softmax
        inside_BK, outside_BK = (log_p_BK.masked_fill(~kept, -torch.inf) for kept in (avoided_K, ~avoided_K))
        return inside_BK.logsumexp(dim=1), outside_BK.softmax(dim=1) - inside_BK.softmax(dim=1)


def _check_classes(classes: tuple[int, ...], p: Softmax) -> None:
    wrong = [number for number in classes if not 0 <= number < p.num_classes]
    if wrong:
        raise ValueError(f"classes: found {wrong[0]}, the classifier's are 0 to {p.num_classes - 1}")

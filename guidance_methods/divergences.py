"""Rules that lead the prediction p to a smoothed label q: minus the gradient of a divergence on the logits.

q = (1 - e) onehot(y) + e / K. Because q is not certain, neither becomes the prediction: beyond p = q the guidance
turns back. Derived here, in the spirit of f-divergence guidance (arXiv 2511.05844), whose formulas may differ.
With dp_j/dz_k = p_j (1[j = k] - p_k), the gradients on the logits z are the ones each class states. No network
evaluations beyond plain guidance's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ed_dpm_patches.rules import ConstantRule, Direction
from ed_dpm_patches.softmax import Softmax

from .log_odds import check_smoothing, log_p, smoothed_label


@dataclass(frozen=True)
class _SmoothedRule(ConstantRule):
    """A rule with the target q; :param smoothing: its e, 0 < e < 1 (ValueError otherwise)."""

    smoothing: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        check_smoothing(self.smoothing)


@dataclass(frozen=True)
class ForwardKLRule(_SmoothedRule):
    """v = q - p [B, K]: minus the gradient of KL(q || p) = sum_j q_j log(q_j / p_j), the smoothed cross entropy.

    Where p_y is 1 it is not 0 but q - onehot(y), away from y, of L1 norm 2 e (1 - 1/K).
    """

    vanishes_at_certainty: ClassVar[bool] = False

    def direction(self, p: Softmax, y: Tensor) -> Direction:
        q_BK = smoothed_label(p, y, self.smoothing)
        return q_BK - log_p(p).exp()


@dataclass(frozen=True)
class ReverseKLRule(_SmoothedRule):
    """v_j = -p_j (log(p_j / q_j) - KL(p || q)) [B, K]: minus the gradient of KL(p || q).

    It vanishes where any class is certain, the wrong one too, as H(p) does, so EDS's factor times v stays bounded.
    """

    def direction(self, p: Softmax, y: Tensor) -> Direction:
        return _towards_smaller(p, log_p(p) - smoothed_label(p, y, self.smoothing).log())


@dataclass(frozen=True)
class JensenShannonRule(_SmoothedRule):
    """v_j = -p_j / 2 (log(p_j / m_j) - KL(p || m)) [B, K], m = (p + q) / 2: minus the gradient of JS(p, q).

    JS = KL(p || m) / 2 + KL(q || m) / 2. It vanishes where any class is certain, as `ReverseKLRule` does.
    """

    def direction(self, p: Softmax, y: Tensor) -> Direction:
        log_p_BK, log_q_BK = log_p(p), smoothed_label(p, y, self.smoothing).log()
        log_ratio_BK = log_p_BK - torch.logaddexp(log_p_BK, log_q_BK) + math.log(2)
        log_size_B, u_BK = _towards_smaller(p, log_ratio_BK)
        return log_size_B - math.log(2), u_BK


def _towards_smaller(p: Softmax, log_ratio_BK: Tensor) -> tuple[Tensor, Tensor]:
    """-p_j (L_j - sum_k p_k L_k) for L [B, K], as (log_size [B], u [B, K]) with product exp(log_size) u.

    Near certainty both terms in the parentheses are nearly L_m, with m the most likely class. With d = L - L_m and
    p_j = r w_j / (1 + r) off m (see `Softmax`), the common factor r comes out and no difference is left:
    u_m = p_m sum_k w_k d_k / (1 + r), and off m u_j = -w_j / (1 + r) (d_j - r / (1 + r) sum_k w_k d_k).
    """
    d_BK = log_ratio_BK - log_ratio_BK.gather(1, p.top_B[:, None])
    r_B1 = p.log_r_B.exp()[:, None]
    # 0 * -inf is 0: a class that cannot be.
    weighted_BK = torch.where(p.rest_BK > 0, p.rest_BK * d_BK, 0.0)
    mean_B1 = weighted_BK.sum(dim=1, keepdim=True) / (1 + r_B1)
    u_BK = (r_B1 * p.rest_BK * mean_B1 - weighted_BK) / (1 + r_B1)
    return p.log_r_B, u_BK.scatter(1, p.top_B[:, None], mean_B1 / (1 + r_B1))

"""Softmax statistics that stay exact when the classifier is certain.

Near certainty 1 - p_y and H(p) are differences of nearly equal numbers, and exp() underflows. Everything
here is therefore expressed relative to r, the odds against the most likely class m:

    r = sum_{j != m} exp(z_j - z_m),    p_m = 1 / (1 + r),    p_j = r w_j / (1 + r),
    H = log(1 + r) + r / (1 + r) * sum_{j != m} w_j (z_m - z_j),

where w is the softmax over the other classes. All terms are positive, and only log r is ever stored, so
relative accuracy is that of float64 however far the logits are apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Softmax:
    """p = softmax(logits) for a batch, in float64. Build it with `Softmax.of`."""

    top_B: Tensor  # int64, the most likely class m
    log_r_B: Tensor  # log of the odds against it; above 0 when p_m < 1/2
    rest_BK: Tensor  # w: the distribution over the other classes, 0 at m
    entropy_over_r_B: Tensor  # H / r, finite for any logits

    @classmethod
    def of(cls, logits: Tensor) -> Softmax:
        """Return the softmax of logits [B, K] of any floating dtype, K >= 2 (ValueError otherwise)."""
        if logits.dim() != 2 or logits.shape[1] < 2:
            raise ValueError(f"logits: found shape {tuple(logits.shape)}, expected [batch, at least 2 classes]")
        z_BK = logits.detach().double()
        top_B = z_BK.argmax(dim=1)
        gap_BK = z_BK.gather(1, top_B[:, None]) - z_BK  # >= 0, and 0 at m
        others_BK = (-gap_BK).scatter(1, top_B[:, None], -math.inf)
        log_r_B = others_BK.logsumexp(dim=1)
        rest_BK = others_BK.softmax(dim=1)
        r_B = log_r_B.exp()
        # log(1 + r) / r is 1 where r underflows; 0 * inf is 0 where a logit is -inf.
        log1p_over_r_B = torch.where(r_B > 0, torch.log1p(r_B) / r_B, 1.0)
        mean_gap_B = torch.where(rest_BK > 0, rest_BK * gap_BK, 0.0).sum(dim=1)
        return cls(top_B, log_r_B, rest_BK, log1p_over_r_B + mean_gap_B / (1 + r_B))

    @property
    def num_classes(self) -> int:
        """K."""
        return self.rest_BK.shape[1]

    @property
    def log_entropy(self) -> Tensor:
        """log H(p) [B], H in nats (Eq. 9); finite where H itself would underflow."""
        return self.log_r_B + self.entropy_over_r_B.log()

    @property
    def entropy_ratio(self) -> Tensor:
        """H(p) / log K [B], 0 (certain) to 1 (uniform)."""
        return self.log_entropy.exp() / math.log(self.num_classes)

    def log_one_minus_p(self, y: Tensor) -> Tensor:
        """log(1 - p_y) [B] for labels y [B]."""
        log_size_B, u_BK = self.residual(y)
        return log_size_B + u_BK.gather(1, y[:, None])[:, 0].log()

    def residual(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """onehot(y) - p, the logits' gradient of log p_y, as (log_size [B], u [B, K]) with product
        exp(log_size) * u; u is of order 1 whatever the logits.

        ValueError when y is not [B] whole numbers. A label outside 0..K-1 fails in torch's scatter.
        """
        if y.shape != self.top_B.shape or y.is_floating_point():
            found = f"found {y.dtype} of shape {tuple(y.shape)}"
            raise ValueError(f"y: {found}, expected whole numbers of shape {tuple(self.top_B.shape)}")
        y_B1, r_B1, is_top_B = y.long()[:, None], self.log_r_B.exp()[:, None], y == self.top_B
        # y is the top class: r / (1 + r) * (onehot - w).
        right_BK = torch.zeros_like(self.rest_BK).scatter(1, y_B1, 1.0) - self.rest_BK
        # It is not: -1 / (1 + r) at m, -r w_j / (1 + r) elsewhere, and 1 - p_y as the sum of those parts.
        wrong_BK = -r_B1 * self.rest_BK.scatter(1, y_B1, 0.0)
        wrong_BK = wrong_BK.scatter(1, self.top_B[:, None], -1.0)
        wrong_BK = wrong_BK.scatter(1, y_B1, -wrong_BK.scatter(1, y_B1, 0.0).sum(dim=1, keepdim=True))
        u_BK = torch.where(is_top_B[:, None], right_BK, wrong_BK) / (1 + r_B1)
        return torch.where(is_top_B, self.log_r_B, 0.0), u_BK

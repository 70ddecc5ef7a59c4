"""EluCD's direction on the logits: two temperatures, for the label and for the sum over the classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ed_dpm_patches.rules import ConstantRule
from ed_dpm_patches.softmax import Softmax

from .log_odds import check_finite, log_odds


@dataclass(frozen=True)
class ElucdRule(ConstantRule):
    """v = t1 onehot(y) - t2 softmax(t2 z) [B, K] for logits z: the gradient of t1 z_y - log sum_k exp(t2 z_k).

    Source: Ma et al., "Elucidating the design space of classifier-guided diffusion generation", ICLR 2024, where the
    two are tau_1 and tau_2. t1 = t2 = 1 is plain guidance. With t2 < t1 it follows z_y more than the competition: it
    does not vanish where p_y is 1 (there v = (t1 - t2) onehot(y)) and its L1 norm stays below t1 + t2. No network
    evaluations beyond plain guidance's.

    :param t1: factor of the label's logit; t2: factor of all logits in the sum (finite numbers; ValueError otherwise).
    """

    t1: float = 1.0
    t2: float = 0.5
    vanishes_at_certainty: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        check_finite("t1", self.t1)
        check_finite("t2", self.t2)

    def direction(self, p: Softmax, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.t1 == self.t2 == 1:
            return p.residual(y)
        sum_BK = (self.t2 * log_odds(p)).softmax(dim=1) if self.t2 else torch.full_like(p.rest_BK, 1 / p.num_classes)
        v_BK = -self.t2 * sum_BK
        return v_BK.scatter_add(1, y.long()[:, None], torch.full_like(v_BK[:, :1], self.t1))

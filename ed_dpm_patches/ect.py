"""Entropy-constraint training of the noise-aware classifier (Eq. 11-12, Alg. 2)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def ect_terms(logits: Tensor, y: Tensor, weight: float = 0.2) -> dict[str, Tensor]:
    """Loss per sample and its parts, all [B], float32, for logits [B, K] and labels y [B].

    "ce": -log p_y. "ect": KL(p || uniform) = log K - H(p), nats, 0 (uniform) to log K. "loss":
    ce + weight * ect (Eq. 12; weight is the paper's eta). "entropy_ratio": H(p) / log K, no gradient.
    """
    log_p_BK = F.log_softmax(logits.float(), dim=-1)
    log_k = math.log(logits.shape[-1])
    ce_B = F.nll_loss(log_p_BK, y, reduction="none")
    entropy_B = -(log_p_BK.exp() * log_p_BK).sum(dim=-1)
    ect_B = log_k - entropy_B
    return {"loss": ce_B + weight * ect_B, "ce": ce_B, "ect": ect_B, "entropy_ratio": entropy_B.detach() / log_k}

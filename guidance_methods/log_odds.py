"""Logarithms of a softmax that stay exact when the classifier is certain, for rules with directions of their own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ed_dpm_patches.softmax import Softmax


def log_odds(p: Softmax) -> Tensor:
    """log(p_j / p_m) [B, K], float64, with m the most likely class: 0 at m, negative elsewhere.

    That is the logits without their largest. It is -inf where p_j is below e^-745 times the second largest.
    """
    return (p.log_r_B[:, None] + p.rest_BK.log()).scatter(1, p.top_B[:, None], 0.0)


def log_p(p: Softmax) -> Tensor:
    """log p_j [B, K], float64, at most 0; -inf as in `log_odds`."""
    return log_odds(p) - torch.log1p(p.log_r_B.exp())[:, None]


def smoothed_label(p: Softmax, y: Tensor, smoothing: float) -> Tensor:
    """q = (1 - e) onehot(y) + e / K [B, K], float64, for labels y [B] and e = `smoothing`."""
    even_BK = torch.full_like(p.rest_BK, smoothing / p.num_classes)
    return even_BK.scatter_add(1, y.long()[:, None], torch.full_like(even_BK[:, :1], 1 - smoothing))


def check_smoothing(smoothing: float) -> None:
    """ValueError unless 0 < smoothing < 1."""
    if not 0 < smoothing < 1:
        raise ValueError(f"smoothing: found {smoothing}, expected a number between 0 and 1, without both")


def check_finite(name: str, value: float) -> None:
    """ValueError unless the value is a finite number."""
    if not math.isfinite(value):
        raise ValueError(f"{name}: found {value}, expected a finite number")

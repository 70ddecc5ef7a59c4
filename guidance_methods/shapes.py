"""Values per sample in the shapes that tensors of a batch need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def one_per_sample(value: Any, x: Tensor) -> Tensor:
    """Return a number or a tensor [B] as a tensor [B] on x's device, for x [B, ...]."""
    values = torch.as_tensor(value, device=x.device)
    return values.reshape(1).expand(len(x)) if values.numel() == 1 else values


def per_sample(values_B: Tensor, like: Tensor) -> Tensor:
    """Return values [B] as [B, 1, ...] of like's rank."""
    return values_B.reshape(-1, *[1] * (like.dim() - 1))

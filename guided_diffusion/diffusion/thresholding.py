"""Dynamic thresholding of the predicted x_0 (Saharia et al. 2022, Imagen, arXiv 2205.11487, Section 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST = 2**24  # values that torch.quantile takes at once


class DynamicThreshold:
    """x_0 [B, ...] -> x_0 in [-1, 1]: each sample is clamped to [-s, s] and divided by s.

    s is the quantile of its |x_0|, at least 1: a sample whose values are in [-1, 1] up to that quantile is clamped to
    [-1, 1], which is what `clip_denoised` does to all. (diffusers' `sample_max_value`, the largest s there, is 1 unless
    it is set: such a clamp.)

    It is a `denoised_fn`; where guidance shifts x_0, samplers apply it after the guidance, see
    `samplers.guided_prediction`.

    :param quantile: above 0, up to 1; Imagen's is 0.995. ValueError for others.
    """

    of_guided = True

    def __init__(self, quantile: float):
        if not 0 < quantile <= 1:
            raise ValueError(f"quantile: found {quantile}, expected a number above 0, up to 1")
        self.quantile = quantile

    def __call__(self, x_start: Tensor) -> Tensor:
        sizes_BN = x_start.flatten(1).abs().to(torch.promote_types(x_start.dtype, torch.float32))
        rows = max(1, _LARGEST // max(1, sizes_BN.shape[1]))
        s_B = torch.cat([some.quantile(self.quantile, dim=1) for some in sizes_BN.split(rows)]).clamp(min=1)
        s = s_B.to(x_start.dtype).reshape(-1, *[1] * (x_start.dim() - 1))
        return torch.minimum(torch.maximum(x_start, -s), s) / s

"""What the guidance scale did during a run, in constant memory and without waiting for the device."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

# Scales are counted in bins of equal width in log10: 1e-8 to 1e40, 0.5 % wide.
_LOWEST, _HIGHEST, _BINS = -8.0, 40.0, 48 * 460


class ScaleReport:
    """Distribution of the scale s over all samples and steps seen, and how many were capped or not finite.

    Quantiles come from a histogram with 0.5 % wide bins; the maximum is exact.
    """

    def __init__(self):
        self._counts: Tensor | None = None  # int64 [bins]
        self._extras: Tensor | None = None  # float64: maximum, evaluations, capped, non-finite

    def update(self, scale_B: Tensor, *, capped: Tensor, nonfinite: Tensor) -> None:
        """Add one batch: scales [B] (float64) and boolean flags [B]."""
        if self._counts is None:
            self._counts = torch.zeros(_BINS, dtype=torch.int64, device=scale_B.device)
            self._extras = torch.zeros(4, dtype=torch.float64, device=scale_B.device)
        usable_B = scale_B.isfinite() & ~nonfinite
        position_B = (scale_B.clamp(10**_LOWEST, 10**_HIGHEST).log10() - _LOWEST) / (_HIGHEST - _LOWEST) * _BINS
        bins_B = position_B.nan_to_num(0.0).long().clamp(0, _BINS - 1)
        self._counts.index_add_(0, bins_B, usable_B.long())
        self._extras[0] = torch.maximum(self._extras[0], torch.where(usable_B, scale_B, 0.0).max())
        self._extras[1] += scale_B.numel()
        self._extras[2] += capped.sum()
        self._extras[3] += (~usable_B).sum()

    def summary(self) -> dict[str, float]:
        """Over all ranks (a collective): median, p999, maximum, evaluations, capped, nonfinite."""
        counts = torch.zeros(_BINS, dtype=torch.int64) if self._counts is None else self._counts.cpu()
        extras = torch.zeros(4, dtype=torch.float64) if self._extras is None else self._extras.cpu()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            everyone: list = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, (counts, extras))
            counts = torch.stack([c for c, _ in everyone]).sum(dim=0)
            all_extras = torch.stack([e for _, e in everyone])
            extras = torch.cat([all_extras[:, :1].amax(dim=0), all_extras[:, 1:].sum(dim=0)])
        maximum, evaluations, capped, nonfinite = extras.tolist()
        return {
            "median": min(_quantile(counts, 0.5), maximum),
            "p999": min(_quantile(counts, 0.999), maximum),
            "maximum": maximum,
            "evaluations": int(evaluations),
            "capped": int(capped),
            "nonfinite": int(nonfinite),
        }


def summary_line(summary: dict[str, float]) -> str:
    """The line that ends every guided run."""
    return (
        f"guidance scale: median {summary['median']:.4g}, 99.9 % {summary['p999']:.4g}, "
        f"maximum {summary['maximum']:.4g}; of {summary['evaluations']:,} evaluations "
        f"{summary['capped']:,} capped, {summary['nonfinite']:,} non-finite"
    )


def _quantile(counts: Tensor, q: float) -> float:
    """The value below which a share q of the histogram lies (middle of its bin, in log space)."""
    total = int(counts.sum())
    if total == 0:
        return 0.0
    index = int(torch.searchsorted(counts.cumsum(0), q * total))
    return 10 ** (_LOWEST + (min(index, _BINS - 1) + 0.5) * (_HIGHEST - _LOWEST) / _BINS)

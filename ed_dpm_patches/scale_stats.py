"""Statistics of the guidance scale during a run, in constant memory and without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Scales are counted in bins of equal width in log10: 1e-8 to 1e40, 0.5 % wide.
_LOWEST, _HIGHEST, _BINS = -8.0, 40.0, 48 * 460

# Histogram, int64 [bins]; -minimum and maximum, float64 [2]; evaluations, capped and non-finite, int64 [3].
Counts = tuple[Tensor, Tensor, Tensor]
_TOTALS = ("evaluations", "capped", "nonfinite")


class ScaleReport:
    """Distribution of the scale s over all samples and steps, and how many were capped or not finite.

    Quantiles come from a histogram with 0.5 % wide bins, kept between the exact minimum and maximum. In a sampling run
    it is the run's tally (`tallies.Tally`), which adds up over ranks and interruptions.
    """

    name = "guidance_scale"

    def __init__(self):
        self._counts: Counts | None = None

    def update(self, scale_B: Tensor, *, capped: Tensor, nonfinite: Tensor, active: Tensor) -> None:
        """Add one batch: scales [B] (float64) and boolean flags [B]. What is not `active` does not count."""
        histogram, extremes, totals = self._counts or (part.to(scale_B.device) for part in _nothing())
        usable_B = scale_B.isfinite() & ~nonfinite & active
        position_B = (scale_B.clamp(10**_LOWEST, 10**_HIGHEST).log10() - _LOWEST) / (_HIGHEST - _LOWEST) * _BINS
        bins_B = position_B.nan_to_num(0.0).long().clamp(0, _BINS - 1)
        histogram.index_add_(0, bins_B, usable_B.long())
        extremes_B2 = torch.where(usable_B[:, None], torch.stack([-scale_B, scale_B], dim=1), -torch.inf)
        totals = totals + torch.stack([active, capped, active & ~usable_B], dim=1).sum(dim=0)
        self._counts = histogram, torch.maximum(extremes, extremes_B2.amax(dim=0)), totals

    def summary(self) -> dict[str, Any]:
        """Return median, p999, maximum, evaluations, capped and nonfinite of this process, as `take` does."""
        return _as_json(*(part.cpu() for part in self._counts or _nothing()))

    def take(self) -> dict[str, Any]:
        """Return what this process has counted since the last call, as JSON values: a summary and the histogram."""
        taken, self._counts = self.summary(), None
        return taken

    def sum(self, taken: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Add up what `take` and `sum` returned."""
        parts = zip(_nothing(), *map(_of_json, taken), strict=True)
        histogram, extremes, totals = (torch.stack(same) for same in parts)
        return _as_json(histogram.sum(dim=0), extremes.amax(dim=0), totals.sum(dim=0))


def summary_line(summary: dict[str, float]) -> str:
    """Return the line that ends every guided run."""
    return (
        f"guidance scale: median {summary['median']:.4g}, 99.9 % {summary['p999']:.4g}, "
        f"maximum {summary['maximum']:.4g}; of {summary['evaluations']:,} evaluations "
        f"{summary['capped']:,} capped, {summary['nonfinite']:,} non-finite"
    )


def _as_json(histogram: Tensor, extremes: Tensor, totals: Tensor) -> dict[str, Any]:
    """The summary, and the histogram's bins that are not empty by the logarithm (base 10) of their lower ends."""
    minimum, maximum = (extremes * torch.tensor([-1.0, 1.0])).tolist()
    median, p999 = (min(max(_quantile(histogram, q), minimum), maximum) for q in (0.5, 0.999))
    bins = histogram.nonzero()[:, 0].tolist()
    counted = {f"{_LOWEST + bin * (_HIGHEST - _LOWEST) / _BINS:.6f}": int(histogram[bin]) for bin in bins}
    summary = {"median": median, "p999": p999, "maximum": maximum, **dict(zip(_TOTALS, totals.tolist(), strict=True))}
    return summary | {"minimum": minimum if math.isfinite(minimum) else None, "histogram": counted}


def _of_json(taken: Mapping[str, Any]) -> Counts:
    histogram, extremes, totals = _nothing()
    for lower_end, count in taken["histogram"].items():
        histogram[round((float(lower_end) - _LOWEST) / (_HIGHEST - _LOWEST) * _BINS)] = count
    if taken["minimum"] is not None:
        extremes[0] = -taken["minimum"]
    extremes[1] = taken["maximum"]
    totals[:] = torch.tensor([taken[name] for name in _TOTALS])
    return histogram, extremes, totals


def _nothing() -> Counts:
    extremes = torch.tensor([-torch.inf, 0.0], dtype=torch.float64)
    return torch.zeros(_BINS, dtype=torch.int64), extremes, torch.zeros(3, dtype=torch.int64)


def _quantile(histogram: Tensor, q: float) -> float:
    """Return the value below which a share q of the histogram lies (middle of its bin, in log space)."""
    index = int(torch.searchsorted(histogram.cumsum(0), q * int(histogram.sum())))
    return 10 ** (_LOWEST + (min(index, _BINS - 1) + 0.5) * (_HIGHEST - _LOWEST) / _BINS)

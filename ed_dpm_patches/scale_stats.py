"""What the guidance scale did during a run, in constant memory and without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Scales are counted in bins of equal width in log10: 1e-8 to 1e40, 0.5 % wide.
_LOWEST, _HIGHEST, _BINS = -8.0, 40.0, 48 * 460


# Histogram, int64 [bins]; -minimum and maximum, float64 [2]; evaluations, capped and non-finite, int64 [3].
Seen = tuple[Tensor, Tensor, Tensor]


class ScaleReport:
    """Distribution of the scale s over all samples and steps seen, and how many were capped or not finite.

    Quantiles come from a histogram with 0.5 % wide bins, kept between the exact minimum and maximum. In a sampling run
    it is the run's tally (`tallies.Tally`), which adds up over interruptions.
    """

    name = "guidance_scale"

    def __init__(self):
        self._seen: Seen | None = None

    def update(self, scale_B: Tensor, *, capped: Tensor, nonfinite: Tensor, active: Tensor | None = None) -> None:
        """Add one batch: scales [B] (float64) and boolean flags [B]. What is not `active` does not count."""
        counts, extremes, totals = self._seen or (part.to(scale_B.device) for part in _nothing_seen())
        active_B = torch.ones_like(nonfinite) if active is None else active
        usable_B = scale_B.isfinite() & ~nonfinite & active_B
        position_B = (scale_B.clamp(10**_LOWEST, 10**_HIGHEST).log10() - _LOWEST) / (_HIGHEST - _LOWEST) * _BINS
        bins_B = position_B.nan_to_num(0.0).long().clamp(0, _BINS - 1)
        counts.index_add_(0, bins_B, usable_B.long())
        seen_B2 = torch.where(usable_B[:, None], torch.stack([-scale_B, scale_B], dim=1), -torch.inf)
        totals = totals + torch.stack([active_B, capped, active_B & ~usable_B], dim=1).sum(dim=0)
        self._seen = counts, torch.maximum(extremes, seen_B2.amax(dim=0)), totals

    def summary(self) -> dict[str, float]:
        """Over all ranks (a collective): median, p999, maximum, evaluations, capped, nonfinite."""
        everyone = [self._on_host()]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            everyone = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, self._on_host())
        return _summary(*_together(everyone))

    def take(self) -> dict[str, Any]:
        """Return what this process has seen since the last call, as JSON values: a summary and the histogram."""
        taken, self._seen = self._on_host(), None
        return _as_json(*taken)

    def sum(self, taken: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Add up what `take` and `sum` returned."""
        return _as_json(*_together([_nothing_seen(), *map(_of_json, taken)]))

    def _on_host(self) -> Seen:
        return tuple(part.cpu() for part in self._seen or _nothing_seen())


def summary_line(summary: dict[str, float]) -> str:
    """The line that ends every guided run."""
    return (
        f"guidance scale: median {summary['median']:.4g}, 99.9 % {summary['p999']:.4g}, "
        f"maximum {summary['maximum']:.4g}; of {summary['evaluations']:,} evaluations "
        f"{summary['capped']:,} capped, {summary['nonfinite']:,} non-finite"
    )


def _together(parts: Sequence[Seen]) -> Seen:
    counts, extremes, totals = (torch.stack(same) for same in zip(*parts, strict=True))
    return counts.sum(dim=0), extremes.amax(dim=0), totals.sum(dim=0)


def _summary(counts: Tensor, extremes: Tensor, totals: Tensor) -> dict[str, float]:
    low, high = (extremes * torch.tensor([-1.0, 1.0])).tolist()
    median, p999 = (min(max(_quantile(counts, q), low), high) for q in (0.5, 0.999))
    named = dict(zip(("evaluations", "capped", "nonfinite"), totals.tolist(), strict=True))
    return {"median": median, "p999": p999, "maximum": high} | named


def _as_json(counts: Tensor, extremes: Tensor, totals: Tensor) -> dict[str, Any]:
    """The summary, and the histogram's bins that are not empty by the logarithm (base 10) of their lower ends."""
    bins = counts.nonzero()[:, 0].tolist()
    histogram = {f"{_LOWEST + bin * (_HIGHEST - _LOWEST) / _BINS:.6f}": int(counts[bin]) for bin in bins}
    minimum = -float(extremes[0])
    more = {"minimum": minimum if math.isfinite(minimum) else None, "histogram": histogram}
    return _summary(counts, extremes, totals) | more


def _of_json(taken: Mapping[str, Any]) -> Seen:
    counts, extremes, totals = _nothing_seen()
    for lower_end, count in taken["histogram"].items():
        counts[round((float(lower_end) - _LOWEST) / (_HIGHEST - _LOWEST) * _BINS)] = count
    if taken["minimum"] is not None:
        extremes[0] = -taken["minimum"]
    extremes[1] = taken["maximum"]
    totals[:] = torch.tensor([taken[name] for name in ("evaluations", "capped", "nonfinite")])
    return counts, extremes, totals


def _nothing_seen() -> Seen:
    extremes = torch.tensor([-torch.inf, 0.0], dtype=torch.float64)
    return torch.zeros(_BINS, dtype=torch.int64), extremes, torch.zeros(3, dtype=torch.int64)


def _quantile(counts: Tensor, q: float) -> float:
    """The value below which a share q of the histogram lies (middle of its bin, in log space)."""
    index = int(torch.searchsorted(counts.cumsum(0), q * int(counts.sum())))
    return 10 ** (_LOWEST + (min(index, _BINS - 1) + 0.5) * (_HIGHEST - _LOWEST) / _BINS)

"""Values of validation that are no means over the images, such as the calibration error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from guided_diffusion.runs import logger

_BINS = 15

Statistic = Callable[[Mapping[str, Tensor]], float]


def calibration_error(values: Mapping[str, Tensor]) -> float:
    """Return the expected calibration error from "confidence", the largest probability, and "acc@1", each [N].

    In 15 bins of equal width: the mean over the images of the distance between their bin's accuracy and confidence.
    Chance adds up to sqrt(15 / N) / 2 to it.
    """
    confidence_N, hits_N = values["confidence"].double(), values["acc@1"].double()
    bin_N = (confidence_N * _BINS).ceil().long().clamp(1, _BINS) - 1
    excess_bins = torch.zeros(_BINS, dtype=torch.float64).index_add_(0, bin_N, confidence_N - hits_N)
    return float(excess_bins.abs().sum() / len(bin_N))


class ValidationLog:
    """Logs statistics of all validation images since the last entry of the log, also per quartile of the noise level.

    :param statistics: by name, functions of per-image values by name, [N] each, on the CPU. One that is not finite is
        left out of the log.
    """

    def __init__(self, statistics: Mapping[str, Statistic], num_timesteps: int):
        self.statistics, self.num_timesteps = statistics, num_timesteps
        self._parts: list[dict[str, Tensor]] = []

    def add(self, t: Tensor, values: Mapping[str, Tensor]) -> None:
        """Note the values [B] of a batch at timesteps t [B]."""
        quartiles = {"quartile": 4 * t // self.num_timesteps}
        self._parts.append({name: value.detach().cpu() for name, value in (quartiles | {**values}).items()})

    def log(self) -> None:
        """Log val_NAME and val_NAME_q0 to _q3 of what was noted, and forget it."""
        if not self._parts:
            return
        whole = {name: torch.cat([part[name] for part in self._parts]) for name in self._parts[0]}
        quartile_N = whole.pop("quartile")
        self._parts = []
        groups = {f"_q{quartile}": quartile_N == quartile for quartile in quartile_N.unique().tolist()}
        groups[""] = slice(None)
        for suffix, group in groups.items():
            values = {name: value[group] for name, value in whole.items()}
            for name, statistic in self.statistics.items():
                if math.isfinite(found := statistic(values)):
                    logger.logkv(f"val_{name}{suffix}", found)

"""Several guidances at once, each with a weight and an interval of timesteps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ed_dpm_patches.guidance import one_per_sample
from guided_diffusion.diffusion.process import per_sample

from .wrapped import ask, reset

Weight = float | Callable[[Tensor], Tensor]
Interval = tuple[float, float]
Term = tuple[Callable[..., Tensor], Weight] | tuple[Callable[..., Tensor], Weight, Interval | None]


class Sum:
    """sum_i w_i(t) G_i(x_t, t), as a cond_fn: two classifiers, a classifier and a discriminator, a push and a pull.

    :param terms: (guidance, weight) or (guidance, weight, interval). A weight is a finite number or a function of
        t [B] -> [B]; an interval (lowest, highest), ends included, on the original timesteps: outside it the term is 0,
        and its guidance is not called where no sample is inside (to know that, the host waits for t). None: everywhere.
    :raises ValueError: no terms, an interval whose ends are the wrong way round.

    Costs the network evaluations of its terms. A single classifier's rule for several classes needs one alone:
    `MultiRule`.
    """

    def __init__(self, terms: Sequence[Term]):
        self.terms = [(*term, None)[:3] for term in terms]
        self._asked: list[Callable[..., Tensor]] = []
        if not self.terms:
            raise ValueError("terms: found none, expected at least one (guidance, weight)")
        for _, weight, interval in self.terms:
            if not callable(weight) and not math.isfinite(weight):
                raise ValueError(f"weight: found {weight}, expected a finite number or a function of t")
            if interval is not None and not interval[0] <= interval[1]:
                raise ValueError(f"interval: found {tuple(interval)}, expected (lowest, highest)")

    @property
    def wants_x0(self) -> bool:
        return any(getattr(guidance, "wants_x0", False) for guidance, _, _ in self.terms)

    @property
    def wants_variance(self) -> bool:
        return any(getattr(guidance, "wants_variance", False) for guidance, _, _ in self.terms)

    def __call__(self, x: Tensor, t: Tensor, **kwargs: object) -> Tensor:
        """Return the sum, shaped and typed like x; every term is called with the same arguments."""
        t_B = one_per_sample(t, x)
        self._asked = []
        total = torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        for guidance, weight, interval in self.terms:
            inside_B = torch.ones_like(t_B, dtype=torch.bool)
            if interval is not None:
                inside_B = (t_B >= interval[0]) & (t_B <= interval[1])
                if not bool(inside_B.any()):
                    continue
            weight_B = torch.as_tensor(weight(t_B) if callable(weight) else weight, device=x.device).expand(len(x))
            weight_B = torch.where(inside_B, weight_B.double(), 0.0).to(total.dtype)
            self._asked.append(guidance)
            total = total + per_sample(weight_B, x) * ask(guidance, x, t, kwargs)
        return total.to(x.dtype)

    @property
    def peaks(self) -> dict[str, Tensor]:
        """What the nonfinite detector looks at, the largest of all terms that were asked in the last call."""
        found: dict[str, Tensor] = {}
        for guidance in self._asked:
            for name, values in getattr(guidance, "peaks", {}).items():
                found[name] = torch.maximum(found[name], values) if name in found else values
        return found

    def reset(self) -> None:
        """Let every term forget the batch."""
        for guidance, _, _ in self.terms:
            reset(guidance)

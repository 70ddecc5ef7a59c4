"""Guidance at every K-th step only: fewer network evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .wrapped import Wrapped

REUSE, NONE = SKIPPED = ("reuse", "none")


class GuidanceEvery(Wrapped):
    """A guidance that is evaluated at steps 0, K, 2K, ... of each batch: 1/K of the evaluations.

    :param guidance: the guidance.
    :param every: K >= 1; 1 changes nothing.
    :param skipped: what the steps between get: "reuse", the guidance of the last evaluation, or "none", zeros.
    ValueError for other values.

    Steps are counted by calls. A batch begins where the largest t is above that of the call before, or with another
    shape, or after `reset`; to know it, the host waits for t. In skipped steps there are no logits, and an observer of
    the guidance is not called: a trace, which wants one observation a step, cannot be recorded.
    """

    def __init__(self, guidance: Callable[..., Tensor], every: int, skipped: str = REUSE):
        super().__init__(guidance)
        if every < 1:
            raise ValueError(f"every: found {every}, expected a whole number of at least 1")
        if skipped not in SKIPPED:
            raise ValueError(f"skipped: found {skipped!r}, expected {' or '.join(SKIPPED)}")
        self.every, self.skipped = every, skipped
        self._forget()

    def __call__(self, x: Tensor, t: Tensor, **kwargs: object) -> Tensor:
        """Return the guidance, shaped and typed like x [B, ...]; other arguments are the inner guidance's."""
        latest = float(torch.as_tensor(t).max())
        if self._last is None or latest > self._t or self._last.shape != x.shape:
            self._forget()
        self._t, asks = latest, self._steps % self.every == 0
        self._steps += 1
        if asks:
            self._last = self.guidance(x, t, **kwargs)
        self._asked = asks
        return self._last if asks or self.skipped == REUSE else torch.zeros_like(x)

    @property
    def logits(self) -> Tensor | None:
        return super().logits if self._asked else None

    @property
    def scale(self) -> Tensor | None:
        return super().scale if self._asked else None

    @property
    def peaks(self) -> Mapping[str, Tensor]:
        return super().peaks if self._asked else {}

    def reset(self) -> None:
        """Forget the batch: the next call is the first of another one."""
        super().reset()
        self._forget()

    def _forget(self) -> None:
        self._steps, self._t, self._last, self._asked = 0, 0.0, None, False

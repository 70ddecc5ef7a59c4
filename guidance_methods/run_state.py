"""What a guidance remembers of each sample over the steps of one sampling run."""

from __future__ import annotations

import torch
from torch import Tensor

from guided_diffusion.diffusion.process import per_sample


class RunState:
    """Tensors by name, 0 at the first step of every sample's run.

    t falls during a run, so a sample begins anew where its t is above that of the call before, and a batch of another
    shape does as a whole. A call at the same t as the one before is the same step again and begins where that began:
    the chain rule through a model evaluates it twice a step. Nothing here waits for the device.
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._tensors: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}  # as they were when the last step began
        self._t: Tensor | None = None
        self._like: tuple | None = None

    def begin_step(self, x: Tensor, t: Tensor) -> None:
        """Begin the step of x [B, ...] at t [B]: forget the samples that begin anew."""
        like = (x.shape, x.device)
        if like != self._like:
            self.reset()
        elif self._t is not None:
            fresh_B, again_B = t > self._t, t == self._t
            for name, values in self._tensors.items():
                before = self._before.get(name, torch.zeros_like(values))
                kept = torch.where(per_sample(again_B, values), before, values)
                self._tensors[name] = kept.masked_fill(per_sample(fresh_B, kept), 0)
            self._before = dict(self._tensors)
        self._like, self._t = like, t

    def get(self, name: str, like: Tensor) -> Tensor:
        """Return the tensor of this name; zeros shaped like `like` if there is none."""
        return self._tensors[name] if name in self._tensors else torch.zeros_like(like)

    def keep(self, active: Tensor, **tensors: Tensor) -> None:
        """Remember tensors [B, ...], for the samples that are `active` [B]; the others keep what they had."""
        for name, new in tensors.items():
            new = new.detach()
            acts = per_sample(active, new)
            self._tensors[name] = torch.where(acts, new, self.get(name, new))

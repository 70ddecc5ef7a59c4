"""A reference for the feature cache: the whole network is computed at every step, and kept tensors are put into it."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from guided_diffusion.models.feature_cache import whole_steps


class NaiveCache:
    """model(x_t, t, ...) of a `Frozen` UNet: where the cache counts, the input of output block -D is replaced by hooks.

    :param whole: steps at which nothing is replaced; a step is a t that was not seen before in the run.
    """

    def __init__(self, model: Callable[..., Tensor], whole: Collection[int], depth: int = 1):
        self.model, self.whole, self.seen = model, whole, []
        model.network.input_blocks[depth - 1].register_forward_hook(self._note_width)
        model.network.output_blocks[-depth].register_forward_pre_hook(self._replace)

    @classmethod
    def like(cls, model: Callable[..., Tensor], num_steps: int, every: int, depth: int, schedule: str) -> NaiveCache:
        """Return the reference of a `FeatureCache` with these arguments."""
        return cls(model, whole_steps(num_steps, every, schedule), depth)

    def __call__(self, x: Tensor, t: Tensor, **kwargs) -> Tensor:
        now = int(t[0])
        if now in self.seen[:-1]:  # another run
            self.seen = []
        if now not in self.seen:
            self.seen.append(now)
        self.replaces = len(self.seen) - 1 not in self.whole and not (torch.is_grad_enabled() and x.requires_grad)
        return self.model(x, t, **kwargs)

    def _note_width(self, block, args: tuple, output: Tensor) -> None:
        self.skip_width = output.shape[1]

    def _replace(self, block, args: tuple) -> tuple:
        both, emb = args
        deep, skip = both[:, : -self.skip_width], both[:, -self.skip_width :]
        if self.replaces:
            return torch.cat([self.kept, skip], dim=1), emb
        self.kept = deep.detach().clone()
        return args

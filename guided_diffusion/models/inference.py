"""A trained network made ready for many evaluations: frozen, in its fastest form, compiled if wanted."""

from __future__ import annotations

import torch
from torch import nn

from guided_diffusion.models.compiling import TOLERANCE, TOLERANCE_AUTOCAST, Compiled
from guided_diffusion.models.layers import to_fast_layout
from guided_diffusion.models.mixed_precision import LowPrecision
from guided_diffusion.models.unet import BLOCKS


class Frozen(LowPrecision):
    """A network for evaluation: `Frozen(network)(x, t, ...)` is network(x, t, ...) up to rounding.

    The network itself is changed: evaluation mode, no gradients for its parameters (that for x is kept), weights in the
    fastest layout (`layers.to_fast_layout`), and in `dtype` where autocast would cast them at every call.

    :param dtype: of autocast, see `LowPrecision`; None: float32.
    :param compile: compile for the shape of the first input, see `Compiled`.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None = None, compile: bool = False):
        super().__init__(to_fast_layout(network.requires_grad_(False)), dtype)
        if dtype is not None:
            _cast_once(network, dtype)
        self.eval()
        if compile:
            tolerance = TOLERANCE if dtype is None else TOLERANCE_AUTOCAST
            self.forward = Compiled(LowPrecision(network, dtype).eval(), type(network).__name__, tolerance)


def _cast_once(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights of the blocks, which run under autocast: it remembers its casts of trained weights only."""
    for name in BLOCKS:
        for module in getattr(network, name, nn.Module()).modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
                module.to(dtype)

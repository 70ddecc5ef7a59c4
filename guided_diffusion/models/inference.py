"""A trained network made ready for many evaluations: frozen, in its fastest form, compiled if wanted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guided_diffusion.models.compiling import TOLERANCE, TOLERANCE_AUTOCAST, Compiled
from guided_diffusion.models.layers import to_fast_layout
from guided_diffusion.models.mixed_precision import LowPrecision


class Frozen(nn.Module):
    """A network for evaluation: `Frozen(network)(x, t, ...)` is network(x, t, ...) up to rounding.

    The network itself is changed: evaluation mode, no gradients for its parameters (the gradient for x stays),
    weights in the fastest layout (`nn.to_fast_layout`), and in `dtype` where autocast would cast them at every call.
    Callers see contiguous tensors: torch.randn_like draws other numbers, for the same seed, on any other layout.

    :param dtype: of autocast, see `amp.LowPrecision`; None: float32.
    :param compile: compile for the shape of the first input, see `compiling.Compiled`.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None = None, compile: bool = False):
        super().__init__()
        to_fast_layout(network.requires_grad_(False))
        if dtype is not None:
            _cast_once(network, dtype)
        self.network = LowPrecision(network, dtype)
        self.eval()
        tolerance = TOLERANCE if dtype is None else TOLERANCE_AUTOCAST
        self._compiled = Compiled(self.network, type(network).__name__, tolerance) if compile else None

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """As the network's; `x` is x_t [B, ...]."""
        return (self._compiled or self.network)(x, *args, **kwargs).contiguous()


def _cast_once(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights of the blocks, which run under autocast; it remembers its casts of trained weights only."""
    for name in ("input_blocks", "middle_block", "output_blocks"):
        for module in getattr(network, name, nn.Module()).modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
                module.to(dtype)

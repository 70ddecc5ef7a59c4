"""A trained network made ready for many evaluations: frozen, in its fastest memory layout, compiled if wanted."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import logger
from .amp import LowPrecision
from .errors import first_line
from .nn import to_fast_layout


class Frozen(nn.Module):
    """A network for evaluation: `Frozen(network)(x, t, ...)` is network(x, t, ...) up to rounding.

    The network itself is changed: evaluation mode, no gradients for its parameters (the gradient for x stays),
    weights in the fastest layout (`nn.to_fast_layout`). Callers see contiguous tensors: torch.randn_like draws other
    numbers, for the same seed, on any other layout.

    :param dtype: of autocast, see `amp.LowPrecision`; None: float32.
    :param compile: compile for the shape of the first input. Inputs of other shapes (the last, smaller batch) do
        without, and so does everything, after one warning, where compiling fails.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None = None, compile: bool = False):
        super().__init__()
        to_fast_layout(network.requires_grad_(False))
        self.network = LowPrecision(network, dtype)
        self.eval()
        self._compile = compile
        self._compiled: Callable[..., Tensor] | None = None
        self._compiled_for: tuple | None = None

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """As the network's; `x` is x_t [B, ...]."""
        if self._compile:
            self._compile = False
            self._compiled = _compiled(self.network, x, args, kwargs)
            self._compiled_for = _kind(x)
        suits = self._compiled is not None and self._compiled_for == _kind(x)
        return (self._compiled if suits else self.network)(x, *args, **kwargs).contiguous()


def _kind(x: Tensor) -> tuple:
    return x.shape, x.dtype, x.device, x.requires_grad


def _compiled(network: nn.Module, x: Tensor, args: tuple, kwargs: dict) -> Callable[..., Tensor] | None:
    """The network compiled for inputs like these, forward and backward; None, with a warning, where that fails."""
    # TorchInductor keeps what it made in a folder of its own, from which later runs take it.
    compiled = torch.compile(network, dynamic=False)
    name = type(network.network).__name__
    try:
        first = _seconds(compiled, x, args, kwargs)
    except Exception as error:  # any: a missing compiler, an unsupported machine, torch's own errors
        reason = first_line(error)
        logger.warn(f"--compile: {name} stays as it is, compiling failed ({reason})")
        return None
    saved = _seconds(network, x, args, kwargs) - _seconds(compiled, x, args, kwargs)
    pays = f"pays after {first / saved:,.0f} steps" if saved > 0 else "saves nothing here"
    logger.log(f"compiled {name} in {first:.0f} s: {pays}")
    return compiled


def _seconds(network: Callable[..., Tensor], x: Tensor, args: tuple, kwargs: dict) -> float:
    """Wall time of one evaluation, with the gradient for x where x wants one."""
    start = time.perf_counter()
    x = x.detach().requires_grad_(x.requires_grad)
    output = network(x, *args, **kwargs)
    if x.requires_grad:
        (output,) = torch.autograd.grad(output.sum(), x)
    if output.device.type == "cuda":
        torch.cuda.synchronize(output.device)
    return time.perf_counter() - start

"""Compiling a network, for one shape of input or for training, with a check that it still computes the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from guided_diffusion.errors import first_line
from guided_diffusion.runs import logger

# Largest difference from the network uncompiled, over its largest output: float32, and autocast, which rounds
# elsewhere between fused operations.
TOLERANCE, TOLERANCE_AUTOCAST = 1e-3, 5e-2


class Compiled:
    """A network that compiles itself at its first call, for inputs like those.

    Inputs of other shapes (the last, smaller batch) go through the network uncompiled, and so do all, after one
    warning, where compiling fails or changes the numbers. On CUDA the calls replay CUDA graphs, in which a kernel's
    launch costs next to nothing; outputs are copied out of the graph's memory, gradients lie there until the next call.

    :param tolerance: largest relative difference that counts as the same numbers.
    """

    def __init__(self, network: nn.Module, name: str, tolerance: float):
        self.network, self.name, self.tolerance = network, name, tolerance
        self._compiled: Callable[..., Tensor] | None = None
        self._made_for: tuple | None = None

    def __call__(self, x: Tensor, *args, **kwargs) -> Tensor:
        if self._made_for is None:
            self._made_for = _kind(x)
            self._compile(x, args, kwargs)
        if self._compiled is None or self._made_for != _kind(x):
            return self.network(x, *args, **kwargs)
        return self._run(x, *args, **kwargs)

    def _run(self, x: Tensor, *args, **kwargs) -> Tensor:
        if not _replays_graphs(x):
            return self._compiled(x, *args, **kwargs)
        if not x.requires_grad:  # between a forward pass and its backward pass no new step may begin
            torch.compiler.cudagraph_mark_step_begin()
        return self._compiled(x, *args, **kwargs).clone()

    def _compile(self, x: Tensor, args: tuple, kwargs: dict) -> None:
        """Compile the network, forward and backward; where that fails, a warning says so."""
        # TorchInductor keeps what it made in a folder of its own, from which later runs take it.
        mode = "reduce-overhead" if _replays_graphs(x) else None
        self._compiled = torch.compile(self.network, dynamic=False, mode=mode)
        seconds: list[float] = []

        def evaluate(network: Callable[..., Tensor], x: Tensor) -> list[Tensor]:
            start = time.perf_counter()
            results = _output_and_gradient(network, x, args, kwargs)
            seconds.append(time.perf_counter() - start)
            return results

        def trial() -> list[Tensor]:
            evaluate(self._run, x)
            evaluate(self._run, x)  # records the CUDA graph
            return evaluate(self._run, x / 2)  # another input than the graph was recorded with

        if not _agree(trial, lambda: evaluate(self.network, x / 2), self.name, self.tolerance):
            self._compiled = None
            return
        compiling, recording, fast, slow = seconds
        saved = slow - fast
        pays = f"pays after {(compiling + recording) / saved:,.0f} steps" if saved > 0 else "saves nothing here"
        logger.log(f"compiled {self.name} in {compiling + recording:.0f} s: {pays}")


def _replays_graphs(x: Tensor) -> bool:
    return x.device.type == "cuda"


def _kind(x: Tensor) -> tuple:
    return x.shape, x.dtype, x.device, x.requires_grad


def _output_and_gradient(network: Callable[..., Tensor], x: Tensor, args: tuple, kwargs: dict) -> list[Tensor]:
    """Return [output], or [output, gradient] where x wants a gradient, once they are there."""
    x = x.detach().requires_grad_(x.requires_grad)
    output = network(x, *args, **kwargs)
    results = [output.detach(), *(torch.autograd.grad(output.sum(), x) if x.requires_grad else ())]
    if output.device.type == "cuda":
        torch.cuda.synchronize(output.device)
    return [result.clone() for result in results]


def _agree(
    trial: Callable[[], list[Tensor]], reference: Callable[[], list[Tensor]] | None, name: str, tolerance: float
) -> bool:
    """Whether a compiled network runs and gives the reference's [output, gradient], if any; a warning says why not."""
    try:
        found = trial()
    except Exception as error:  # any: a missing compiler, an unsupported machine, torch's own errors
        reason = f"compiling failed ({first_line(error)})"
    else:
        expected = reference() if reference is not None else found
        differences = dict(zip(("output", "gradient"), map(_difference, found, expected), strict=False))
        parts = " and ".join(f"{difference:.1e} of its largest {part}" for part, difference in differences.items())
        same = all(difference <= tolerance for difference in differences.values())
        reason = "" if same else f"compiled it differs by {parts}, expected at most {tolerance:.0e}"
    if reason:
        logger.warning(f"--compile: {name} is kept as it is, {reason}")
    return not reason


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest magnitude; 0 where both are 0."""
    scale = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((found - expected).abs().max() / scale)


class CompiledForTraining(nn.Module):
    """A network that is compiled at its first call with gradients; without gradients it runs uncompiled.

    It is kept uncompiled, after one warning, where compiling fails or changes output or gradients.

    :param tolerance: as for `Compiled`; not applied where dropout makes every pass another one.
    """

    def __init__(self, network: nn.Module, name: str, tolerance: float):
        super().__init__()
        self.network, self.name, self.tolerance = network, name, tolerance
        self._compiled: Callable[..., Tensor] | None = None

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """Return the network's output for x_t [B, ...]."""
        if not torch.is_grad_enabled():
            return self.network(x, *args, **kwargs)
        if self._compiled is None:
            # The trial draws no random numbers of the training's.
            with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
                self._compiled = self._compile(x, args, kwargs)
        return self._compiled(x, *args, **kwargs)

    def _compile(self, x: Tensor, args: tuple, kwargs: dict) -> Callable[..., Tensor]:
        start = time.perf_counter()
        compiled = torch.compile(self.network, dynamic=False)
        drops = any(isinstance(module, nn.Dropout) and module.p for module in self.network.modules())
        trial = partial(self._output_and_gradients, compiled, x, args, kwargs)
        reference = None if drops else partial(self._output_and_gradients, self.network, x, args, kwargs)
        if not _agree(trial, reference, self.name, self.tolerance):
            return self.network
        logger.log(f"compiled {self.name} in {time.perf_counter() - start:.0f} s")
        return compiled

    def _output_and_gradients(self, network: Callable[..., Tensor], x: Tensor, args: tuple, kwargs: dict):
        """Return [output, all parameters' gradients as one vector]: some of them alone are nothing but rounding."""
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        output = network(x, *args, **kwargs)
        gradients = torch.autograd.grad(output.float().square().mean(), parameters, materialize_grads=True)
        return [output.detach().float(), torch.cat([gradient.flatten() for gradient in gradients])]

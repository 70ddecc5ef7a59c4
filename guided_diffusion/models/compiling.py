"""Compiling a network, for one shape of input or for training, with a check that it still computes the same."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from guided_diffusion.errors import first_line
from guided_diffusion.runs import logger

# Largest difference from the network as it is, over its largest output: float32, and autocast, whose roundings
# between fused operations are others.
TOLERANCE, TOLERANCE_AUTOCAST = 1e-3, 5e-2


class Compiled:
    """A network that compiles itself at its first call, for inputs like those.

    Inputs of other shapes (the last, smaller batch) go through the network as it is, and so does everything, after
    one warning, where compiling fails or changes the numbers. On CUDA the calls replay CUDA graphs, in which a
    kernel's launch costs next to nothing; their outputs lie in memory of their own, copied out here. A gradient lies in
    that memory until the next call.

    :param tolerance: largest relative difference that passes for the same numbers.
    """

    def __init__(self, network: nn.Module, name: str, tolerance: float):
        self.network, self.name, self.tolerance = network, name, tolerance
        self._compiled: Callable[..., Tensor] | None = None
        self._made_for: tuple | None = None

    def __call__(self, x: Tensor, *args, **kwargs) -> Tensor:
        if self._made_for is None:
            self._made_for = _kind(x)
            self._compiled = self._compile(x, args, kwargs)
        if self._compiled is None or self._made_for != _kind(x):
            return self.network(x, *args, **kwargs)
        return self._run(self._compiled, x, args, kwargs)

    def _run(self, compiled: Callable[..., Tensor], x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        if not _replays_graphs(x):
            return compiled(x, *args, **kwargs)
        if not x.requires_grad:  # between a forward pass and its backward pass no new step may begin
            torch.compiler.cudagraph_mark_step_begin()
        return compiled(x, *args, **kwargs).clone()

    def _compile(self, x: Tensor, args: tuple, kwargs: dict) -> Callable[..., Tensor] | None:
        """The network compiled, forward and backward; None, with a warning, where that fails."""
        # TorchInductor keeps what it made in a folder of its own, from which later runs take it.
        mode = "reduce-overhead" if _replays_graphs(x) else None
        compiled = torch.compile(self.network, dynamic=False, mode=mode)

        def run(x: Tensor, *args, **kwargs) -> Tensor:
            return self._run(compiled, x, args, kwargs)

        try:
            compiling, _ = _evaluate(run, x, args, kwargs)
            recording, _ = _evaluate(run, x, args, kwargs)  # of the CUDA graph
            # On another input than the graph was recorded with.
            fast, found = _evaluate(run, x / 2, args, kwargs)
        except Exception as error:  # any: a missing compiler, an unsupported machine, torch's own errors
            logger.warning(f"--compile: {self.name} stays as it is, compiling failed ({first_line(error)})")
            return None
        slow, expected = _evaluate(self.network, x / 2, args, kwargs)
        if deviation := _deviation(found, expected, self.tolerance):
            logger.warning(f"--compile: {self.name} stays as it is, {deviation}")
            return None
        first, saved = compiling + recording, slow - fast
        pays = f"pays after {first / saved:,.0f} steps" if saved > 0 else "saves nothing here"
        logger.log(f"compiled {self.name} in {first:.0f} s: {pays}")
        return compiled


def _replays_graphs(x: Tensor) -> bool:
    return x.device.type == "cuda"


def _kind(x: Tensor) -> tuple:
    return x.shape, x.dtype, x.device, x.requires_grad


def _evaluate(network: Callable[..., Tensor], x: Tensor, args: tuple, kwargs: dict) -> tuple[float, list[Tensor]]:
    """Wall time of one evaluation, and its output, with the gradient for x where x wants one."""
    start = time.perf_counter()
    x = x.detach().requires_grad_(x.requires_grad)
    output = network(x, *args, **kwargs)
    results = [output.detach()]
    if x.requires_grad:
        results += torch.autograd.grad(output.sum(), x)
    if output.device.type == "cuda":
        torch.cuda.synchronize(output.device)
    return time.perf_counter() - start, [result.clone() for result in results]


def _deviation(found: list[Tensor], expected: list[Tensor], tolerance: float) -> str:
    """What differs by how much, for [output] or [output, gradient]; "" where nothing does by more than `tolerance`."""
    differences = dict(zip(("output", "gradient"), map(_difference, found, expected), strict=False))
    if all(difference <= tolerance for difference in differences.values()):
        return ""
    parts = " and ".join(f"{difference:.1e} of its largest {name}" for name, difference in differences.items())
    return f"compiled it differs by {parts}, expected at most {tolerance:.0e}"


def _difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest magnitude; 0 where both are 0."""
    scale = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((found - expected).abs().max() / scale)


class CompiledForTraining(nn.Module):
    """A network that is compiled at its first call with gradients; without gradients it runs as it is.

    It stays as it is, after one warning, where compiling fails or changes output or gradients.

    :param tolerance: as for `Compiled`; not looked at where dropout makes every pass another one.
    """

    def __init__(self, network: nn.Module, name: str, tolerance: float):
        super().__init__()
        self.network, self.name, self.tolerance = network, name, tolerance
        self._compiled: Callable[..., Tensor] | None = None

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """As the network's; `x` is x_t [B, ...]."""
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
        try:
            found = self._output_and_gradients(compiled, x, args, kwargs)
        except Exception as error:  # as in `Compiled`
            logger.warning(f"--compile: {self.name} stays as it is, compiling failed ({first_line(error)})")
            return self.network
        drops = any(isinstance(module, nn.Dropout) and module.p for module in self.network.modules())
        expected = found if drops else self._output_and_gradients(self.network, x, args, kwargs)
        if deviation := _deviation(found, expected, self.tolerance):
            logger.warning(f"--compile: {self.name} stays as it is, {deviation}")
            return self.network
        logger.log(f"compiled {self.name} in {time.perf_counter() - start:.0f} s")
        return compiled

    def _output_and_gradients(self, network: Callable[..., Tensor], x: Tensor, args: tuple, kwargs: dict):
        """[output, all parameters' gradients as one vector]: some of them alone are nothing but rounding."""
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        output = network(x, *args, **kwargs)
        gradients = torch.autograd.grad(output.float().square().mean(), parameters, materialize_grads=True)
        return [output.detach().float(), torch.cat([gradient.flatten() for gradient in gradients])]

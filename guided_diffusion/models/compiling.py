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

Outputs = Tensor | tuple[Tensor, Tensor]  # a prediction; a prediction and the deep features for a `FeatureCache`


class Compiled:
    """A network that compiles itself at its first call with each set of arguments, for inputs like those.

    Inputs of other shapes (the last, smaller batch) go through the network uncompiled, and so do all, after one
    warning, where compiling fails or changes the numbers. On CUDA the calls replay CUDA graphs, in which a kernel's
    launch costs next to nothing; outputs are copied out of the graph's memory, gradients lie there until the next call.

    :param tolerance: largest relative difference that counts as the same numbers.
    """

    def __init__(self, network: nn.Module, name: str, tolerance: float):
        self.network, self.name, self.tolerance = network, name, tolerance
        # By the names of the arguments: a `FeatureCache` calls its network in two ways.
        self._compiled: dict[frozenset[str], Callable[..., Outputs] | None] = {}
        self._made_for: dict[frozenset[str], tuple] = {}

    def __call__(self, x: Tensor, *args, **kwargs) -> Outputs:
        names = frozenset(kwargs)
        if names not in self._made_for:
            self._made_for[names] = _kind(x)
            self._compile(x, args, kwargs)
        if self._compiled[names] is None or self._made_for[names] != _kind(x):
            return self.network(x, *args, **kwargs)
        return self._run(x, *args, **kwargs)

    def _run(self, x: Tensor, *args, **kwargs) -> Outputs:
        compiled = self._compiled[frozenset(kwargs)]
        if not _replays_graphs(x):
            return compiled(x, *args, **kwargs)
        if not x.requires_grad:  # between a forward pass and its backward pass no new step may begin
            torch.compiler.cudagraph_mark_step_begin()
        outputs = compiled(x, *args, **kwargs)
        return tuple(part.clone() for part in outputs) if isinstance(outputs, tuple) else outputs.clone()

    def _compile(self, x: Tensor, args: tuple, kwargs: dict) -> None:
        """Compile the network, forward and backward; where that fails, a warning says so."""
        # TorchInductor keeps what it made in a folder of its own, from which later runs take it.
        mode = "reduce-overhead" if _replays_graphs(x) else None
        names = frozenset(kwargs)
        self._compiled[names] = torch.compile(self.network, dynamic=False, mode=mode)
        seconds: list[float] = []

        def evaluate(network: Callable[..., Outputs], x: Tensor) -> dict[str, Tensor]:
            start = time.perf_counter()
            results = _outputs_and_gradient(network, x, args, kwargs)
            seconds.append(time.perf_counter() - start)
            return results

        def trial() -> dict[str, Tensor]:
            evaluate(self._run, x)
            evaluate(self._run, x)  # records the CUDA graph
            return evaluate(self._run, x / 2)  # another input than the graph was recorded with

        if not _agree(trial, lambda: evaluate(self.network, x / 2), self.name, self.tolerance):
            self._compiled[names] = None
            return
        compiling, recording, fast, slow = seconds
        saved = slow - fast
        pays = f"pays after {(compiling + recording) / saved:,.0f} steps" if saved > 0 else "saves nothing here"
        logger.log(f"compiled {self.name} in {compiling + recording:.0f} s: {pays}")


def _replays_graphs(x: Tensor) -> bool:
    return x.device.type == "cuda"


def _kind(x: Tensor) -> tuple:
    return x.shape, x.dtype, x.device, x.requires_grad


def _outputs_and_gradient(network: Callable[..., Outputs], x: Tensor, args: tuple, kwargs: dict) -> dict[str, Tensor]:
    """Return output, deep features if any, and the gradient where x wants one, by name, once they are there."""
    x = x.detach().requires_grad_(x.requires_grad)
    outputs = network(x, *args, **kwargs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    results = dict(zip(("output", "deep features"), outputs, strict=False))
    if x.requires_grad:
        (results["gradient"],) = torch.autograd.grad(outputs[0].sum(), x)
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return {name: result.detach().clone() for name, result in results.items()}


def _agree(
    trial: Callable[[], dict[str, Tensor]],
    reference: Callable[[], dict[str, Tensor]] | None,
    name: str,
    tolerance: float,
) -> bool:
    """Whether a compiled network runs and gives what the reference does, if there is one; a warning says why not.

    Its first call compiles it, before which a line asks for patience.
    """
    logger.log(f"compiling {name}: one to three minutes, less from PyTorch's cache")
    try:
        found = trial()
    except Exception as error:  # any: a missing compiler, an unsupported machine, torch's own errors
        reason = f"compiling failed ({first_line(error)})"
    else:
        expected = reference() if reference is not None else found
        differences = {part: _difference(found[part], expected[part]) for part in expected}
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

    def _output_and_gradients(
        self, network: Callable[..., Tensor], x: Tensor, args: tuple, kwargs: dict
    ) -> dict[str, Tensor]:
        """Return output and all parameters' gradients as one vector: some of them alone are nothing but rounding."""
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        output = network(x, *args, **kwargs)
        gradients = torch.autograd.grad(output.float().square().mean(), parameters, materialize_grads=True)
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        return {"output": output.detach().float(), "gradient": flat}

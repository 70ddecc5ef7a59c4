"""Checks that compiled networks compute what they did before; `CHECKS` holds them by name, as in `checks.py`.

The stage correctness runs them in a process of their own, beside the others.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.builders import randomize
from benchmarks.gpu import checks
from benchmarks.gpu.checks import DEVICE, FLOAT32, NOISE, TOLERANCE, T, X, Y, error, evaluate, sample
from benchmarks.gpu.record import Context, run_all
from guided_diffusion.models.attention import AttentionBlock, AttentionPool2d
from guided_diffusion.models.blocks import ResBlock
from guided_diffusion.models.compiling import TOLERANCE_AUTOCAST, CompiledForTraining
from guided_diffusion.models.inference import Frozen
from guided_diffusion.runs import logger


@contextmanager
def logged() -> Iterator[None]:
    """Send the messages of compiling to stdout."""
    with tempfile.TemporaryDirectory() as folder, logger.scoped_configure(dir=folder, format_strs=["stdout"]):
        yield


def compiled_networks_compute_the_same() -> None:
    """A UNet in float32, a classifier in float16 for its gradient; alone, then in turn as in sampling.

    All but the first calls replay CUDA graphs, whose outputs lie in the same memory every time.
    """
    inputs = [(X, T), (-2 * X, T.flip(0)), (NOISE, T), (X, T)]
    model, classifier = checks.frozen(checks.make_unet), checks.frozen(checks.make_classifier, torch.float16)
    compiled = checks.frozen(checks.make_unet, None, True), checks.frozen(checks.make_classifier, torch.float16, True)
    with logged():
        with torch.no_grad():
            outputs = [compiled[0](x.to(DEVICE), t.to(DEVICE), y=Y.to(DEVICE)) for x, t in inputs]
        results = [evaluate(compiled[1], x, t) for x, t in inputs]
    assert all(network.forward._compiled is not None for network in compiled), "not compiled: see the warning"
    for (x, t), output, (logits, gradient) in zip(inputs, outputs, results, strict=True):
        assert error(output, evaluate(model, x, t, y=Y)[0]) < 5 * FLOAT32
        expected = evaluate(classifier, x, t)
        assert error(logits, expected[0]) < TOLERANCE[torch.float16]
        assert error(gradient, expected[1]) < 2 * TOLERANCE[torch.float16]
    # Fused kernels round float16 elsewhere, which three steps of these random networks amplify to a few levels of 255.
    difference = (sample(*compiled, "ddim") - sample(model, classifier, "ddim")).abs()
    assert difference.max() < 0.1 and difference.mean() < 3e-3


class LayerNetwork(nn.Module):
    """One kind of layer between an image and five numbers, to tell which layer makes a compiled network wrong."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.input_blocks = nn.ModuleList([nn.Conv2d(3, 64, 3, padding=1), layer])
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        stem, layer = self.input_blocks
        emb = torch.cos(t.float()[:, None] * torch.arange(128, device=t.device) / 128)
        h = stem(x)
        h = layer(h, emb) if isinstance(layer, ResBlock) else layer(h)
        return self.head(h.flatten(2).mean(dim=2) if h.dim() > 2 else h)


LAYERS = {
    "attention": lambda: AttentionBlock(64, num_head_channels=32),
    "attention pool": lambda: AttentionPool2d(8, 64, 32),
    "residual": lambda: ResBlock(64, 128, 0.0, use_scale_shift_norm=True),
    "halving residual": lambda: ResBlock(64, 128, 0.0, use_scale_shift_norm=True, down=True),
}


def compiled_layers_have_the_same_gradients(layer: str) -> None:
    """In float16, as guidance uses them."""
    torch.manual_seed(2)
    network = randomize(LayerNetwork(LAYERS[layer]()), checks.SCALE).to(DEVICE)
    compiled, plain = (Frozen(copy.deepcopy(network), torch.float16, compile) for compile in (True, False))
    with logged():
        for x, t in ((X, T), (NOISE, T.flip(0)), (-X, T)):
            for found, expected in zip(evaluate(compiled, x, t), evaluate(plain, x, t), strict=True):
                assert error(found, expected) < 2 * TOLERANCE[torch.float16]
    assert compiled.forward._compiled is not None, "not compiled: see the warning"


def compiled_training_has_the_same_gradients() -> None:
    network = checks.make_classifier().to(DEVICE).train()
    compiled = CompiledForTraining(network, "Classifier", TOLERANCE_AUTOCAST)
    with logged():
        for x, t in ((X, T), (NOISE, T.flip(0))):
            gradients = []
            for one in (compiled, network):
                network.zero_grad()
                one(x.to(DEVICE), t.to(DEVICE)).square().sum().backward()
                gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()])[None])
            assert error(*gradients) < 1e-4
    assert compiled._compiled is not network, "not compiled: see the warning"


CHECKS = {f"compiled {layer}": partial(compiled_layers_have_the_same_gradients, layer) for layer in LAYERS}
CHECKS["compiled networks"] = compiled_networks_compute_the_same
CHECKS["compiled training"] = compiled_training_has_the_same_gradients


def run(context: Context) -> None:
    """Run every check."""
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    if context.tiny:  # the same way through the code, without a compiler
        compile = torch.compile
        mock.patch("torch.compile", lambda net, **_: compile(net, backend="aot_eager", dynamic=False)).start()
    run_all(context, CHECKS)

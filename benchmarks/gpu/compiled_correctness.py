"""Are compiled networks right? In a process of its own beside the other checks, under the stage correctness."""

from __future__ import annotations

import dataclasses
from functools import partial
from unittest import mock

import torch

from benchmarks.gpu.correctness import prepare, run_all
from benchmarks.gpu.record import Context


def run(context: Context) -> None:
    """Run the checks of tests/benchmarks/test_cuda_compiled.py, without pytest."""
    prepare(context)
    if context.tiny:  # the same way through the code, without a compiler
        compile = torch.compile
        mock.patch("torch.compile", lambda net, **_: compile(net, backend="aot_eager", dynamic=False)).start()
    from benchmarks.gpu import compiled_checks as checks

    layers = [
        (f"compiled {layer}", partial(checks.compiled_layers_have_the_same_gradients, layer))
        for layer in checks.LAYERS
    ]
    networks = [
        ("compiled networks", checks.compiled_networks_compute_the_same),
        ("compiled training", checks.compiled_training_has_the_same_gradients),
    ]
    run_all(dataclasses.replace(context, stage="correctness"), [*layers, *networks])

"""Checks that features on a device are the CPU's; `CHECKS` holds them by name, as in `checks.py`."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.builders import SMALLEST, random_images, write_network
from benchmarks.gpu.checks import CPU, DEVICE, error
from evaluations.features.classifier import ClassifierExtractor
from evaluations.features.graphdef import Node
from evaluations.features.inception_torch import fold_batch_norms
from evaluations.features.tf_graph import TorchGraph


def classifier_features_are_the_cpus(pool: str) -> None:
    config = dataclasses.replace(SMALLEST.classifier, classifier_pool=pool)
    with tempfile.TemporaryDirectory() as folder:
        engine = ClassifierExtractor(write_network(Path(folder), config, noised=False))
    torch.backends.cudnn.allow_tf32 = True  # the engine does without by itself
    images = random_images(0, 5, 8)
    try:
        found = vars(engine.compute_activations([images[:3], images[3:]]))
    finally:
        torch.backends.cudnn.allow_tf32 = False
    assert engine.device.type == DEVICE.type
    engine.device = CPU
    engine._model.cpu()
    for name, expected in vars(engine.compute_activations([images])).items():
        assert error(torch.tensor(found[name]), torch.tensor(expected)) < 1e-4, name


def inceptions_operations_are_the_cpus(prepare: Callable[[dict[str, Node]], dict[str, Node]]) -> None:
    """A small graph of Inception's operations: resizing, convolution, normalisation, pooling."""
    random = np.random.default_rng(0)
    statistics = {name: random.uniform(0.5, 2, 8) for name in ("mean", "variance", "beta", "gamma")}
    constants = statistics | {"filter": random.normal(size=(3, 3, 3, 8)) / 5}
    nodes = [Node(name, "Const", (), {"value": value.astype(np.float32)}) for name, value in constants.items()]
    window, by_two = {"padding": b"SAME", "ksize": (1, 3, 2, 1)}, {"strides": (1, 2, 2, 1)}
    norm = {"variance_epsilon": 0.001, "scale_after_normalization": True}
    nodes += [
        Node("x", "Placeholder", (), {}),
        Node("size", "Const", (), {"value": np.array([23, 21])}),
        Node("resized", "ResizeBilinear", ("x", "size"), {}),
        Node("conv", "Conv2D", ("resized", "filter"), window | by_two),
        Node("norm", "BatchNormWithGlobalNormalization", ("conv", *statistics), norm),
        Node("largest", "MaxPool", ("norm",), window | by_two),
        Node("average", "AvgPool", ("largest",), window | {"strides": (1, 1, 1, 1)}),
    ]
    x = torch.from_numpy(random_images(1, 3, 32)).float() / 128 - 1
    graph = prepare({node.name: node for node in nodes})
    found, expected = (TorchGraph(graph, ["norm", "average"], ["x"], d).run({"x": x.to(d)}) for d in (DEVICE, CPU))
    for one, other in zip(found, expected, strict=True):
        assert one.device.type == DEVICE.type and error(one, other) < 1e-5


CHECKS: dict[str, Callable[[], None]] = {
    f"features {pool}": partial(classifier_features_are_the_cpus, pool) for pool in ("attention", "spatial_v2")
} | {
    f"inception's operations {prepare.__name__}": partial(inceptions_operations_are_the_cpus, prepare)
    for prepare in (dict, fold_batch_norms)
}

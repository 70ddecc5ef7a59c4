"""Inception run by torch: the same frozen graph without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import torch

from evaluations.features.graphdef import Node, read_graph
from evaluations.features.inception import (
    IMAGE_INPUT,
    LOGITS_PRODUCT,
    POOL_DIMS,
    POOL_OUTPUT,
    SPATIAL_CHANNELS,
    SPATIAL_OUTPUT,
    Inception,
    describe_resize,
)
from evaluations.features.tf_graph import TorchGraph
from guided_diffusion.errors import InputError

_BATCH_NORM = "BatchNormWithGlobalNormalization"


class TorchInceptionExtractor(Inception):
    """``Inception`` by torch in float32 (no TF32), on CUDA when there is one."""

    name = "inception (torch)"

    def __init__(
        self,
        graph_path: str | os.PathLike | None = None,
        batch_size: int = 64,
        softmax_batch_size: int = 512,
    ):
        super().__init__(graph_path, batch_size, softmax_batch_size)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        path = str(self.weights_path)
        nodes = fold_batch_norms(read_graph(path))
        self.resize = describe_resize(nodes)
        wanted = (IMAGE_INPUT, POOL_OUTPUT, SPATIAL_OUTPUT, LOGITS_PRODUCT)
        if missing := [name for name in wanted if name.partition(":")[0] not in nodes]:
            raise self._error(f"it has no node {', '.join(missing)}")
        product = nodes[LOGITS_PRODUCT]
        if len(product.inputs) < 2:
            raise self._error(f"its node {LOGITS_PRODUCT} has {len(product.inputs)} inputs, expected 2")
        self._graph = TorchGraph(nodes, [POOL_OUTPUT, SPATIAL_OUTPUT], [IMAGE_INPUT], self.device, path)
        (self._weights,) = TorchGraph(nodes, product.inputs[1:2], (), self.device, path).run({})
        if self._weights.ndim != 2 or len(self._weights) != POOL_DIMS:
            raise self._error(f"its last layer has weights {list(self._weights.shape)}, expected [{POOL_DIMS}, K]")

    @torch.inference_mode()
    def run_batch(self, images_BHWC: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return pooled [B, 2048] and spatial [B, 17 * 17 * 7] features."""
        images = torch.tensor(np.asarray(images_BHWC)).to(self.device).float()
        images = images.expand(-1, -1, -1, 3)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            pool, spatial = self._graph.run({IMAGE_INPUT: images})
        if pool.shape[1:].numel() != POOL_DIMS or spatial.ndim != 4:
            raise self._error(f"its outputs have the shapes {list(pool.shape)} and {list(spatial.shape)}")
        features = pool.reshape(-1, POOL_DIMS), spatial[..., :SPATIAL_CHANNELS].flatten(1)
        return tuple(rows.cpu().numpy() for rows in features)

    @torch.inference_mode()
    def _classify(self, pool_BD: np.ndarray) -> np.ndarray:
        features = torch.from_numpy(np.array(pool_BD, dtype=np.float32))
        return (features.to(self.device) @ self._weights).softmax(-1).cpu().numpy()

    def _error(self, reason: str) -> InputError:
        return InputError(f"{self.weights_path}: not the frozen Inception graph: {reason}")


TorchInceptionEngine = TorchInceptionExtractor  # its name in the version before


def fold_batch_norms(nodes: Mapping[str, Node]) -> dict[str, Node]:
    """Return the graph with each batch norm of a convolution replaced by a convolution with a bias.

    It scales each output channel and shifts it, which a filter and a bias can do as well; computed in float64, the
    results differ by rounding. Batch norms whose parts are no constants of fitting shapes are kept. The first
    convolutions are kept too, but no longer read. It saves a tenth of the network's time on a CPU.
    """
    folded = dict(nodes)
    for node in nodes.values():
        if node.op == _BATCH_NORM:
            folded |= _fold(node, nodes)
    return folded


def _fold(node: Node, nodes: Mapping[str, Node]) -> dict[str, Node]:
    """Return what replaces a batch norm: a convolution under its name and two constants; nothing if impossible."""
    convolution = nodes.get(node.inputs[0]) if len(node.inputs) == 5 else None
    if convolution is None or convolution.op != "Conv2D" or len(convolution.inputs) != 2:
        return {}
    filter_HWIO, *statistics = (_constant(nodes, name) for name in (convolution.inputs[1], *node.inputs[1:]))
    epsilon, scaled = (node.attributes.get(key) for key in ("variance_epsilon", "scale_after_normalization"))
    if filter_HWIO is None or not isinstance(epsilon, float) or not isinstance(scaled, bool):
        return {}
    if any(part is None or part.shape != filter_HWIO.shape[3:] for part in statistics):
        return {}
    mean, variance, beta, gamma = (part.astype(np.float64) for part in statistics)
    with np.errstate(all="ignore"):  # values that are none are for CheckNumerics to report
        scale = (gamma if scaled else 1) / np.sqrt(variance + epsilon)
        constants = {"filter": filter_HWIO * scale, "bias": beta - mean * scale}
        names = {key: f"{node.name} {key}" for key in constants}  # no name in TensorFlow has a space
        replaced = Node(node.name, "Conv2D", (convolution.inputs[0], *names.values()), convolution.attributes)
        return {node.name: replaced} | {
            names[key]: Node(names[key], "Const", (), {"value": value.astype(np.float32)})
            for key, value in constants.items()
        }


def _constant(nodes: Mapping[str, Node], name: str) -> np.ndarray | None:
    """Return the float32 array of a constant node, None for any other."""
    node = nodes.get(name.removesuffix(":0"))
    value = node.attributes.get("value") if node is not None and node.op == "Const" else None
    return value if isinstance(value, np.ndarray) and value.dtype == np.float32 else None

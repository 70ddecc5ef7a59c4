"""The Inception network of the published figures, run in torch: the same frozen graph without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from evaluations.features.base import Activations, RowStack, Spread, run_batches
from evaluations.features.graphdef import Node, read_graph
from evaluations.features.inception_tensorflow import (
    IMAGE_INPUT,
    LOGITS_PRODUCT,
    POOL_DIMS,
    POOL_OUTPUT,
    SPATIAL_CHANNELS,
    SPATIAL_OUTPUT,
    describe_resize,
    find_graph,
)
from evaluations.features.tf_graph import TorchGraph
from guided_diffusion.errors import InputError

_BATCH_NORM = "BatchNormWithGlobalNormalization"


class TorchInceptionEngine:
    """What ``inception.InceptionEngine`` computes, by torch in float32 (no TF32), on CUDA when there is one.

    ``graph_path`` is the frozen graph; without it ``classify_image_graph_def.pb`` in the working directory. A
    file that is not there is downloaded.

    Raises ``InputError`` if the file cannot be had or is not that graph.
    """

    name = "inception (torch)"
    uses_stored_statistics = True
    pool_dims = POOL_DIMS
    spread: Spread = staticmethod(map)

    def __init__(
        self,
        graph_path: str | os.PathLike | None = None,
        batch_size: int = 64,
        softmax_batch_size: int = 512,
    ):
        self.batch_size = batch_size
        self.softmax_batch_size = softmax_batch_size
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._path = self.weights_path = find_graph(graph_path)
        nodes = fold_batch_norms(read_graph(self._path))
        self.resize = describe_resize(nodes)
        wanted = (IMAGE_INPUT, POOL_OUTPUT, SPATIAL_OUTPUT, LOGITS_PRODUCT)
        if missing := [name for name in wanted if name.partition(":")[0] not in nodes]:
            raise self._error(f"it has no node {', '.join(missing)}")
        product = nodes[LOGITS_PRODUCT]
        if len(product.inputs) < 2:
            raise self._error(f"its node {LOGITS_PRODUCT} has {len(product.inputs)} inputs, expected 2")
        self._graph = TorchGraph(nodes, [POOL_OUTPUT, SPATIAL_OUTPUT], [IMAGE_INPUT], self.device, str(self._path))
        (self._weights,) = TorchGraph(nodes, product.inputs[1:2], (), self.device, str(self._path)).run({})
        if self._weights.ndim != 2 or len(self._weights) != POOL_DIMS:
            raise self._error(f"its last layer has weights {list(self._weights.shape)}, expected [{POOL_DIMS}, K]")

    def check(self, path: str, shape: tuple[int, ...]) -> None:
        """Any size, grey or RGB, will do."""

    def compute_activations(self, batches: Iterable[np.ndarray]) -> Activations:
        """Run images [B, H, W, 1 or 3], values 0..255 of any real dtype, through the network."""
        pool, spatial = self.compute_features(batches)
        return Activations(pool, spatial, self.compute_probabilities(pool))

    def compute_features(self, batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Pooled [N, 2048] and spatial [N, 17 * 17 * 7] features only, float32."""
        pool, spatial = run_batches(self, batches, "inception")
        return pool, spatial

    @torch.inference_mode()
    def run_batch(self, images_BHWC: np.ndarray) -> tuple[np.ndarray, ...]:
        """Pooled [B, 2048] and spatial [B, 17 * 17 * 7] features."""
        images = torch.tensor(np.asarray(images_BHWC)).to(self.device).float()
        images = images.expand(-1, -1, -1, 3)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            pool, spatial = self._graph.run({IMAGE_INPUT: images})
        if pool.shape[1:].numel() != POOL_DIMS or spatial.ndim != 4:
            raise self._error(f"its outputs have the shapes {list(pool.shape)} and {list(spatial.shape)}")
        features = pool.reshape(-1, POOL_DIMS), spatial[..., :SPATIAL_CHANNELS].flatten(1)
        return tuple(rows.cpu().numpy() for rows in features)

    @torch.inference_mode()
    def compute_probabilities(self, pool_ND: np.ndarray) -> np.ndarray:
        """Class probabilities [N, K] from pooled features [N, 2048]."""
        stack = RowStack(len(pool_ND))
        for begin in range(0, len(pool_ND), self.softmax_batch_size):
            features = torch.from_numpy(np.array(pool_ND[begin : begin + self.softmax_batch_size], dtype=np.float32))
            stack.append((features.to(self.device) @ self._weights).softmax(-1).cpu().numpy())
        return stack.rows()

    def _error(self, reason: str) -> InputError:
        return InputError(f"{self._path}: not the frozen Inception graph: {reason}")


def fold_batch_norms(nodes: Mapping[str, Node]) -> dict[str, Node]:
    """The same graph with each batch norm of a convolution replaced by a convolution with a bias.

    It scales each output channel and shifts it, which a filter and a bias can do as well; computed in float64, the
    results differ by rounding. Batch norms whose parts are no constants of fitting shapes are left alone. The first
    convolutions stay too; nobody reads them any more.
    """
    folded = dict(nodes)
    for node in nodes.values():
        if node.op == _BATCH_NORM:
            folded |= _fold(node, nodes)
    return folded


def _fold(node: Node, nodes: Mapping[str, Node]) -> dict[str, Node]:
    """What replaces a batch norm: a convolution under its name and its two constants; nothing if it cannot be."""
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
    """The float32 array of a constant node."""
    node = nodes.get(name.removesuffix(":0"))
    value = node.attributes.get("value") if node is not None and node.op == "Const" else None
    return value if isinstance(value, np.ndarray) and value.dtype == np.float32 else None

"""The Inception network of published figures: its file, and what both implementations have in common."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from evaluations.features.base import Activations, BatchExtractor, run_batches, stack_rows
from evaluations.features.graphdef import Node
from guided_diffusion.errors import InputError
from guided_diffusion.io.reading import open_regular, reading_errors
from guided_diffusion.io.remote import is_remote

INCEPTION_V3_URL = (
    "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/classify_image_graph_def.pb"
)
INCEPTION_V3_PATH = "classify_image_graph_def.pb"

IMAGE_INPUT = "ExpandDims:0"
POOL_OUTPUT = "pool_3:0"
SPATIAL_OUTPUT = "mixed_6/conv:0"
LOGITS_PRODUCT = "softmax/logits/MatMul"
POOL_DIMS = 2048
SPATIAL_CHANNELS = 7


class Inception(BatchExtractor):
    """Pooled [N, 2048] and spatial [N, 17 * 17 * 7] features and probabilities [N, 1008] from Inception.

    Images are fed as float32 0..255 at their native size in place of the graph's decoded picture; the graph
    itself resizes and normalises. Grey images are repeated to three channels. Spatial features are the first
    7 channels of ``mixed_6/conv``, channel fastest. Probabilities are the softmax of the pooled features
    times the weights of the last layer, *without* its bias, as in published figures.

    ``graph_path`` is the frozen graph; without it ``classify_image_graph_def.pb`` in the working directory. A
    missing file is downloaded. Raises ``InputError`` if the file cannot be had or is not that graph.
    """

    uses_stored_statistics = True
    pool_dims = POOL_DIMS

    def __init__(self, graph_path: str | os.PathLike | None, batch_size: int, softmax_batch_size: int):
        super().__init__(batch_size)
        self.softmax_batch_size = softmax_batch_size
        self.weights_path = find_graph(graph_path)

    def compute_activations(self, batches: Iterable[np.ndarray]) -> Activations:
        """Run images [B, H, W, 1 or 3], values 0..255 of any real dtype, through the network."""
        pool, spatial = self.compute_features(batches)
        return Activations(pool, spatial, self.compute_probabilities(pool))

    def compute_features(self, batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return pooled [N, 2048] and spatial [N, 17 * 17 * 7] features only, float32."""
        pool, spatial = run_batches(self, batches, "inception")
        return pool, spatial

    def compute_probabilities(self, pool_ND: np.ndarray) -> np.ndarray:
        """Return class probabilities [N, K] from pooled features [N, 2048]."""
        begins = range(0, len(pool_ND), self.softmax_batch_size)
        rows = ((self._classify(pool_ND[begin : begin + self.softmax_batch_size]),) for begin in begins)
        return stack_rows(rows, len(pool_ND))[0]

    def _classify(self, pool_BD: np.ndarray) -> np.ndarray:
        """Return class probabilities [B, K]."""
        raise NotImplementedError


def describe_resize(nodes: Mapping[str, Node]) -> str:
    """Describe in words, from the graph's nodes, how it brings images to its own size."""
    found = []
    for node in nodes.values():
        if node.op.startswith("Resize"):
            size = nodes.get(node.inputs[1]) if len(node.inputs) > 1 else None
            pixels = size.attributes.get("value") if size else None
            shape = "x".join(map(str, pixels.tolist())) if isinstance(pixels, np.ndarray) else "an unknown size"
            flags = [f"{flag}={bool(node.attributes.get(flag))}" for flag in ("align_corners", "half_pixel_centers")]
            found.append(f"{node.op} to {shape} by the network's graph, {', '.join(flags)}")
    return "; ".join(found) or "none"


def find_graph(graph_path: str | os.PathLike | None) -> Path:
    """Return the absolute path of the frozen graph, downloaded if missing; ``InputError`` if it cannot be had."""
    path = Path(graph_path or INCEPTION_V3_PATH).absolute()
    with suppress(FileNotFoundError), reading_errors(path):
        open_regular(path).close()
        return path
    if is_remote(graph_path or ""):
        raise InputError(f"--inception {graph_path}: expected a file on this machine, found an address")
    from guided_diffusion.io.download import fetch  # which needs requests

    advice = f"put the file at {path}, or say where it is with --inception PATH"
    return fetch(INCEPTION_V3_URL, path, advice=advice)

"""The Inception network of the published figures: a frozen graph. TensorFlow is imported on use only."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from evaluations.engine import Activations, RowStack, Spread, run_batches
from evaluations.graphdef import Node, read_bytes, read_graph
from guided_diffusion.errors import InputError
from guided_diffusion.io.reading import decoding, open_regular, reading_errors
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

log = logging.getLogger(__name__)


@cache
def import_tensorflow() -> ModuleType:
    """``tensorflow.compat.v1`` with its start-up messages turned off; ``InputError`` if not installed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        with _silent_stderr():
            import tensorflow.compat.v1 as tf
    except ImportError as error:
        raise InputError(
            f"the Inception engine needs TensorFlow, which cannot be imported ({error}); "
            "install it, or use --engine torch"
        ) from error
    tf.logging.set_verbosity(tf.logging.ERROR)
    return tf


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what this process's native code writes to stderr, which TensorFlow does before its settings apply.

    Python exceptions are not affected.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def make_session(graph: Any = None) -> Any:
    """A TensorFlow 1 session on a graph of its own that takes GPU memory only as needed."""
    tf = import_tensorflow()
    config = tf.ConfigProto(allow_soft_placement=True)  # the graph holds operations that only a CPU has
    config.gpu_options.allow_growth = True
    with _silent_stderr():
        return tf.Session(graph=graph or tf.Graph(), config=config)


class InceptionEngine:
    """Pooled [N, 2048] and spatial [N, 17 * 17 * 7] features and probabilities [N, 1008] from Inception.

    Images are fed as float32 0..255 at their native size in place of the graph's decoded picture; the graph
    itself resizes and normalises. Grey images are repeated to three channels. Spatial features are the first
    7 channels of ``mixed_6/conv``, channel fastest. Probabilities are the softmax of the pooled features
    times the weights of the last layer, *without* its bias, as the published figures have it.

    ``graph_path`` is the frozen graph; without it ``classify_image_graph_def.pb`` in the working directory. A
    file that is not there is downloaded. ``session`` is a TensorFlow 1 session to use, by default a new one.
    """

    name = "inception"
    uses_stored_statistics = True
    pool_dims = POOL_DIMS
    spread: Spread = staticmethod(map)

    def __init__(
        self,
        graph_path: str | os.PathLike | None = None,
        session: Any = None,
        batch_size: int = 64,
        softmax_batch_size: int = 512,
    ):
        self.batch_size = batch_size
        self.softmax_batch_size = softmax_batch_size
        tf = import_tensorflow()  # first: without TensorFlow there is no use in a download
        path = self.weights_path = find_graph(graph_path)
        self.session = session if session is not None else make_session()
        with self.session.graph.as_default():
            self._images = tf.placeholder(tf.float32, [None, None, None, 3])
            self._features = tf.placeholder(tf.float32, [None, POOL_DIMS])
            pool, spatial, product = _import_frozen(tf, path, self._images)
            self.resize = describe_resize(read_graph(path))
            self._pool = tf.reshape(pool, [-1, POOL_DIMS])
            channels = spatial[..., :SPATIAL_CHANNELS]
            self._spatial = tf.reshape(channels, [tf.shape(channels)[0], -1])
            self._probabilities = tf.nn.softmax(tf.matmul(self._features, product.inputs[1]))

    def check(self, path: str, shape: tuple[int, ...]) -> None:
        """Any size, grey or RGB, will do."""

    def compute_activations(self, batches: Iterable[np.ndarray]) -> Activations:
        """Run images [B, H, W, 1 or 3], values 0..255 of any real dtype, through the network."""
        pool, spatial = self.compute_features(batches)
        return Activations(pool, spatial, self.compute_probabilities(pool))

    def compute_features(self, batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Pooled and spatial features only."""
        pool, spatial = run_batches(self, batches, "inception")
        return pool, spatial

    def run_batch(self, images_BHWC: np.ndarray) -> tuple[np.ndarray, ...]:
        """Pooled [B, 2048] and spatial [B, 17 * 17 * 7] features."""
        images = np.asarray(images_BHWC, dtype=np.float32)
        if images.shape[-1] == 1:
            images = images.repeat(3, axis=-1)
        return tuple(self.session.run([self._pool, self._spatial], {self._images: images}))

    def compute_probabilities(self, pool_ND: np.ndarray) -> np.ndarray:
        """Class probabilities [N, K] from pooled features [N, 2048]."""
        stack, step = RowStack(len(pool_ND)), self.softmax_batch_size
        for begin in range(0, len(pool_ND), step):
            stack.append(self.session.run(self._probabilities, {self._features: pool_ND[begin : begin + step]}))
        return stack.rows()


def describe_resize(nodes: Mapping[str, Node]) -> str:
    """How the graph brings images to its own size, in words, read from its nodes."""
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
    """The absolute path of the frozen graph, downloaded if it is not there; ``InputError`` if it cannot be had."""
    path = Path(graph_path or INCEPTION_V3_PATH).absolute()
    with suppress(FileNotFoundError), reading_errors(path):
        open_regular(path).close()
        return path
    if is_remote(graph_path or ""):
        raise InputError(f"--inception {graph_path}: expected a file on this machine, found an address")
    from guided_diffusion.io.download import fetch  # which needs requests

    return fetch(
        INCEPTION_V3_URL,
        path,
        advice=f"put the file at {path}, or say where it is with --inception PATH",
    )


def _import_frozen(tf: ModuleType, path: Path, images: Any) -> tuple[Any, Any, Any]:
    """Add the frozen graph to the current one with ``images`` as its input.

    Returns the pooled tensor, the spatial tensor and the product of features and last-layer weights.
    """
    frozen = tf.GraphDef()
    with decoding(path, "not the frozen Inception graph"):  # protobuf and TensorFlow raise nearly everything
        frozen.ParseFromString(read_bytes(path))
        names = {node.name for node in frozen.node}
        wanted = (IMAGE_INPUT, POOL_OUTPUT, SPATIAL_OUTPUT, LOGITS_PRODUCT)
        if missing := [name for name in wanted if name.partition(":")[0] not in names]:
            raise ValueError(f"it has no node {', '.join(missing)}")
        for node in frozen.node:  # shapes recorded for a batch of one would be believed
            node.attr.pop("_output_shapes", None)
        return tf.import_graph_def(
            frozen,
            input_map={IMAGE_INPUT: images},
            return_elements=[POOL_OUTPUT, SPATIAL_OUTPUT, LOGITS_PRODUCT],
            name=tf.get_default_graph().unique_name("inception"),
        )

"""Inception run by TensorFlow, which is imported on use only."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from evaluations.features.graphdef import read_bytes, read_graph
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
from guided_diffusion.errors import InputError
from guided_diffusion.io.reading import decoding


@cache
def import_tensorflow() -> ModuleType:
    """Return ``tensorflow.compat.v1`` with its start-up messages turned off; ``InputError`` if not installed."""
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
    """Return a TensorFlow 1 session on a graph of its own that takes GPU memory only as needed."""
    tf = import_tensorflow()
    config = tf.ConfigProto(allow_soft_placement=True)  # the graph holds operations that only a CPU has
    config.gpu_options.allow_growth = True
    with _silent_stderr():
        return tf.Session(graph=graph or tf.Graph(), config=config)


class InceptionExtractor(Inception):
    """``Inception`` by TensorFlow; ``session`` is a TensorFlow 1 session to use, by default a new one."""

    name = "inception"

    def __init__(
        self,
        graph_path: str | os.PathLike | None = None,
        session: Any = None,
        batch_size: int = 64,
        softmax_batch_size: int = 512,
    ):
        tf = import_tensorflow()  # first: without TensorFlow there is no use in a download
        super().__init__(graph_path, batch_size, softmax_batch_size)
        self.session = session if session is not None else make_session()
        with self.session.graph.as_default():
            self._images = tf.placeholder(tf.float32, [None, None, None, 3])
            self._features = tf.placeholder(tf.float32, [None, POOL_DIMS])
            pool, spatial, product = _import_frozen(tf, self.weights_path, self._images)
            self.resize = describe_resize(read_graph(self.weights_path))
            self._pool = tf.reshape(pool, [-1, POOL_DIMS])
            channels = spatial[..., :SPATIAL_CHANNELS]
            self._spatial = tf.reshape(channels, [tf.shape(channels)[0], -1])
            self._probabilities = tf.nn.softmax(tf.matmul(self._features, product.inputs[1]))

    def run_batch(self, images_BHWC: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return pooled [B, 2048] and spatial [B, 17 * 17 * 7] features."""
        images = np.asarray(images_BHWC, dtype=np.float32)
        if images.shape[-1] == 1:
            images = images.repeat(3, axis=-1)
        return tuple(self.session.run([self._pool, self._spatial], {self._images: images}))

    def _classify(self, pool_BD: np.ndarray) -> np.ndarray:
        return self.session.run(self._probabilities, {self._features: pool_BD})


InceptionEngine = InceptionExtractor  # its name in the version before


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

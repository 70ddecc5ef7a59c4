"""Frozen TensorFlow graphs, built node by node at the version of the published Inception file.

Its operations are older than those that TensorFlow's Python functions can still make. For tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

PRODUCER = 8  # BatchNormWithGlobalNormalization went with version 9


class FrozenGraph:
    """A GraphDef under construction; every method returns the name of the node it adds."""

    def __init__(self):
        self.definition = tf.GraphDef()
        self.definition.versions.producer = PRODUCER

    def node(self, name: str, op: str, *inputs: str, **attributes: Any) -> str:
        """Add an operation. Attributes: numpy dtypes, bytes, bools, ints, floats or lists of int."""
        node = self.definition.node.add(name=name, op=op, input=inputs)
        for key, value in attributes.items():
            if isinstance(value, type):
                node.attr[key].type = tf.as_dtype(value).as_datatype_enum
            elif isinstance(value, Sequence) and not isinstance(value, bytes):
                node.attr[key].list.i.extend(value)
            else:
                setattr(node.attr[key], {bytes: "s", bool: "b", int: "i", float: "f"}[type(value)], value)
        return name

    def constant(self, name: str, value: Any, dtype: type = np.float32) -> str:
        """Add an array, or bytes."""
        tensor = tf.make_tensor_proto(value if isinstance(value, bytes) else np.asarray(value, dtype))
        node = self.definition.node.add(name=name, op="Const")
        node.attr["dtype"].type = tensor.dtype
        node.attr["value"].tensor.CopyFrom(tensor)
        return name

    def placeholder(self, name: str, dtype: type = np.float32) -> str:
        return self.node(name, "Placeholder", dtype=dtype)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.definition.SerializeToString())
        return path

    def run(self, fetches: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of nodes, computed by TensorFlow."""
        with tf.Graph().as_default():
            fetched = tf.import_graph_def(self.definition, return_elements=fetches, name="g")
            with tf.Session() as session:
                return session.run(fetched, {f"g/{name}": value for name, value in feeds.items()})


def write_inception_like_graph(path: Path) -> Path:
    """Write a small random network under Inception's node names that holds all the operations of the published file.

    Some of its class probabilities underflow to zero.
    """
    random = np.random.RandomState(0)
    graph = FrozenGraph()
    kinds = {"T": np.float32}

    def convolution(name: str, source: str, size: int, channels: tuple[int, int], stride: int, padding: bytes) -> str:
        weights = random.randn(size, size, *channels) * np.sqrt(2 / (size * size * channels[0]))
        graph.constant(f"{name}/conv2d_params", weights)
        graph.node(
            f"{name}/Conv2D", "Conv2D", source, f"{name}/conv2d_params",
            strides=[1, stride, stride, 1], padding=padding, use_cudnn_on_gpu=True, **kinds,
        )  # fmt: skip
        statistics = {
            "moving_mean": 0.1 * random.randn(channels[1]), "moving_variance": random.uniform(0.5, 2, channels[1]),
            "beta": 0.1 * random.randn(channels[1]), "gamma": random.uniform(0.5, 2, channels[1]),
        }  # fmt: skip
        parts = [graph.constant(f"{name}/batchnorm/{key}", value) for key, value in statistics.items()]
        graph.node(
            f"{name}/batchnorm", "BatchNormWithGlobalNormalization", f"{name}/Conv2D", *parts,
            variance_epsilon=0.001, scale_after_normalization=size != 3, **kinds,
        )  # fmt: skip
        graph.node(f"{name}/CheckNumerics", "CheckNumerics", f"{name}/batchnorm", message=b"conv", **kinds)
        graph.node(f"{name}/control_dependency", "Identity", f"{name}/batchnorm", f"^{name}/CheckNumerics", **kinds)
        return graph.node(name, "Relu", f"{name}/control_dependency", **kinds)

    graph.node("DecodeJpeg", "DecodeJpeg", graph.constant("DecodeJpeg/contents", b"no jpeg"), channels=3)
    graph.node("Cast", "Cast", "DecodeJpeg", SrcT=np.uint8, DstT=np.float32)
    graph.node("ExpandDims", "ExpandDims", "Cast", graph.constant("ExpandDims/dim", 0, np.int32), **kinds)
    size = graph.constant("ResizeBilinear/size", [75, 73], np.int32)
    graph.node("ResizeBilinear", "ResizeBilinear", "ExpandDims", size, align_corners=False, **kinds)
    graph.node("Sub", "Sub", "ResizeBilinear", graph.constant("Sub/y", 128), **kinds)
    graph.node("Mul", "Mul", "Sub", graph.constant("Mul/y", 1 / 128), **kinds)
    stem = convolution("conv", "Mul", 3, (3, 8), 2, b"VALID")
    pool = {"ksize": [1, 3, 3, 1], "padding": b"SAME", **kinds}
    graph.node("pool", "MaxPool", stem, strides=[1, 2, 2, 1], **pool)  # 37 x 36 -> 19 x 18
    graph.node("crop", "AvgPool", "pool", ksize=[1, 3, 2, 1], strides=[1, 1, 1, 1], padding=b"VALID", **kinds)
    spatial = convolution("mixed_6/conv", "crop", 5, (8, 12), 1, b"SAME")
    graph.node("tower/pool", "AvgPool", "crop", strides=[1, 1, 1, 1], **pool)
    tower = convolution("tower/conv", "tower/pool", 1, (8, 4), 1, b"SAME")
    axis = graph.constant("join/concat_dim", 3, np.int32)
    graph.node("join", "Concat", axis, spatial, tower, N=2, **kinds)
    graph.node("join_2", "ConcatV2", "join", tower, axis, N=2, Tidx=np.int32, **kinds)
    last = convolution("mixed_10", "join_2", 1, (20, 2048), 2, b"SAME")
    graph.node("shifted", "BiasAdd", last, graph.constant("bias", 0.1 * random.rand(2048)), **kinds)
    graph.node("pool_3/mean", "AvgPool", "shifted", ksize=[1, 9, 9, 1], strides=[1, 1, 1, 1], padding=b"VALID", **kinds)
    graph.node("twice", "Add", "pool_3/mean", "pool_3/mean", **kinds)
    graph.node("pool_3", "Reshape", "twice", graph.constant("shape", [-1, 1, 1, 2048], np.int32), **kinds)
    graph.node("pool_3/_reshape", "Reshape", "pool_3", graph.constant("one", [1, 2048], np.int32), **kinds)
    graph.constant("softmax/weights", 8 * random.randn(2048, 1008) / 32)
    graph.node("softmax/logits/MatMul", "MatMul", "pool_3/_reshape", "softmax/weights", **kinds)
    graph.node("softmax", "Softmax", "softmax/logits/MatMul", **kinds)
    return graph.write(path)

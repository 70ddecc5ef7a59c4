"""Frozen TensorFlow graphs (GraphDef) as plain nodes and arrays, read without TensorFlow.

The format's messages are in TensorBoard. What is allocated beyond them is in proportion to the file's size plus
``FILL_ROOM``.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from guided_diffusion.errors import InputError
from guided_diffusion.io.reading import decoding, open_readable, reading_errors

MAX_FILE_BYTES = 1 << 31  # protobuf's own limit
MAX_RANK = 8
FILL_ROOM = 1 << 26  # bytes that constants written as one repeated value may take beyond the file's own size

# Number of a type in types.proto -> itself and the field of a TensorProto that holds its values.
_DTYPES = {
    1: (np.float32, "float_val"), 2: (np.float64, "double_val"), 3: (np.int32, "int_val"), 4: (np.uint8, "int_val"),
    5: (np.int16, "int_val"), 6: (np.int8, "int_val"), 9: (np.int64, "int64_val"), 10: (np.bool_, "bool_val"),
}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """One operation: its inputs are ``name``, ``name:output`` or, for order only, ``^name``.

    ``attributes`` holds bytes, int, float, bool, numpy dtypes, tuples of int (lists of anything else are empty)
    and arrays; values of other kinds are left out.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    attributes: dict[str, Any]

    def attribute(self, key: str, kind: type, default: Any = None) -> Any:
        """Return the attribute ``key``, by default ``default``; ``ValueError`` if it is no ``kind``."""
        value = self.attributes.get(key, default)
        if not isinstance(value, kind):
            raise ValueError(f"found attribute {key} {value!r:.60}, expected {kind.__name__}")
        return value


def read_graph(path: str | os.PathLike) -> dict[str, Node]:
    """Return the nodes of a frozen graph by name, in file order; arrays are read-only and little-endian.

    Raises ``InputError`` naming ``path`` if it cannot be read or is no graph, and where TensorBoard is missing.
    """
    try:
        from tensorboard.compat.proto.graph_pb2 import GraphDef
    except ImportError as error:
        advice = "install it with pip install tensorboard"
        raise InputError(f"{path}: reading a frozen graph needs TensorBoard ({error}); {advice}") from error
    data, nodes = read_bytes(path), {}
    with decoding(path, "not a frozen TensorFlow graph"):
        room = [len(data) + FILL_ROOM]
        for message in GraphDef.FromString(data).node:
            texts = (message.name, message.op, *message.input, *message.attr)
            if strange := [text for text in texts if not text.isprintable()]:  # error messages quote them
                raise ValueError(f"found the name {strange[0]!r:.60}")
            if message.name in nodes:
                raise ValueError(f"two nodes are named {message.name!r:.60}")
            found = {key: _attribute(value, room) for key, value in message.attr.items()}
            attributes = {key: value for key, value in found.items() if value is not None}
            nodes[message.name] = Node(message.name, message.op, tuple(message.input), attributes)
    return nodes


def read_bytes(path: str | os.PathLike) -> bytes:
    """Return the bytes of a graph's file; ``InputError`` if it cannot be read, or is larger than a graph may be."""
    with reading_errors(path), open_readable(path, path) as file:
        if (size := os.fstat(file.fileno()).st_size) > MAX_FILE_BYTES:
            raise InputError(f"{path}: found {size} bytes, expected a frozen graph of at most {MAX_FILE_BYTES}")
        return file.read()


def _attribute(message: Any, room: list[int]) -> Any:
    """Return the value of an AttrValue; None for a kind that no frozen network needs."""
    match kind := message.WhichOneof("value"):
        case "s" | "i" | "f" | "b":
            return getattr(message, kind)
        case "list":
            return tuple(message.list.i)
        case "type":
            return np.dtype(_DTYPES[message.type][0]) if message.type in _DTYPES else None
        case "tensor":
            return _constant(message.tensor, room)


def _constant(message: Any, room: list[int]) -> np.ndarray | None:
    """Return the array of a TensorProto; None for a type that no frozen network needs, such as text.

    :param room: bytes left for constants whose values are not stored as one block. ``ValueError`` where none are left.
    """
    if message.dtype not in _DTYPES:
        return None
    dtype, field = np.dtype(_DTYPES[message.dtype][0]), _DTYPES[message.dtype][1]
    shape = tuple(dim.size for dim in message.tensor_shape.dim)
    if len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise ValueError(f"a constant has the shape {str(shape):.60}")
    count, block = math.prod(shape), message.tensor_content
    if block:
        if len(block) != count * dtype.itemsize:
            raise ValueError(f"a constant of shape {shape} and type {dtype} has {len(block)} bytes")
        return np.frombuffer(block, dtype.newbyteorder("<")).reshape(shape)
    room[0] -= count * dtype.itemsize
    if room[0] < 0:
        raise ValueError("its constants are far larger than the file")
    values = np.array(getattr(message, field))
    if len(values) > count:
        raise ValueError(f"a constant of {count} elements has {len(values)} values")
    array = np.full(count, values[-1] if len(values) else 0).astype(dtype)  # the last one stands for all that follow
    array[: len(values)] = values.astype(dtype)
    array.flags.writeable = False
    return array.reshape(shape)

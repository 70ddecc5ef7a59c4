"""Frozen TensorFlow graphs (GraphDef in protobuf's wire format) as plain nodes and arrays, read by hand.

Only what a frozen network needs is decoded; unknown fields are skipped as protobuf prescribes. Nothing in the
file decides how deep we recurse, and what is allocated is in proportion to its size plus ``FILL_ROOM``.
Field numbers are those of TensorFlow's graph.proto, node_def.proto, attr_value.proto and tensor.proto.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from guided_diffusion.errors import InputError
from guided_diffusion.files import decoding, open_readable, reading

MAX_FILE_BYTES = 1 << 31  # protobuf's own limit
MAX_RANK = 8
FILL_ROOM = 1 << 26  # bytes that constants written as one repeated value may take beyond the file's own size

# Number of a type -> itself and the field of a TensorProto that holds its values.
_DTYPES = {
    1: (np.float32, 5), 2: (np.float64, 6), 3: (np.int32, 7), 4: (np.uint8, 7), 5: (np.int16, 7), 6: (np.int8, 7),
    9: (np.int64, 10), 10: (np.bool_, 11),
}  # fmt: skip
_FIXED = {5: np.dtype("<f4"), 6: np.dtype("<f8")}  # fields whose values have a fixed width; the others are varints


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
        """The attribute ``key``, ``default`` if it is not there; ``ValueError`` if it is no ``kind``."""
        value = self.attributes.get(key, default)
        if not isinstance(value, kind):
            raise ValueError(f"found attribute {key} {value!r:.60}, expected {kind.__name__}")
        return value


def read_graph(path: str | os.PathLike) -> dict[str, Node]:
    """The nodes of a frozen graph by name, in file order; arrays are read-only and little-endian.

    Raises ``InputError`` naming ``path`` if it cannot be read or is no graph.
    """
    with decoding(path, "not a frozen TensorFlow graph"):
        return _Reader(memoryview(read_bytes(path))).read()


def read_bytes(path: str | os.PathLike) -> bytes:
    """What a graph's file holds. ``InputError`` if it cannot be read, or is larger than a graph may be."""
    with reading(path), open_readable(path, path) as file:
        if (size := os.fstat(file.fileno()).st_size) > MAX_FILE_BYTES:
            raise InputError(f"{path}: found {size} bytes, expected a frozen graph of at most {MAX_FILE_BYTES}")
        return file.read()


class _Reader:
    """Messages to nodes. Every method raises ``ValueError`` for data that is not what it should be."""

    def __init__(self, data: memoryview):
        self.data = data
        self.room = len(data) + FILL_ROOM  # bytes left for constants whose values are not stored as one block

    def read(self) -> dict[str, Node]:
        nodes: dict[str, Node] = {}
        for field in _fields(self.data):
            match field:
                case 1, memoryview() as message:
                    node = self._node(message)
                    if node.name in nodes:
                        raise ValueError(f"two nodes are named {node.name!r:.60}")
                    nodes[node.name] = node
        return nodes

    def _node(self, data: memoryview) -> Node:
        name, op, inputs, attributes = "", "", [], {}
        for field in _fields(data):
            match field:
                case 1, memoryview() as text:
                    name = _text(text)
                case 2, memoryview() as text:
                    op = _text(text)
                case 3, memoryview() as text:
                    inputs.append(_text(text))
                case 5, memoryview() as message:
                    key, value = self._entry(message)
                    if value is not None:
                        attributes[key] = value
        return Node(name, op, tuple(inputs), attributes)

    def _entry(self, data: memoryview) -> tuple[str, Any]:
        """One attribute, its value None if it is of a kind that no frozen network needs."""
        key, value = "", None
        for field in _fields(data):
            match field:
                case 1, memoryview() as text:
                    key = _text(text)
                case 2, memoryview() as message:
                    value = self._attribute(message)
        return key, value

    def _attribute(self, data: memoryview) -> Any:
        value = None
        for field in _fields(data):
            match field:
                case 1, memoryview() as message:  # a list, of which 3 are the integers
                    parts = [_numbers(part, None) for number, part in _fields(message) if number == 3]
                    value = tuple(np.concatenate(parts).tolist()) if parts else ()
                case 2, memoryview() as text:
                    value = bytes(text)
                case 3, int() as integer:
                    value = _signed(integer)
                case 4, bytes() as single if len(single) == 4:
                    value = np.frombuffer(single, "<f4").item()
                case 5, int() as flag:
                    value = bool(flag)
                case 6, int() as kind:
                    value = np.dtype(_DTYPES[kind][0]) if kind in _DTYPES else None
                case 8, memoryview() as message:
                    value = self._tensor(message)
        return value

    def _tensor(self, data: memoryview) -> np.ndarray | None:
        """A constant; None if it is of a type that no frozen network needs, such as text."""
        kind, shape, block = 0, (), b""
        values: dict[int, list[np.ndarray]] = {number: [] for _, number in _DTYPES.values()}
        for number, value in _fields(data):
            match number, value:
                case 1, int():
                    kind = value
                case 2, memoryview():
                    shape = _shape(value)
                case 4, memoryview():
                    block = value
                case (5 | 6 | 7 | 10 | 11), _:
                    values[number].append(_numbers(value, _FIXED.get(number)))
        if kind not in _DTYPES:
            return None
        dtype, number = np.dtype(_DTYPES[kind][0]), _DTYPES[kind][1]
        if not block:
            return self._fill(values[number], dtype, math.prod(shape)).reshape(shape)
        if len(block) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"a constant of shape {shape} and type {dtype} has {len(block)} bytes")
        return np.frombuffer(block, dtype.newbyteorder("<")).reshape(shape)

    def _fill(self, parts: list[np.ndarray], dtype: np.dtype, count: int) -> np.ndarray:
        """``count`` elements, the last of the values given repeated as often as it takes; zeros if none are."""
        self.room -= count * dtype.itemsize
        if self.room < 0:
            raise ValueError("its constants are far larger than the file")
        values = np.concatenate(parts) if parts else np.zeros(0)
        if len(values) > count:
            raise ValueError(f"a constant of {count} elements has {len(values)} values")
        array = np.full(count, values[-1] if len(values) else 0).astype(dtype)
        array[: len(values)] = values.astype(dtype)
        array.flags.writeable = False
        return array


def _fields(data: memoryview) -> Iterator[tuple[int, int | bytes | memoryview]]:
    """The numbered fields of a message: int where written as varint, bytes of fixed width, else a memoryview."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ValueError("found a field numbered 0")
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == 2:
            length, position = _varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"found a field of unknown wire type {wire}")
        if length > len(data) - position:
            raise ValueError("a field is cut short")
        value = data[position : position + length]
        yield number, value if wire == 2 else bytes(value)
        position += length


def _text(data: memoryview) -> str:
    text = str(data, "utf-8")
    if not text.isprintable():  # error messages quote it
        raise ValueError(f"found the name {text!r:.60}")
    return text


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """An unsigned number of at most 64 bits and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if position == len(data):
            raise ValueError("a number is cut short")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, position
    raise ValueError("a number has more than ten bytes")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _numbers(value: int | bytes | memoryview, fixed: np.dtype | None) -> np.ndarray:
    """One occurrence of a repeated number: a single one, or several packed. ``fixed``: their type, if no varints."""
    if fixed is not None and not isinstance(value, int):
        return np.frombuffer(value, fixed)
    if fixed is not None or isinstance(value, bytes):
        raise ValueError("found a number of another type than its field has")
    if isinstance(value, int):
        return np.array([_signed(value)])
    found, position = [], 0
    while position < len(value):
        number, position = _varint(value, position)
        found.append(_signed(number))
    return np.array(found, dtype=np.int64)


def _shape(data: memoryview) -> tuple[int, ...]:
    shape = []
    for field in _fields(data):
        match field:
            case 2, memoryview() as message:
                sizes = [size for number, size in _fields(message) if number == 1 and isinstance(size, int)]
                shape.append(_signed(sizes[-1]) if sizes else 0)
    if len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise ValueError(f"a constant has the shape {str(shape):.60}")
    return tuple(shape)

"""Reading GraphDef files: as TensorFlow reads them, and what is not one is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.frozen_graphs import FrozenGraph, write_inception_like_graph
from evaluations.features import graphdef
from evaluations.features.graphdef import read_graph
from evaluations.features.inception_torch import fold_batch_norms
from evaluations.features.tf_graph import TorchGraph
from guided_diffusion.errors import InputError

tf = pytest.importorskip("tensorflow.compat.v1")


def test_nodes_are_tensorflows(tmp_path):
    path = write_inception_like_graph(tmp_path / "g.pb")
    expected = tf.GraphDef.FromString(path.read_bytes()).node
    found = read_graph(path)
    assert list(found) == [node.name for node in expected]
    for one, other in zip(found.values(), expected, strict=True):
        assert (one.op, list(one.inputs)) == (other.op, list(other.input))
        for key, attribute in other.attr.items():
            kind = attribute.WhichOneof("value")
            if kind == "tensor":
                if attribute.tensor.dtype != tf.string:
                    np.testing.assert_array_equal(one.attributes[key], tf.make_ndarray(attribute.tensor))
            elif kind == "type":
                kept = one.attributes.get(key)
                assert kept == tf.as_dtype(attribute.type).as_numpy_dtype or attribute.type == tf.string
            else:
                value = attribute.list.i if kind == "list" else getattr(attribute, kind)
                assert one.attributes[key] == (tuple(value) if kind == "list" else value)


def _read_constant(tmp_path: Path, **fields: object) -> np.ndarray:
    """What we read of a TensorProto with these fields; TensorFlow's opinion of it must be the same."""
    shape = fields.pop("shape", [])
    graph = FrozenGraph()
    tensor = graph.definition.node.add(name="c", op="Const").attr["value"].tensor
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    tensor.dtype = tf.as_dtype(fields.pop("dtype")).as_datatype_enum
    for key, value in fields.items():
        setattr(tensor, key, value) if isinstance(value, bytes) else getattr(tensor, key).extend(value)
    found = read_graph(graph.write(tmp_path / "g.pb"))["c"].attributes["value"]
    expected = tf.make_ndarray(tensor)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)
    return found


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32, np.uint8, np.int16, np.int8, np.int64, np.bool_])
def test_constants_as_values_and_as_bytes(tmp_path, kind):
    values = np.array([[1, 0, 1], [3, -7, 100]]).astype(kind)
    field = {"f": "float_val", "i": "int_val", "u": "int_val", "b": "bool_val"}[np.dtype(kind).kind]
    field = {np.float64: "double_val", np.int64: "int64_val"}.get(kind, field)
    flat = values.ravel().tolist()
    for written in ({"tensor_content": values.tobytes()}, {field: flat}, {field: flat[:4]}, {field: flat[:1]}, {}):
        found = _read_constant(tmp_path, dtype=kind, shape=[2, 3], **written)
        assert not found.flags.writeable
    assert _read_constant(tmp_path, dtype=kind, **{field: flat[:1]}).shape == ()
    assert _read_constant(tmp_path, dtype=kind, shape=[0, 5]).shape == (0, 5)


def test_numbers_one_by_one(tmp_path):
    """Writers may leave repeated numbers unpacked, as the first ones did."""
    floats = b"".join(b"\x2d" + np.float32(value).tobytes() for value in (1.5, -2))
    tensor = b"\x08\x01" + b"\x12\x04\x12\x02\x08\x02" + floats  # float, shape [2], two values
    entry = b"\x0a\x05value" + b"\x12" + bytes([len(tensor) + 2]) + b"\x42" + bytes([len(tensor)]) + tensor
    node = b"\x0a\x01c" + b"\x2a" + bytes([len(entry)]) + entry
    (tmp_path / "g.pb").write_bytes(b"\x0a" + bytes([len(node)]) + node)
    assert read_graph(tmp_path / "g.pb")["c"].attributes["value"].tolist() == [1.5, -2]
    assert tf.make_ndarray(
        tf.GraphDef.FromString((tmp_path / "g.pb").read_bytes()).node[0].attr["value"].tensor
    ).tolist() == [1.5, -2]


def _tensor(*sizes: int, content: bytes = b"", name: str = "c") -> bytes:
    """A file of one constant. Files may be joined to one."""
    graph = FrozenGraph()
    tensor = graph.definition.node.add(name=name, op="Const").attr["value"].tensor
    tensor.dtype, tensor.tensor_content = 1, content
    for size in sizes:
        tensor.tensor_shape.dim.add(size=size)
    return graph.definition.SerializeToString()


DAMAGED = {
    "text": (b"no graph at all", "rror parsing"),
    "field beyond the end": (b"\x0a\x05abc", "rror parsing"),
    "number beyond the end": (b"\x0a\xff", "rror parsing"),
    "endless number": (b"\x18" + b"\xff" * 20, "rror parsing"),
    "field 0": (b"\x00\x01", "rror parsing"),
    "name that is no text": (b"\x0a\x03\x0a\x01\xff", "rror parsing"),
    "name of two lines": (b"\x0a\x03\x0a\x01\n", r"found the name '\\n'"),
    "huge constant": (_tensor(1 << 40), "far larger than the file"),
    "overflowing constant": (_tensor(*[1 << 62] * 8), "far larger than the file"),
    "large constants together": (_tensor(9_000_000) + _tensor(9_000_000, name="d"), "far larger than the file"),
    "negative size": (_tensor(-1), "has the shape"),
    "many dimensions": (_tensor(*[1] * 9), "has the shape"),
    "too few bytes": (_tensor(4, content=bytes(12)), r"constant of shape \(4,\) and type float32 has 12 bytes"),
    "two of a name": (_tensor(1) * 2, "two nodes are named 'c'"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files(tmp_path, kind):
    content, complaint = DAMAGED[kind]
    (tmp_path / "g.pb").write_bytes(content)
    with pytest.raises(InputError, match=rf"g\.pb: not a frozen TensorFlow graph: .*{complaint}") as caught:
        read_graph(tmp_path / "g.pb")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="none.pb: no such file"):
        read_graph(tmp_path / "none.pb")
    with pytest.raises(InputError, match="found a folder, expected a regular file"):
        read_graph(tmp_path)
    monkeypatch.setattr(graphdef, "MAX_FILE_BYTES", 10)
    (tmp_path / "g.pb").write_bytes(bytes(11))
    with pytest.raises(InputError, match="found 11 bytes, expected .* at most 10"):
        read_graph(tmp_path / "g.pb")


def _small_graph() -> bytes:
    """One of each kind of operation that has attributes or reads shapes; about 2 KB."""
    graph = FrozenGraph()
    kinds = {"T": np.float32}
    graph.placeholder("x")
    size = graph.constant("size", [6, 5], np.int32)
    graph.node("large", "ResizeBilinear", "x", size, align_corners=True, **kinds)
    graph.constant("weights", np.ones((2, 2, 3, 2)))
    graph.node("conv", "Conv2D", "large", "weights", strides=[1, 2, 1, 1], padding=b"SAME", **kinds)
    parts = [graph.constant(f"part{i}", [1.0, 2.0]) for i in range(4)]
    kinds_norm = {"variance_epsilon": 0.1, "scale_after_normalization": True, **kinds}
    graph.node("norm", "BatchNormWithGlobalNormalization", "conv", *parts, **kinds_norm)
    graph.node("check", "CheckNumerics", "norm", message=b"conv", **kinds)
    window = {"ksize": [1, 2, 3, 1], "strides": [1, 1, 2, 1], "padding": b"SAME", **kinds}
    graph.node("max", "MaxPool", "norm", "^check", **window)
    graph.node("mean", "AvgPool", "norm", **window)
    graph.node("join", "Concat", graph.constant("axis", 3, np.int32), "max", "mean", N=2, **kinds)
    graph.node("y", "Reshape", "join", graph.constant("shape", [2, -1], np.int32), **kinds)
    return graph.definition.SerializeToString()


SMALL_GRAPH = _small_graph()


def _read_and_run(path: Path) -> torch.Tensor:
    nodes = fold_batch_norms(read_graph(path))
    return TorchGraph(nodes, ["y:0"], ["x:0"], source=str(path)).run({"x:0": torch.ones(2, 4, 4, 3)})[0]


def test_undamaged_small_graph(tmp_path):
    (tmp_path / "g.pb").write_bytes(SMALL_GRAPH)
    assert _read_and_run(tmp_path / "g.pb").shape == (2, 36)


def _try(path: Path, content: bytes) -> None:
    """Damage is either refused in one line that names the file, or harmless."""
    path.write_bytes(content)
    try:
        _read_and_run(path)
    except InputError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)


def test_every_truncation(tmp_path):
    for length in range(0, len(SMALL_GRAPH), 3):
        _try(tmp_path / "g.pb", SMALL_GRAPH[:length])


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, len(SMALL_GRAPH) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes(tmp_path_factory, changes):
    content = bytearray(SMALL_GRAPH)
    for position, byte in changes:
        content[position] = byte
    _try(tmp_path_factory.getbasetemp() / "g.pb", bytes(content))


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=64))
def test_any_bytes(tmp_path_factory, content):
    _try(tmp_path_factory.getbasetemp() / "g.pb", content)

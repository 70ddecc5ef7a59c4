"""Every operation of the Inception graph in torch against TensorFlow's own, and what holds of graphs of them."""

from __future__ import annotations

import itertools
import weakref

import numpy as np
import pytest
import torch

pytest.importorskip("tensorflow")
from benchmarks.frozen_graphs import FrozenGraph, write_inception_like_graph
from evaluations.features import tf_graph
from evaluations.features.graphdef import Node, read_graph
from evaluations.features.inception_torch import fold_batch_norms
from evaluations.features.tf_graph import TorchGraph
from evaluations.features.tf_ops import OPS
from guided_diffusion.errors import InputError

FLOAT = {"T": np.float32}
SIZES = [(7, 7), (8, 8), (9, 12), (12, 9)]


@pytest.fixture
def graph():
    return FrozenGraph()


@pytest.fixture
def compare(graph, tmp_path):
    """Run nodes of the graph in both; each result has the same type and shape and the same values."""

    def _compare(fetches: list[str], rtol: float = 1e-6, atol: float = 1e-6, **feeds: np.ndarray) -> None:
        nodes = read_graph(graph.write(tmp_path / "g.pb"))
        fetches = [f"{name}:0" for name in fetches]
        expected = graph.run(fetches, {f"{name}:0": value for name, value in feeds.items()})
        ours = TorchGraph(nodes, fetches, list(feeds))
        found = ours.run({name: torch.tensor(value) for name, value in feeds.items()})
        for name, one, other in zip(fetches, found, expected, strict=True):
            assert one.numpy().dtype == other.dtype and one.shape == other.shape, name
            np.testing.assert_allclose(one.numpy(), other, rtol, atol, err_msg=name)

    return _compare


def _images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randn(*shape).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
def test_convolutions(graph, compare, size):
    source = graph.placeholder("x")
    names = []
    windows = [(1, 1), (2, 2), (3, 3), (5, 5), (1, 7), (7, 1), (4, 3)]
    for (height, width), stride, padding in itertools.product(windows, [(1, 1), (2, 2), (3, 2)], [b"SAME", b"VALID"]):
        name = f"w{height}x{width}/by{stride[0]}x{stride[1]}/{padding.decode()}"
        weights = graph.constant(f"{name}/weights", _images(height, width, 3, 4, seed=height))
        names.append(graph.node(name, "Conv2D", source, weights, strides=[1, *stride, 1], padding=padding, **FLOAT))
    compare(names, rtol=1e-5, atol=2e-5, x=_images(2, *size, 3))


@pytest.mark.parametrize("op", ["MaxPool", "AvgPool"])
@pytest.mark.parametrize("size", SIZES)
def test_pools(graph, compare, size, op):
    """Far from zero, so that padding which takes part would show at the borders."""
    source = graph.placeholder("x")
    names = []
    windows = [(1, 1), (2, 2), (3, 3), (5, 2), (4, 7)]
    for window, stride, padding in itertools.product(windows, [(1, 1), (2, 2), (1, 3)], [b"SAME", b"VALID"]):
        name = f"w{window[0]}x{window[1]}/by{stride[0]}x{stride[1]}/{padding.decode()}"
        attributes = {"ksize": [1, *window, 1], "strides": [1, *stride, 1], "padding": padding}
        names.append(graph.node(name, op, source, **attributes, **FLOAT))
    compare(names, x=_images(2, *size, 3) - 100, rtol=1e-6)


@pytest.mark.parametrize("size", [(17, 23), (32, 32), (1, 5), (301, 64)])
@pytest.mark.parametrize("aligned", [False, True])
def test_resizing(graph, compare, size, aligned):
    source = graph.placeholder("x")
    names = []
    for height, width in [size, (34, 46), (8, 9), (299, 299), (1, 1), (5, 40)]:
        target = graph.constant(f"to{height}x{width}", [height, width], np.int32)
        name = f"resized{height}x{width}"
        names.append(graph.node(name, "ResizeBilinear", source, target, align_corners=aligned, **FLOAT))
    compare(names, x=_images(2, *size, 3), atol=2e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_batch_norm(graph, compare, scaled):
    statistics = [_images(6), abs(_images(6, seed=1)) + 0.1, _images(6, seed=2), _images(6, seed=3)]
    inputs = [graph.constant(f"part{i}", value) for i, value in enumerate(statistics)]
    kinds = {"variance_epsilon": 0.01, "scale_after_normalization": scaled, **FLOAT}
    graph.node("norm", "BatchNormWithGlobalNormalization", graph.placeholder("x"), *inputs, **kinds)
    compare(["norm"], x=_images(2, 5, 4, 6), rtol=1e-5)


@pytest.mark.parametrize("scaled", [False, True])
def test_folded_batch_norm(graph, tmp_path, scaled):
    """A convolution with its batch norm in one differs by rounding; where it cannot be made all stays as it is."""
    images, weights = _images(2, 6, 5, 3), _images(3, 3, 3, 4, seed=1)
    statistics = [_images(4), abs(_images(4, seed=2)) + 0.1, _images(4, seed=3), _images(4, seed=4)]
    graph.placeholder("x")
    graph.constant("weights", weights)
    graph.node("conv", "Conv2D", "x", "weights", strides=[1, 2, 1, 1], padding=b"SAME", **FLOAT)
    parts = [graph.constant(f"part{i}", value) for i, value in enumerate(statistics)]
    kinds = {"variance_epsilon": 0.01, "scale_after_normalization": scaled, **FLOAT}
    graph.node("norm", "BatchNormWithGlobalNormalization", "conv", *parts, **kinds)
    graph.node("y", "Relu", "norm", "^conv", **FLOAT)
    graph.node("shifted", "BatchNormWithGlobalNormalization", "y", *parts, **kinds)  # of no convolution
    nodes = read_graph(graph.write(tmp_path / "g.pb"))
    folded = fold_batch_norms(nodes)
    assert [folded[name].op for name in ("norm", "shifted")] == ["Conv2D", nodes["shifted"].op]
    expected = graph.run(["y:0", "shifted:0"], {"x:0": images})
    for one, other in zip(
        TorchGraph(folded, ["y", "shifted"], ["x"]).run({"x": torch.tensor(images)}), expected, strict=True
    ):
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-5, atol=1e-6 * abs(other).max())
    for name in ("weights", "part2"):  # a shape that does not fit is the graph's fault, and told when it runs
        damaged = fold_batch_norms({**nodes, name: _constant(name, np.ones(3, np.float32))})
        assert damaged["norm"].op == nodes["norm"].op


def test_joining(graph, compare):
    names = []
    x, y = graph.placeholder("x"), graph.placeholder("y")
    for axis in (0, 1, 2, 3, -1):
        place = graph.constant(f"axis{axis + 1}", axis, np.int32)
        names.append(graph.node(f"old{axis + 1}", "Concat", place, x, y, x, N=3, **FLOAT))
        names.append(graph.node(f"new{axis + 1}", "ConcatV2", x, y, place, N=2, Tidx=np.int32, **FLOAT))
    compare(names, x=_images(2, 3, 4, 5), y=_images(2, 3, 4, 5, seed=1), atol=0)


def test_shapes(graph, compare):
    x, names = graph.placeholder("x"), []
    for i, shape in enumerate(([-1], [3, -1, 2], [1, 1, 24])):
        names.append(graph.node(f"shape{i}", "Reshape", x, graph.constant(f"to{i}", shape, np.int32), **FLOAT))
    compare(names, x=_images(4, 1, 1, 6), atol=0)


def test_arithmetic(graph, compare):
    x = graph.placeholder("x")
    names = [graph.node("relu", "Relu", x, **FLOAT)]
    names += [graph.node("same", "Identity", x, **FLOAT), graph.node("fine", "CheckNumerics", x, message=b"", **FLOAT)]
    for i, other in enumerate((2.5, _images(5), _images(4, 1), _images(2, 3, 4, 5))):
        graph.constant(f"other{i}", other)
        names += [graph.node(f"{op}{i}", op, x, f"other{i}", **FLOAT) for op in ("Add", "Sub", "Mul")]
        names.append(graph.node(f"back{i}", "Sub", f"other{i}", x, **FLOAT))
    names.append(graph.node("bias", "BiasAdd", x, "other1", **FLOAT))
    compare(names, x=3 * _images(2, 3, 4, 5))


def test_whole_graph_from_images_to_features(tmp_path):
    """All operations at once."""
    path = write_inception_like_graph(tmp_path / "g.pb")
    nodes = read_graph(path)
    others = {"Const", "DecodeJpeg", "Cast", "ExpandDims", "MatMul", "Softmax"}  # before the images, after the features
    assert {node.op for node in nodes.values()} == {*OPS, *others}
    graph = FrozenGraph()
    graph.definition.ParseFromString(path.read_bytes())
    fetches = ["pool_3:0", "mixed_6/conv:0", "ResizeBilinear:0"]
    images = np.random.RandomState(0).randint(0, 256, (1, 40, 50, 3)).astype(np.float32)
    expected = graph.run(fetches, {"ExpandDims:0": images})
    found = TorchGraph(nodes, fetches, ["ExpandDims:0"]).run({"ExpandDims:0": torch.tensor(images)})
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-4, atol=1e-5 * abs(other).max())


def test_results_are_freed(monkeypatch):
    """Of a chain of ten, no more than what is read and what is written are ever held."""
    results, alive = [], []

    def relu(node, x):
        alive.append(sum(result() is not None for result in results))
        result = x.relu()
        results.append(weakref.ref(result))
        return result

    monkeypatch.setitem(tf_graph.OPS, "Relu", relu)
    nodes = {"x": Node("x", "Placeholder", (), {})}
    nodes |= {f"n{i}": Node(f"n{i}", "Relu", (f"n{i - 1}" if i else "x", "^n2")[: 1 + (i == 9)], {}) for i in range(10)}
    (last,) = TorchGraph(nodes, ["n9"], ["x"]).run({"x": torch.tensor([-1.0, 2.0])})
    assert last.tolist() == [0, 2] and len(results) == 10 and max(alive) == 1


def _named(*nodes: Node) -> dict[str, Node]:
    return {node.name: node for node in nodes}


def _constant(name: str, value: object) -> Node:
    return Node(name, "Const", (), {"value": np.asarray(value)})


BAD_GRAPHS = {
    "unknown operation": ([Node("y", "Erf", ("x",), {})], "node y is a Erf"),
    "missing node": ([Node("y", "Relu", ("z",), {})], "no node z"),
    "cycle": ([Node("y", "Relu", ("z",), {}), Node("z", "Relu", ("y",), {})], "needs its own result"),
    "second output": ([Node("y", "Relu", ("x:1",), {})], "x:1, expected operations of one output"),
    "axis that is no constant": ([Node("y", "Concat", ("x", "x"), {})], "node x is a Placeholder"),
    "axis that is no integer": ([Node("y", "Concat", ("c", "x"), {}), _constant("c", 0.5)], "type float64"),
    "too few inputs": ([Node("y", "ConcatV2", ("x",), {})], "found 1 inputs"),
    "wrong number of inputs": ([Node("y", "Relu", ("x", "x"), {})], r"node y \(Relu\)"),
    "text": ([Node("y", "Relu", ("c",), {}), Node("c", "Const", (), {})], "node c is a Const, expected a constant"),
    "attribute missing": ([Node("y", "MaxPool", ("x",), {})], "y .*attribute ksize None, expected tuple"),
    "zero stride": (
        [Node("y", "MaxPool", ("x",), {"ksize": (1, 2, 2, 1), "strides": (1, 0, 1, 1), "padding": b"SAME"})],
        r"y .*found strides \(1, 0, 1, 1\)",
    ),
    "layout": ([Node("y", "AvgPool", ("x",), {"data_format": b"NCHW"})], "expected NHWC"),
    "padding": (
        [Node("y", "AvgPool", ("x",), {"ksize": (1,) * 4, "strides": (1,) * 4, "padding": b"EXPLICIT"})],
        "expected SAME or VALID",
    ),
    "huge": ([Node("y", "ResizeBilinear", ("x", "c"), {}), _constant("c", [9, 1 << 30])], "found size"),
    "half pixels": (
        [Node("y", "ResizeBilinear", ("x", "c"), {"half_pixel_centers": True}), _constant("c", [9, 9])],
        "half_pixel_centers",
    ),
    "dilated": (
        [Node("y", "Conv2D", ("x", "c"), {"dilations": (1, 2, 2, 1)}), _constant("c", np.ones((1, 1, 3, 1)))],
        "dilations",
    ),
}


@pytest.mark.parametrize("kind", BAD_GRAPHS)
def test_bad_graphs_name_the_node(kind):
    nodes, complaint = BAD_GRAPHS[kind]
    nodes = _named(Node("x", "Placeholder", (), {}), *nodes)
    with pytest.raises(InputError, match=f"^file.pb: .*{complaint}") as caught:
        TorchGraph(nodes, ["y:0"], ["x:0"], source="file.pb").run({"x:0": torch.ones(1, 4, 4, 3)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_no_numbers(value):
    """A check is made although nobody reads its result, as TensorFlow makes it."""
    nodes = _named(
        Node("x", "Placeholder", (), {}),
        Node("check", "CheckNumerics", ("x",), {"message": b"here"}),
        Node("y", "Identity", ("x", "^check"), {}),
    )
    with pytest.raises(InputError, match=r"node check \(CheckNumerics\): found nan or infinite values \('here'\)"):
        TorchGraph(nodes, ["y"], ["x"]).run({"x": torch.tensor([1.0, value, 2.0])})


def test_nodes_that_are_not_needed_may_be_anything():
    nodes = _named(Node("x", "Placeholder", (), {}), Node("y", "Relu", ("x",), {}), Node("z", "Erf", ("w",), {}))
    assert TorchGraph(nodes, ["y", "x"], ["x"]).run({"x": torch.tensor([-1.0])})[0].item() == 0

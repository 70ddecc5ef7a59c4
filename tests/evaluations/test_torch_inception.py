"""The Inception graph in torch and in TensorFlow: one file, the same numbers; and without TensorFlow at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.frozen_graphs import FrozenGraph, write_inception_like_graph
from evaluations import evaluator
from evaluations.features.inception_tensorflow import InceptionExtractor, import_tensorflow
from evaluations.features.inception_torch import TorchInceptionExtractor
from guided_diffusion.errors import InputError
from tests.support.evaluations import make_images, write_frozen_graph
from tests.support.helpers import ROOT

tf = pytest.importorskip("tensorflow.compat.v1")
PROGRAM = ROOT / "evaluations" / "evaluator.py"
NAMES = ("pool", "spatial", "probabilities")


@pytest.fixture(scope="module", params=[write_inception_like_graph, write_frozen_graph])
def graph_path(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "graph.pb"
    request.param(path)
    return path


@pytest.fixture(scope="module")
def ours(graph_path):
    return TorchInceptionExtractor(graph_path)


def _batches(images: np.ndarray, size: int) -> list[np.ndarray]:
    return [images[begin : begin + size] for begin in range(0, len(images), size)]


def test_activations_are_tensorflows(graph_path, ours):
    theirs = InceptionExtractor(graph_path)
    for size in (20, 100):  # smaller and larger than what the graph resizes to
        batches = _batches(make_images(size, 11, size), 4)
        expected, found = theirs.compute_activations(batches), ours.compute_activations(batches)
        for name in NAMES:
            one, other = getattr(found, name), getattr(expected, name)
            assert (one.shape, one.dtype) == (other.shape, np.float32)
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * abs(other).max(), err_msg=name)


def test_batch_size_changes_nothing(ours):
    images = make_images(1, 9, 40)
    whole = ours.compute_features([images])
    for size in (1, 4):
        for one, other in zip(whole, ours.compute_features(_batches(images, size)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 * abs(one).max())
    pool = whole[0]
    ours.softmax_batch_size, kept = 2, ours.softmax_batch_size
    in_parts = ours.compute_probabilities(pool)
    ours.softmax_batch_size = kept
    np.testing.assert_allclose(in_parts, ours.compute_probabilities(pool), rtol=1e-4, atol=1e-9)


def test_grey_images_and_other_types(ours):
    images = make_images(2, 3, 20)
    (grey, _), (repeated, _), (single, _) = (
        ours.compute_features([batch])
        for batch in (images[..., :1], images[..., :1].repeat(3, axis=-1), images[..., :1].astype(np.float64))
    )
    np.testing.assert_array_equal(grey, repeated)
    np.testing.assert_array_equal(grey, single)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with the graph that holds all operations, a reference and samples."""
    directory = tmp_path_factory.mktemp("place")
    write_inception_like_graph(directory / "graph.pb")
    np.savez(directory / "ref.npz", make_images(3, 40, 32))
    np.savez(directory / "s.npz", make_images(4, 32, 32))
    return directory


def test_programs_agree(place, monkeypatch):
    monkeypatch.chdir(place)
    found = {}
    for engine in ("tensorflow", "torch"):
        arguments = ["ref.npz", "s.npz", "--inception", "graph.pb", "--engine", engine, "--json", f"{engine}.json"]
        monkeypatch.setattr(sys, "argv", ["evaluator.py", *arguments])
        evaluator.main()
        found[engine] = json.loads(Path(f"{engine}.json").read_text())
    ours, theirs = found["torch"], found["tensorflow"]
    assert (ours["engine"], theirs["engine"]) == ("inception (torch)", "inception")
    resize = "ResizeBilinear to 75x73 by the network's graph, align_corners=False, half_pixel_centers=False"
    assert ours["resize"] == theirs["resize"] == resize
    assert ours["fid"] == pytest.approx(theirs["fid"], rel=1e-4)
    assert ours["sfid"] == pytest.approx(theirs["sfid"], rel=1e-4)
    assert ours["inception_score"] == pytest.approx(theirs["inception_score"], rel=1e-4)
    assert (ours["precision"], ours["recall"]) == (theirs["precision"], theirs["recall"])


WITHOUT_TENSORFLOW = """
import runpy, sys
sys.modules["tensorflow"] = None  # an import of it fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_without_tensorflow(place):
    """Where it is not installed torch is taken, and gets by without it."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, PROGRAM, "ref.npz", "s.npz", "--inception", "graph.pb"],
        cwd=place, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert names == ["Inception Score", "FID", "sFID", "Precision", "Recall"]
    assert "torch runs the graph" in done.stderr


def test_a_graph_needs_tensorboards_messages(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.graph_pb2", None)
    with pytest.raises(InputError, match="graph.pb: reading a frozen graph needs TensorBoard"):
        TorchInceptionExtractor(place / "graph.pb")


def test_who_insists_on_tensorflow_is_told(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    arguments = ["ref.npz", "s.npz", "--inception", "graph.pb", "--engine", "tensorflow"]
    monkeypatch.setattr(sys, "argv", ["evaluator.py", *arguments])
    import_tensorflow.cache_clear()
    with pytest.raises(InputError, match="needs TensorFlow, which cannot be imported .*--engine torch"):
        evaluator.main()


def test_engine_is_inceptions_only(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["evaluator.py", "ref.npz", "s.npz", "--features", "x.pt", "--engine", "torch"])
    with pytest.raises(InputError, match="--engine torch: found --features"):
        evaluator.main()


@pytest.mark.parametrize("content", [b"", b"no graph at all", b"\x0a\x03abc"])
def test_file_that_is_no_inception_graph(tmp_path, content):
    (tmp_path / "g.pb").write_bytes(content)
    with pytest.raises(InputError, match=r"g\.pb: not (the|a) frozen") as caught:
        TorchInceptionExtractor(tmp_path / "g.pb")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="found a folder, expected a regular file"):
        TorchInceptionExtractor(tmp_path)


def test_graphs_with_other_shapes(tmp_path):
    """The right names are not enough."""

    def write(weights: list[int], *inputs: str) -> Path:
        graph = FrozenGraph()
        graph.placeholder("ExpandDims")
        for name in ("pool_3", "mixed_6/conv"):
            graph.node(name, "Relu", "ExpandDims", T=np.float32)
        graph.constant("w", np.zeros(weights))
        graph.node("softmax/logits/MatMul", "MatMul", *inputs, T=np.float32)
        return graph.write(tmp_path / "g.pb")

    with pytest.raises(InputError, match=r"weights \[5, 3\], expected \[2048, K\]"):
        TorchInceptionExtractor(write([5, 3], "pool_3", "w"))
    with pytest.raises(InputError, match="has 1 inputs"):
        TorchInceptionExtractor(write([2048, 3], "pool_3"))
    engine = TorchInceptionExtractor(write([2048, 3], "pool_3", "w"))
    with pytest.raises(InputError, match=r"g\.pb.*outputs have the shapes \[2, 4, 4, 3\]"):
        engine.compute_features([np.zeros((2, 4, 4, 3), np.uint8)])

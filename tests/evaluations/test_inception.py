"""The TensorFlow engine on a small frozen graph with Inception's node names."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.special import softmax

from evaluations import evaluator
from evaluations.features.base import Activations
from evaluations.features.inception import INCEPTION_V3_PATH
from evaluations.features.inception_tensorflow import InceptionExtractor
from guided_diffusion.errors import InputError
from tests.support.evaluations import make_images, write_frozen_graph
from tests.support.helpers import ROOT

tf = pytest.importorskip("tensorflow.compat.v1")

STORED = json.loads((ROOT / "tests" / "data" / "evaluator_end_to_end.json").read_text())


@pytest.fixture(scope="module")
def graph_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "graph.pb"
    write_frozen_graph(path)
    return path


@pytest.fixture(scope="module")
def engine(graph_path):
    return InceptionExtractor(graph_path)


def _batches(images, size):
    return [images[begin : begin + size] for begin in range(0, len(images), size)]


def test_activations_are_upstreams(engine):
    images = make_images(*STORED["samples"])
    found = engine.compute_activations(_batches(images, 64))
    stored = STORED["sample_activations"]
    assert [list(found.pool.shape), list(found.spatial.shape)] == stored["shapes"] == [[70, 2048], [70, 2023]]
    assert {found.pool.dtype, found.spatial.dtype, found.probabilities.dtype} == {np.dtype(np.float32)}
    np.testing.assert_allclose(found.pool[0, :4], stored["pool_first"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.spatial[0, :10], stored["spatial_first"], rtol=1e-4, atol=1e-5)
    assert found.pool.sum(dtype=np.float64) == pytest.approx(stored["pool_sum"], rel=1e-5)
    assert found.spatial.sum(dtype=np.float64) == pytest.approx(stored["spatial_sum"], rel=1e-4)


def test_probabilities_have_no_bias(engine, graph_path):
    frozen = tf.GraphDef.FromString(graph_path.read_bytes())
    constants = [tf.make_ndarray(node.attr["value"].tensor) for node in frozen.node if node.op == "Const"]
    (weights,) = [array for array in constants if array.shape == (2048, 1008)]
    pool = np.random.RandomState(0).randn(600, 2048).astype(np.float32) / 30
    expected = softmax(pool.astype(np.float64) @ weights, axis=1)
    np.testing.assert_allclose(engine.compute_probabilities(pool), expected, rtol=1e-4, atol=1e-9)


def test_native_sizes_and_batch_sizes(engine):
    """Any image size and batch size, although the graph was frozen for one image a batch."""
    for size in (20, 68, 100):
        images = make_images(1, 9, size)
        whole = engine.compute_features([images])
        for batch_size in (1, 4):
            for one, other in zip(whole, engine.compute_features(_batches(images, batch_size)), strict=True):
                assert one.shape == other.shape == (9, one.shape[1])
                np.testing.assert_allclose(one, other, atol=1e-5)
    assert engine._pool.shape.as_list() == [None, 2048]


def test_grey_images_are_repeated(engine):
    grey = make_images(2, 3, 20)[..., :1]
    for one, other in zip(
        engine.compute_features([grey]), engine.compute_features([grey.repeat(3, axis=-1)]), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("content", [b"", b"no graph at all", b"\x0a\x03abc"])
def test_file_that_is_no_inception_graph(tmp_path, content):
    (tmp_path / "g.pb").write_bytes(content)
    with pytest.raises(InputError, match=r"g\.pb: not the frozen Inception graph") as caught:
        InceptionExtractor(tmp_path / "g.pb")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="found a folder, expected a regular file"):
        InceptionExtractor(tmp_path)


def test_upstreams_evaluator_class(tmp_path, monkeypatch, graph_path):
    (tmp_path / INCEPTION_V3_PATH).symlink_to(graph_path)
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", make_images(*STORED["samples"]))
    with tf.Session(graph=tf.Graph()) as session:
        ours = evaluator.Evaluator(session, batch_size=32)
        ours.warmup()
        pool, spatial = ours.read_activations("a.npz")
        assert [list(pool.shape), list(spatial.shape)] == STORED["sample_activations"]["shapes"]
        assert ours.compute_inception_score(pool) == pytest.approx(
            STORED["stdout"]["Inception Score"], rel=1e-5
        )
        precision, recall = ours.compute_prec_recall(pool, pool)
        assert (precision, recall) == (1.0, 1.0)
        first, second = ours.read_statistics("a.npz", (pool, spatial))
        assert (first.mu.shape, second.sigma.shape) == ((2048,), (2023, 2023))
        np.savez("b.npz", mu=np.zeros(2), sigma=np.eye(2), mu_s=np.ones(3), sigma_s=np.eye(3))
        stored = ours.read_statistics("b.npz", (pool, spatial))
        assert (stored[0].mu.tolist(), stored[1].mu.tolist()) == ([0, 0], [1, 1, 1])
        with evaluator.open_npz_array("a.npz", "arr_0") as reader:
            assert reader.remaining() == 70


@pytest.mark.slow
def test_program_prints_upstreams_numbers(tmp_path, graph_path):
    """From another directory, in a process of its own: five lines on stdout, no TensorFlow chatter."""
    np.savez(tmp_path / "ref.npz", make_images(*STORED["reference"]))
    np.savez_compressed(tmp_path / "s.npz", make_images(*STORED["samples"]), np.arange(70))
    done = subprocess.run(
        [sys.executable, ROOT / "evaluations/evaluator.py", "ref.npz", "s.npz"]
        + ["--inception", graph_path, "--json", "new/out.json"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [line.split(": ") for line in done.stdout.splitlines()]
    assert [name for name, _ in found] == ["Inception Score", "FID", "sFID", "Precision", "Recall"]
    values = {name: float(value) for name, value in found}
    stored = STORED["stdout"]
    assert values["Inception Score"] == pytest.approx(stored["Inception Score"], rel=1e-5)
    assert values["FID"] == pytest.approx(stored["FID"], rel=1e-4)
    assert values["sFID"] == pytest.approx(stored["sFID"], rel=1e-4)
    assert abs(values["Precision"] - stored["Precision"]) <= 1.01 / 70  # upstream compares in half precision
    assert abs(values["Recall"] - stored["Recall"]) <= 1.01 / 90
    written = json.loads((tmp_path / "new/out.json").read_text())
    assert written["fid"] == values["FID"] and written["sfid"] == values["sFID"]
    assert (written["n_reference"], written["n_samples"], written["engine"]) == (90, 70, "inception")
    assert written["accuracy"] is None and written["samples"] == str(tmp_path / "s.npz")
    for noise in ("oneDNN", "absl", "rebuild TensorFlow", "deprecated", "Warning"):
        assert noise not in done.stderr


class _FewDimensions:
    """Stands for Inception with 3 and 2 feature dimensions."""

    name, batch_size, uses_stored_statistics = "few", 4, True

    def check(self, path, shape):
        pass

    def compute_activations(self, batches):
        images = np.concatenate(list(batches)).astype(np.float32)
        means = images.mean(axis=(1, 2))
        return Activations(means, means[:, :2], np.full((len(images), 2), 0.5, np.float32))


def test_stored_statistics_replace_computed_ones(tmp_path):
    reference, samples = make_images(3, 12, 8), make_images(4, 10, 8)
    np.savez(tmp_path / "s.npz", samples)
    features = reference.astype(np.float32).mean(axis=(1, 2))
    statistics = {"mu": features.mean(axis=0), "sigma": np.cov(features, rowvar=False)}
    statistics |= {"mu_s": features[:, :2].mean(axis=0), "sigma_s": np.cov(features[:, :2], rowvar=False)}
    np.savez(tmp_path / "plain.npz", reference)
    np.savez(tmp_path / "stored.npz", reference, **statistics)
    np.savez(tmp_path / "moved.npz", reference, **{**statistics, "mu": statistics["mu"] + 10})
    np.savez(tmp_path / "other.npz", reference, **{**statistics, "mu": np.zeros(2), "sigma": np.eye(2)})
    plain, stored, moved = (
        evaluator.evaluate(tmp_path / name, tmp_path / "s.npz", _FewDimensions())
        for name in ("plain.npz", "stored.npz", "moved.npz")
    )
    assert stored.fid == pytest.approx(plain.fid, rel=1e-6) and stored.sfid == pytest.approx(
        plain.sfid, rel=1e-6
    )
    shift = 300 + 20 * (statistics["mu"] - samples.astype(np.float32).mean(axis=(0, 1, 2))).sum()
    assert moved.fid == pytest.approx(plain.fid + shift, rel=1e-5)
    assert (moved.sfid, moved.precision, moved.recall) == (stored.sfid, plain.precision, plain.recall)
    with pytest.raises(InputError, match="found stored statistics mu of 2 dimensions, expected 3 for"):
        evaluator.evaluate(tmp_path / "other.npz", tmp_path / "s.npz", _FewDimensions())

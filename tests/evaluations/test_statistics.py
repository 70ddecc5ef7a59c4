"""Statistics stored in a file: alone, of pooled features only, of another network, of an unknown one."""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from evaluations import evaluator, make_reference
from evaluations.summary import format_markdown, format_metrics
from evaluations.upstream_api import Evaluator, FIDStatistics
from guided_diffusion.errors import InputError
from tests.support.evaluations import REFERENCE, SAMPLES, StoredFeatures, write_folder

OTHER = "0" * 64


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("ref.npz", REFERENCE)
    np.savez("s.npz", SAMPLES)
    Path("weights").write_bytes(b"weights")
    return tmp_path


@pytest.fixture
def engine(place):
    found = StoredFeatures()
    found.weights_path = Path("weights")
    return found


def _pooled(scale: float = 1.0) -> dict[str, np.ndarray]:
    pool = StoredFeatures().compute_activations([REFERENCE]).pool * scale
    return {"mu": pool.mean(axis=0), "sigma": np.cov(pool, rowvar=False)}


def _settings(digest: str | None) -> dict[str, np.ndarray]:
    return {"settings": np.array(json.dumps({"network_sha256": digest}))}


def _about(metrics, text: str) -> list[str]:
    return [line for line in metrics.warnings if text in line]


def test_mu_and_sigma_alone_give_the_distance_of_these_statistics(place, engine, monkeypatch):
    np.savez("stats.npz", **_pooled())
    found = evaluator.evaluate("stats.npz", "s.npz", engine, bootstrap=3, paired="s.npz", paired_rounds=1)
    pool = engine.compute_activations([SAMPLES]).pool
    theirs = FIDStatistics(*_pooled().values()), FIDStatistics(pool.mean(axis=0), np.cov(pool, rowvar=False))
    assert found.fid == pytest.approx(theirs[1].frechet_distance(theirs[0]), rel=1e-6)
    assert found.inception_score == evaluator.evaluate("ref.npz", "s.npz", engine).inception_score
    assert found.sfid is found.precision is found.recall is None
    assert _about(found, "holds no images: no precision, no recall") and _about(found, "(mu_s, sigma_s): no sFID")
    assert [line.split(":")[0] for line in format_metrics(found)[:2]] == ["Inception Score", "FID"]
    assert "sFID" not in "".join(format_metrics(found) + format_markdown(found))
    assert set(found.intervals) == set(found.paired) == {"inception_score", "fid"}


def test_images_with_mu_and_sigma_have_their_own_sfid(place, engine):
    np.savez("both.npz", REFERENCE, **_pooled())
    both, plain = (evaluator.evaluate(name, "s.npz", engine) for name in ("both.npz", "ref.npz"))
    assert both.sfid == plain.sfid and both.fid == pytest.approx(plain.fid, rel=1e-5)


def test_upstreams_evaluator_takes_them_too(place):
    np.savez("stats.npz", **_pooled())
    activations = np.random.default_rng(0).normal(size=(2, 30, 12)).astype(np.float32)
    api = Evaluator.__new__(Evaluator)
    pool, spatial = api.read_statistics("stats.npz", tuple(activations))
    np.testing.assert_array_equal(pool.mu, _pooled()["mu"])
    np.testing.assert_array_equal(spatial.mu, activations[1].mean(axis=0))


def test_pickled_statistics_are_refused_with_a_way_out(place, engine):
    Path("edm.pkl").write_bytes(pickle.dumps({"fid": _pooled()}))
    with pytest.raises(InputError, match=r"edm.pkl: found a pickle, .*never loaded, expected an npz file;") as caught:
        evaluator.evaluate("edm.pkl", "s.npz", engine)
    line = str(caught.value)
    exec(line[line.index("import pickle") : line.rindex('"')])  # what it says to do
    assert evaluator.evaluate("edm.npz", "s.npz", engine).fid > 0
    Path("nameless").write_bytes(pickle.dumps([1]))
    with pytest.raises(InputError, match="nameless: found a pickle"):
        evaluator.evaluate("nameless", "s.npz", engine)


def test_statistics_of_another_network_are_computed_anew_from_the_images(place, engine):
    np.savez("old.npz", REFERENCE, **_pooled(scale=30.0), **_settings(OTHER))
    found, plain = (evaluator.evaluate(name, "s.npz", engine, bootstrap=2) for name in ("old.npz", "ref.npz"))
    assert (found.fid, found.sfid) == (plain.fid, plain.sfid)
    (line,) = _about(found, "another network")
    assert "old.npz: its statistics were made by another network (sha256 000000000000..., not " in line
    assert line.endswith("computed anew from the 24 images in it")


def test_statistics_of_another_network_without_images_are_refused(place, engine):
    np.savez("old.npz", **_pooled(), **_settings(OTHER))
    ran = []
    engine.compute_activations = ran.append
    with pytest.raises(InputError, match="old.npz: .*another network .* it holds no images to compute others from"):
        evaluator.evaluate("old.npz", "s.npz", engine)
    assert not ran


def test_statistics_of_this_network_need_no_word_and_those_of_an_unknown_one_do(place, engine):
    own = hashlib.sha256(b"weights").hexdigest()
    for name, settings in (("own", _settings(own)), ("unknown", {}), ("null", _settings(None))):
        np.savez(f"{name}.npz", REFERENCE, **_pooled(), **settings)
        found = evaluator.evaluate(f"{name}.npz", "s.npz", engine)
        assert bool(_about(found, "by this network is unknown: the file does not say")) == (name != "own")
    engine.weights_path = None
    assert _about(evaluator.evaluate("own.npz", "s.npz", engine), "colours nothing")


def test_the_width_is_checked_before_the_network_runs(place, engine):
    np.savez("dino.npz", **_pooled())
    engine.pool_dims, ran = 2048, []
    engine.compute_activations = ran.append
    with pytest.raises(InputError, match="dino.npz: found stored statistics mu of 12 dimensions, expected 2048 "):
        evaluator.evaluate("dino.npz", "s.npz", engine)
    assert not ran


def test_a_full_disk_costs_the_images_and_not_the_statistics(place, engine, monkeypatch):
    write_folder(place / "images", SAMPLES)
    save = np.savez

    def full(file, *images, **arrays):
        if "arr_0" in arrays:
            raise OSError(28, "No space left on device")
        save(file, *images, **arrays)

    monkeypatch.setattr(make_reference, "create_extractor", lambda args: engine)
    monkeypatch.setattr(make_reference.np, "savez", full)
    monkeypatch.setattr(sys, "argv", ["make_reference", "images", "out/r.npz", "--image_size", "16"])
    with pytest.raises(InputError, match="^out/r.npz: cannot be written: No space .* the images, are in ") as caught:
        make_reference.main()
    kept = str(caught.value).rpartition(" are in ")[2]
    assert not Path("out/r.npz").exists() and Path(kept).parent == Path("out").absolute()
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert evaluator.evaluate(kept, "s.npz", engine).fid == pytest.approx(0, abs=1e-6)


def test_a_disk_that_is_too_small_is_seen_before_the_network_runs(place, engine, monkeypatch):
    write_folder(place / "images", SAMPLES)
    monkeypatch.setattr(make_reference.shutil, "disk_usage", lambda folder: SimpleNamespace(free=15_000))
    monkeypatch.setattr(sys, "argv", ["make_reference", "images", "r.npz", "--image_size", "16"])
    with pytest.raises(InputError, match="r.npz: needs 1.54e-05 GB, found 1.5e-05 GB free; --num_images keeps fewer"):
        make_reference.main()

"""Folders, archives and several inputs as one; what results say about their inputs; the cache."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from evaluations import activations, evaluator, sanity_checks
from evaluations.features.classifier import ClassifierExtractor
from evaluations.image_sets import open_image_set, split_paths
from guided_diffusion.errors import InputError
from guided_diffusion.io import npz
from tests.support.evaluations import (
    REFERENCE,
    SAMPLES,
    StoredFeatures,
    make_images,
    png_bytes,
    write_classifier,
    write_folder,
)

FIVE = ("inception_score", "fid", "sfid", "precision", "recall")


def _write_zip(path: Path, images: np.ndarray) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__MACOSX/._0.png", b"no image")
        for i, pixels in enumerate(images):
            archive.writestr(f"a/{i:03d}.png", png_bytes(pixels))
    return path


def _write_tar(path: Path, images: np.ndarray) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for i, pixels in enumerate(images):
            member = tarfile.TarInfo(f"a/{i:03d}.png")
            data = png_bytes(pixels)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return ClassifierExtractor(write_classifier(tmp_path_factory.mktemp("network")))


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("ref.npz", REFERENCE)
    np.savez("s.npz", SAMPLES)
    return tmp_path


def test_every_kind_of_input_holds_the_same_images(place):
    np.savez_compressed("first.npz", SAMPLES[:7])
    np.savez("second.npz", SAMPLES[7:])
    inputs = [
        write_folder(place / "folder", SAMPLES), _write_zip(place / "s.zip", SAMPLES), "s.npz",
        _write_tar(place / "s.tar.gz", SAMPLES), ["first.npz", "second.npz"],
    ]  # fmt: skip
    for paths in inputs:
        images = open_image_set(paths)
        assert images.shape == SAMPLES.shape and images.labels() is None
        batches = images.batches(6)
        found = list(batches)
        assert len(found) == len(batches) and max(map(len, found)) <= 6
        np.testing.assert_array_equal(np.concatenate(found), SAMPLES)
        np.testing.assert_array_equal(np.concatenate(list(batches)), SAMPLES)  # and again
        assert len(images.digest()) == 64


def test_figures_do_not_depend_on_the_kind_of_input(place, engine):
    one = evaluator.evaluate("ref.npz", "s.npz", engine)
    np.savez("first.npz", SAMPLES[:8])
    rest = write_folder(place / "rest", SAMPLES[8:])
    other = evaluator.evaluate(_write_zip(place / "r.zip", REFERENCE), ["first.npz", rest], engine)
    for name in FIVE:
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-4)
    assert other.samples == f"{place / 'first.npz'},{place / 'rest'}" and other.n_samples == 20


def test_labels_from_names(place):
    write_folder(place / "folder", SAMPLES, np.arange(20) % 3)
    images = open_image_set("folder")
    assert images.labels().tolist() == (np.arange(20) % 3).tolist()
    np.testing.assert_array_equal(np.concatenate(list(images.batches(64))), SAMPLES)  # in the order of the index
    np.savez("l.npz", SAMPLES, np.arange(20) % 3)
    assert open_image_set(["l.npz", "folder"]).labels().shape == (40,)
    assert open_image_set(["l.npz", "s.npz"]).labels() is None


def test_grey_images_stay_grey_unless_one_is_not(place):
    folder = write_folder(place / "grey", SAMPLES[..., 0])
    images = open_image_set(folder)
    assert images.shape == (20, 16, 16, 1)
    np.testing.assert_array_equal(np.concatenate(list(images.batches(64))), SAMPLES[..., :1])
    (folder / "z.png").write_bytes(png_bytes(SAMPLES[0]))
    assert open_image_set(folder).shape == (21, 16, 16, 3)


def test_commas_in_names(place):
    assert split_paths("ref.npz,s.npz") == ["ref.npz", "s.npz"]
    np.savez("a,b.npz", SAMPLES)
    assert split_paths("a,b.npz") == ["a,b.npz"]


def _mixed():
    write_folder(Path("bad"), SAMPLES)
    Path("bad/z.png").write_bytes(png_bytes(make_images(0, 1, 24)[0]))


def _broken_image():
    write_folder(Path("bad"), SAMPLES)
    data = Path("bad/deep/004.png").read_bytes()
    Path("bad/deep/004.png").write_bytes(data[: len(data) // 2])


def _deep_colour():
    Path("bad").mkdir()
    Image.fromarray(np.zeros((8, 8), np.int32)).save("bad/a.png", format="TIFF")


def _truncated_zip():
    data = _write_zip(Path("bad"), SAMPLES).read_bytes()
    Path("bad").write_bytes(data[:1000])


def _truncated_tar():
    data = _write_tar(Path("bad"), SAMPLES).read_bytes()
    Path("bad").write_bytes(data[: len(data) // 2])


def _huge_claim():
    _write_zip(Path("bad"), SAMPLES)
    with zipfile.ZipFile("bad", "a") as archive:
        archive.getinfo("a/004.png").file_size = 1 << 41
        archive.writestr("last.txt", b"")  # so that the directory is written again


BAD = {
    "mixed sizes": (_mixed, r"16x16 pixels \(deep/000.png\) and 24x24 pixels \(z.png\), expected one size"),
    "truncated image": (_broken_image, "deep/004.png: cannot be read as an image"),
    "32 bits": (_deep_colour, "a.png: cannot be read as an image: found an image of mode I, expected 8"),
    "empty folder": (lambda: Path("bad").mkdir(), "found no images"),
    "truncated zip": (_truncated_zip, "not an npz file, or truncated"),
    "truncated tar": (_truncated_tar, "ended before the end-of-stream marker"),
    "terabytes": (_huge_claim, "a/004.png claims 2199023255552 bytes"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_inputs(place, kind):
    write, complaint = BAD[kind]
    write()
    with pytest.raises(InputError, match=f"^bad: .*{complaint}") as caught:
        list(open_image_set("bad").batches(4))
    assert "\n" not in str(caught.value)


def test_several_inputs_of_different_sizes(place):
    np.savez("large.npz", make_images(0, 5, 24))
    with pytest.raises(InputError, match=r"large.npz: found images of 24x24 pixels, 3 channels, expected 16x16 "):
        open_image_set(["s.npz", "large.npz"])


def test_a_reference_of_statistics_only(place):
    ours = StoredFeatures()
    found = ours.compute_activations([REFERENCE])
    statistics = {
        "mu": found.pool.mean(0), "sigma": np.cov(found.pool, rowvar=False),
        "mu_s": found.spatial.mean(0), "sigma_s": np.cov(found.spatial, rowvar=False),
    }  # fmt: skip
    np.savez("stats.npz", **statistics)
    whole, only = (evaluator.evaluate(name, "s.npz", ours, extra=True) for name in ("ref.npz", "stats.npz"))
    assert (only.fid, only.sfid) == pytest.approx((whole.fid, whole.sfid), rel=1e-5)
    assert only.precision is None and only.kid is None and only.n_reference == 0
    assert any("no precision" in line for line in only.warnings)
    assert [line.split(":")[0] for line in evaluator.format_metrics(only)] == ["Inception Score", "FID", "sFID"]
    with pytest.raises(InputError, match="expected some images"):
        evaluator.evaluate("ref.npz", "stats.npz", ours)


def test_statistics_only_are_of_no_use_to_a_classifier(place, engine):
    np.savez("stats.npz", mu=np.zeros(3), sigma=np.eye(3), mu_s=np.zeros(3), sigma_s=np.eye(3))
    with pytest.raises(InputError, match="stats.npz: found statistics only"):
        evaluator.evaluate("stats.npz", "s.npz", engine)


def test_warnings(place, engine):
    mixed = np.concatenate([SAMPLES, SAMPLES[:2], REFERENCE[:3]])
    np.savez("s.npz", mixed, np.array([0] * 20 + [1] * 2 + [2] * 3))
    found = "\n".join(evaluator.evaluate("ref.npz", "s.npz", engine).warnings)
    assert "25 images; under 10000" in found
    assert "2 of 25 images are copies" in found
    assert "3 of 25 images are in the reference" in found
    assert "labels are not equally frequent: from 2 to 20" in found
    np.savez("ref.npz", REFERENCE, np.array([0] * 19 + [1] * 2 + [2] * 3))
    assert "frequent" not in "\n".join(evaluator.evaluate("ref.npz", "s.npz", engine).warnings)


@pytest.mark.parametrize("counts", [[30, 50, 40], [12, 12, 13], [5, 90, 0], [0, 37, 0]])
@pytest.mark.parametrize("known", [None, [100, 90, 120], [0, 40, 0]])
def test_the_balance_of_labels_is_a_chi_squared_test(counts, known):
    """Against SciPy's, which knows no table of a single class: there is nothing to compare then."""
    labels, reference = (None if c is None else np.repeat(range(3), c) for c in (counts, known))
    table = np.array([counts] if known is None else [counts, known])
    table = table[:, : labels.max() + 1] if known is None else table[:, table.any(axis=0)]
    test = stats.chisquare(table[0]) if known is None else stats.chi2_contingency(table)
    assert bool(sanity_checks.warn_of_labels("s.npz", labels, reference)) == (table.shape[1] > 1 and test.pvalue < 1e-3)


def test_a_warning_of_images_of_another_shape(place, engine):
    np.savez("grey.npz", SAMPLES[..., :1])
    mixed, equal = (evaluator.evaluate("ref.npz", name, engine).warnings for name in ("grey.npz", "s.npz"))
    assert any("grey.npz: images of 16x16x1, those of" in line and "are of 16x16x3;" in line for line in mixed)
    assert not any("16x16" in line for line in equal)


def test_identical_images_give_numbers_and_warnings(place, engine):
    np.savez("same.npz", np.repeat(SAMPLES[:1], 6, axis=0))
    for names in (("same.npz", "s.npz"), ("ref.npz", "same.npz"), ("same.npz", "same.npz")):
        metrics = evaluator.evaluate(*names, engine, extra=True, bootstrap=3)
        assert all(np.isfinite(getattr(metrics, name)) for name in (*FIVE, "kid", "density", "coverage"))
        assert np.isfinite(list(metrics.intervals.values())).all()
        assert any("all 6 images are identical" in line for line in metrics.warnings)


def test_everything_asked_for(place, engine, monkeypatch, capsys):
    np.savez("s.npz", SAMPLES, np.arange(20) % 5)
    np.savez("other.npz", np.clip(SAMPLES.astype(int) + 3, 0, 255).astype(np.uint8))
    flags = ["--extra", "--bootstrap", "5", "--paired", "other.npz", "--paired_rounds", "9", "--json", "out.json"]
    argv = ["evaluator.py", "ref.npz", "s.npz", "--features", str(engine.weights_path), "--exact_upstream", *flags]
    monkeypatch.setattr(sys, "argv", argv)
    evaluator.main()
    lines = capsys.readouterr().out.splitlines()
    titles = [line.split(": ")[0] for line in lines]
    assert titles[:5] == ["Inception Score", "FID", "sFID", "Precision", "Recall"]
    assert titles[5:10] == ["Accuracy", "KID", "KID deviation", "Density", "Coverage"]
    written = json.loads(Path("out.json").read_text())
    assert set(written["intervals"]) == {*FIVE, "accuracy", "kid", "density", "coverage"}
    assert all(low <= high for low, high in written["intervals"].values())
    assert set(written["paired"]) == {*FIVE, "kid"} and written["paired_rounds"] == 9
    assert all(0 < found["p"] <= 1 for found in written["paired"].values())
    assert set(written["class_accuracy"]) == set("01234") and written["half_precision"] is True
    assert all(len(written[f"{name}_sha256"]) == 64 for name in ("network", "reference", "samples", "paired"))
    assert written["resize"] == "none" and "uint8" in written["quantisation"]


def test_markdown_row(place, engine, monkeypatch, capsys):
    np.savez("a|b.npz", SAMPLES, np.arange(20) % 5)
    flags = ["--markdown", "--bootstrap", "5", "--paired", "s.npz", "--paired_rounds", "1", "--json", "out.json"]
    argv = ["evaluator.py", "ref.npz", "a|b.npz", "--features", str(engine.weights_path), *flags]
    monkeypatch.setattr(sys, "argv", argv)
    evaluator.main()
    head, rule, row = capsys.readouterr().out.splitlines()
    assert head.count("|") == rule.count("|") == row.count("|") - 1 and "| a\\|b | 20 | " in row
    cells = dict(zip(head.split(" | ")[2:], row.split(" | ")[2:], strict=True))
    written = json.loads(Path("out.json").read_text())
    low, high = written["intervals"]["fid"]
    assert cells["FID"] == f"{written['fid']:.4g} [{low:.4g}, {high:.4g}]"
    assert cells["Recall difference |"] == "+0 (p = 1) |"


def test_paired_sets_are_of_one_size(place, engine):
    np.savez("other.npz", SAMPLES[:9])
    with pytest.raises(InputError, match="other.npz: found 9 images, expected 20"):
        evaluator.evaluate("ref.npz", "s.npz", engine, paired="other.npz")


def _counted(engine, monkeypatch) -> list:
    seen, compute = [], engine.compute_activations
    monkeypatch.setattr(engine, "compute_activations", lambda batches: seen.append(len(batches)) or compute(batches))
    return seen


def test_cache_spares_the_reference(place, engine, monkeypatch):
    seen = _counted(engine, monkeypatch)
    first = evaluator.evaluate("ref.npz", "s.npz", engine, cache="cache")
    assert len(seen) == 2 and len(os.listdir("cache")) == 1
    os.rename("ref.npz", "moved.npz")
    second = evaluator.evaluate("moved.npz", "s.npz", engine, cache="cache")
    assert len(seen) == 3
    assert [getattr(second, name) for name in FIVE] == [getattr(first, name) for name in FIVE]
    np.savez("ref.npz", REFERENCE[::-1])
    evaluator.evaluate("ref.npz", "s.npz", engine, cache="cache")
    assert len(seen) == 5 and len(os.listdir("cache")) == 2


@pytest.mark.parametrize("damage", [lambda data: data[:999], lambda data: b"", lambda data: data[:-300] + bytes(300)])
def test_damaged_cache_entries_are_made_again(place, engine, monkeypatch, caplog, damage):
    evaluator.evaluate("ref.npz", "s.npz", engine, cache="cache")
    (entry,) = Path("cache").iterdir()
    good = entry.read_bytes()
    entry.write_bytes(damage(good))
    seen = _counted(engine, monkeypatch)
    evaluator.evaluate("ref.npz", "s.npz", engine, cache="cache")
    assert len(seen) == 2 and "made again" in caplog.text
    assert entry.stat().st_size == len(good)


def test_a_cache_entry_that_cannot_be_read_is_left_alone(place, engine, monkeypatch, caplog):
    evaluator.evaluate("ref.npz", "s.npz", engine, cache="cache")
    (entry,) = Path("cache").iterdir()
    before = entry.read_bytes(), entry.stat().st_ino
    seen = _counted(engine, monkeypatch)
    opened = npz.open_regular

    def fail(path):
        if Path(path) == entry.absolute():
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return opened(path)

    monkeypatch.setattr(npz, "open_regular", fail)
    evaluator.evaluate("ref.npz", "s.npz", engine, cache="cache")
    assert len(seen) == 2 and "cannot be read: Stale file handle" in caplog.text and "made again" not in caplog.text
    assert (entry.read_bytes(), entry.stat().st_ino) == before


def test_a_full_disk_does_not_stop_the_evaluation(place, engine, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(activations.np, "savez", full)
    metrics = evaluator.evaluate("ref.npz", "s.npz", engine, cache="cache")
    assert "No space left" in caplog.text and np.isfinite(metrics.fid)
    assert os.listdir("cache") == []


def test_an_interrupt_leaves_nothing_behind(place, engine, monkeypatch):
    def interrupted(batches):
        next(iter(batches))
        raise KeyboardInterrupt

    before = sorted(os.listdir())
    monkeypatch.setattr(engine, "compute_activations", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluator.evaluate("ref.npz", "s.npz", engine, cache="cache")
    assert sorted(os.listdir()) == before

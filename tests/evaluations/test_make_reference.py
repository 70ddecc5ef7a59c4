"""make_reference and convert: what they write, and that the evaluator takes it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluations import convert, evaluator, make_reference
from evaluations.summary import write_or_keep
from guided_diffusion.errors import InputError
from tests.support.evaluations import SAMPLES, StoredFeatures, write_classifier, write_folder


def _main(program, monkeypatch, *args) -> None:
    monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, args)])
    program.main()


def test_a_reference_is_what_the_evaluator_wants(tmp_path):
    folder = write_folder(tmp_path / "images", SAMPLES, np.array([7, 8, 7, 9] * 5))
    pictures = make_reference.Pictures(str(folder), 16)
    arrays = make_reference.make_reference(pictures, StoredFeatures(), num_images=12, seed=1)
    np.savez(tmp_path / "ref.npz", **arrays)
    np.savez(tmp_path / "all.npz", np.concatenate(list(pictures.batches(20))))
    assert arrays["arr_0"].shape == (12, 16, 16, 3) and arrays["arr_0"].dtype == np.uint8
    assert len(arrays["arr_1"]) == 12 and set(arrays["arr_1"]) <= {0, 1, 2}
    places = [np.flatnonzero((image == SAMPLES).all(axis=(1, 2, 3))).item() for image in arrays["arr_0"]]
    np.testing.assert_array_equal(np.array([0, 1, 0, 2] * 5)[places], arrays["arr_1"])
    settings = json.loads(str(np.load(tmp_path / "ref.npz", allow_pickle=False)["settings"]))
    assert (settings["found_images"], settings["kept_images"], settings["class_names"]) == (20, 12, ["7", "8", "9"])
    assert "rounded" in settings["quantisation"] and "bicubic" in settings["resize"]
    metrics = evaluator.evaluate(tmp_path / "ref.npz", tmp_path / "all.npz", StoredFeatures())
    assert metrics.fid == pytest.approx(0, abs=1e-6) and metrics.sfid == pytest.approx(0, abs=1e-6)


def test_reference_program(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "images", SAMPLES)
    (tmp_path / "run").mkdir()
    network = ["--features", write_classifier(tmp_path / "run")]
    _main(make_reference, monkeypatch, folder, tmp_path / "r.npz", "--image_size", 16, *network)
    with np.load(tmp_path / "r.npz", allow_pickle=False) as found:
        assert found["arr_0"].shape == (20, 16, 16, 3)
        assert "mu" not in found.files  # they would be taken for Inception's
        assert len(json.loads(str(found["settings"]))["network_sha256"]) == 64
    for wrong, complaint in (
        ([folder, tmp_path / "r.npz", "--image_size", 0], "--image_size: found 0"),
        ([folder, tmp_path / "r.npz", "--image_size", 8], "--image_size: found 8, expected 16 as in the config.json"),
        ([folder, tmp_path / "r.png", "--image_size", 8], "ends in .npz"),
        ([tmp_path / "none", tmp_path / "r.npz", "--image_size", 8], "no such folder"),
    ):
        with pytest.raises(InputError, match=complaint):
            _main(make_reference, monkeypatch, *wrong, *network)


def test_what_cannot_be_written_where_it_should_be_is_kept_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()

    def write(path: Path) -> None:
        if path.absolute().parent.name == "full":
            raise InputError(f"{path}: cannot be written: No space left on device")
        path.write_text("kept")

    write_or_keep("good.json", write, write, "the results are")
    assert Path("good.json").read_text() == "kept"
    with pytest.raises(InputError, match=r"^full/o.json: cannot .* device; the results are in (.*)$") as caught:
        write_or_keep("full/o.json", write, write, "the results are")
    kept = Path(str(caught.value).rpartition(" in ")[2])
    assert kept.parent == tmp_path and kept.read_text() == "kept" and kept.suffix == ".json"
    with pytest.raises(InputError, match="device$"):
        write_or_keep("full/o.json", write, None, "the results are")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labels", [None, np.arange(20) % 11])
def test_there_and_back(tmp_path, monkeypatch, channels, labels):
    images = SAMPLES[..., :channels]
    np.savez(tmp_path / "a.npz", images, *([] if labels is None else [labels]))
    _main(convert, monkeypatch, tmp_path / "a.npz", tmp_path / "folder")
    _main(convert, monkeypatch, tmp_path / "folder", tmp_path / "b.npz")
    with np.load(tmp_path / "b.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["arr_0"], images)
        assert ("arr_1" in found.files) == (labels is not None)
        if labels is not None:
            np.testing.assert_array_equal(found["arr_1"], labels)
    with Image.open(tmp_path / "folder.png") as grid:
        assert grid.size == (8 * 16, 3 * (16 if labels is None else 28))
        np.testing.assert_array_equal(np.asarray(grid)[:16, 16:32, :channels], images[1])


def test_convert_refuses(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", SAMPLES)
    folder = tmp_path / "folder"
    _main(convert, monkeypatch, tmp_path / "a.npz", folder, "--grid", 0)
    assert not (tmp_path / "folder.png").exists()
    with pytest.raises(InputError, match="new or empty"):
        _main(convert, monkeypatch, tmp_path / "a.npz", folder)
    with pytest.raises(InputError, match="npz file and a folder"):
        _main(convert, monkeypatch, folder, tmp_path / "other")
    (folder / "03.png").unlink()
    with pytest.raises(InputError, match="found 19 images, expected them numbered from 0 without a gap, but 3 is"):
        _main(convert, monkeypatch, folder, tmp_path / "b.npz")
    Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(folder / "03.png")
    with pytest.raises(InputError, match="03.png: found"):
        _main(convert, monkeypatch, folder, tmp_path / "b.npz")
    (folder / "03.png").unlink()
    os.mkfifo(folder / "03.png")
    with pytest.raises(InputError, match="03.png: found a named pipe, expected a regular file"):
        _main(convert, monkeypatch, folder, tmp_path / "b.npz")
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(InputError, match="pipe.npz: found a named pipe, expected a regular file"):
        _main(convert, monkeypatch, tmp_path / "pipe.npz", tmp_path / "other")
    with pytest.raises(InputError, match="aaa: cannot be listed: File name too long"):
        _main(convert, monkeypatch, "a" * 5000, tmp_path / "b.npz")
    assert not (tmp_path / "b.npz").exists()
    with pytest.raises(InputError, match="nowhere: no such folder"):
        _main(convert, monkeypatch, tmp_path / "nowhere", tmp_path / "b.npz")
    with pytest.raises(InputError, match="a.npz: is there already; --overwrite replaces it"):
        _main(convert, monkeypatch, folder, tmp_path / "a.npz")
    (tmp_path / "new.png").write_text("mine")
    with pytest.raises(InputError, match="new.png: is there already; --overwrite replaces it"):
        _main(convert, monkeypatch, tmp_path / "a.npz", tmp_path / "new")
    assert (tmp_path / "new.png").read_text() == "mine"
    _main(convert, monkeypatch, tmp_path / "a.npz", tmp_path / "new", "--overwrite")
    assert (tmp_path / "new.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("names", [("cat_{}.jpg", "dog_{}.JPEG"), ("cat/{:03}.png", "dog/{:03}.png")])
def test_convert_takes_training_folders(tmp_path, monkeypatch, names):
    for i, pixels in enumerate(SAMPLES):
        path = tmp_path / "in" / names[i % 2].format(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    _main(convert, monkeypatch, tmp_path / "in", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert found["arr_0"].shape == SAMPLES.shape and found["arr_1"].tolist() == [0] * 10 + [1] * 10
        assert json.loads(str(found["settings"])) == {"class_names": ["cat", "dog"]}
    _main(convert, monkeypatch, tmp_path / "out.npz", tmp_path / "back")
    assert (tmp_path / "back" / "1_19.png").exists()


def test_a_reference_of_unlabelled_images_has_no_labels(tmp_path, caplog):
    folder = write_folder(tmp_path / "images", SAMPLES)
    for path in list(folder.rglob("*.png")):
        path.rename(folder / f"IMG{path.name}")
    pictures = make_reference.Pictures(str(folder), 16)
    arrays = make_reference.make_reference(pictures, StoredFeatures(), num_images=20, seed=1)
    assert "arr_1" not in arrays and "no labels are written: data_dir" in caplog.text
    assert json.loads(str(arrays["settings"]))["class_names"] is None
    with pytest.raises(InputError, match="--labels folder: 20 of 20 images are in no folder, such as IMG000.png"):
        make_reference.Pictures(str(folder), 16, "folder")


def test_a_reference_of_class_folders_has_their_labels(tmp_path):
    folder = tmp_path / "images"
    for i, pixels in enumerate(SAMPLES):
        path = folder / ("cat", "dog")[i % 2] / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    pictures = make_reference.Pictures(str(folder), 16)
    assert pictures.labels.names == ["cat", "dog"] and pictures.labels.number(pictures.files) == [0] * 10 + [1] * 10


def test_convert_reads_what_training_reads_once_told_how(tmp_path, monkeypatch):
    """16 bits of grey and transparent pixels are refused with the flag that says what is to become of them."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "clear").mkdir()
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 63
    hidden = np.full((8, 8, 4), (0, 255, 0, 0), np.uint8)
    for i in range(2):
        Image.fromarray(values).save(tmp_path / "deep" / f"{i}.png")
        Image.fromarray(hidden).save(tmp_path / "clear" / f"{i}.png")
    with pytest.raises(InputError, match=r"deep: 0.png: found 16 bits of grey, expected 8; --bit_depth 16 takes"):
        _main(convert, monkeypatch, tmp_path / "deep", tmp_path / "b.npz")
    with pytest.raises(InputError, match=r"clear: 0.png: found transparent pixels, expected none; --alpha white or bl"):
        _main(convert, monkeypatch, tmp_path / "clear", tmp_path / "b.npz")
    for name, flags, expected in (
        ("deep", ("--bit_depth", 16), values[..., None] >> 8),
        ("deep", ("--bit_depth", 12), values[..., None] >> 4),
        ("clear", ("--alpha", "keep"), hidden[..., :3]),
        ("clear", ("--alpha", "white"), np.full((8, 8, 3), 255)),
    ):
        _main(convert, monkeypatch, tmp_path / name, tmp_path / "b.npz", "--overwrite", *flags)
        with np.load(tmp_path / "b.npz", allow_pickle=False) as found:
            np.testing.assert_array_equal(found["arr_0"], [expected, expected])

"""Folders of npz files and of images of many sizes; odd names; choices of images; figures by class."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluations import evaluator, make_reference
from evaluations.features.classifier import ClassifierExtractor
from evaluations.image_sets import open_image_set, split_paths
from evaluations.metrics.frechet import frechet_distance
from evaluations.metrics.precision_recall import precision_recall
from evaluations.metrics.statistics import fit_gaussian
from guided_diffusion.errors import InputError
from guided_diffusion.image_datasets import center_crop_arr
from guided_diffusion.io.images import Reading
from guided_diffusion.sampling.run import save_grid
from tests.support.evaluations import REFERENCE, SAMPLES, StoredFeatures, png_bytes, write_classifier
from tests.support.helpers import ROOT

EVALUATOR = ROOT / "evaluations" / "evaluator.py"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("ref.npz", REFERENCE, np.arange(24) % 2)
    np.savez("s.npz", SAMPLES, np.arange(20) % 2)
    return tmp_path


def _read(paths, **options) -> np.ndarray:
    return np.concatenate(list(open_image_set(paths, **options).batches(6)))


def test_image_files_are_read_as_in_training(place):
    """With the same flags, which are part of what the cache goes by."""
    os.mkdir("turned")
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(4):
        hidden = np.dstack([np.full((8, 16, 3), (0, 255, 0), np.uint8), np.full((8, 16), 255 * (i > 0), np.uint8)])
        Image.fromarray(hidden).save(f"turned/{i}.png", exif=exif)
    images = open_image_set("turned")
    reading = Reading(exif_transpose=True, alpha="white")
    turned = open_image_set("turned", reading=reading)
    assert images.shape == (4, 8, 16, 3) and turned.shape == (4, 16, 8, 3) and images.digest() != turned.digest()
    assert _read("turned")[0, 0, 0].tolist() == [0, 255, 0]
    assert _read("turned", reading=reading)[:2, 0, 0].tolist() == [[255, 255, 255], [0, 255, 0]]


def test_a_samplers_run_folder_is_its_samples(place):
    """Not the one picture of its grid."""
    os.mkdir("run")
    Path("run/run.json").write_text("{}")
    with pytest.raises(InputError, match="^run: the folder of a sampling run without its samples.*it is not finished"):
        open_image_set("run")
    np.savez("run/samples_20x16x16x3.npz", SAMPLES, np.arange(20))
    np.savez("run/trace.npz", entropy=np.zeros(3))
    save_grid(SAMPLES, Path("run/samples_20x16x16x3.png"))
    images = open_image_set("run")
    np.testing.assert_array_equal(_read("run"), SAMPLES)
    assert images.name.endswith("run/samples_20x16x16x3.npz") and images.labels().tolist() == list(range(20))
    np.savez("run/samples_4x16x16x3.npz", SAMPLES[:4])
    with pytest.raises(InputError, match=r"^run: found 2 npz files \(samples_20x16x16x3.npz, .*; say which, run/"):
        open_image_set("run")


def test_a_real_run_goes_into_the_evaluator(place, run, checkpoints):
    flags = {"model_path": checkpoints["model"], "num_samples": 6, "batch_size": 3, "timestep_respacing": "2"}
    run("image_sample", flags | {"log_dir": "out", "save_images": True})
    images = open_image_set("out")
    assert images.shape == (6, 8, 8, 3) and Path(images.name).parent == place / "out"


def test_a_folder_of_shards(place):
    os.mkdir("shards")
    np.savez("shards/rank0.npz", SAMPLES[:9])
    np.testing.assert_array_equal(_read("shards"), SAMPLES[:9])
    np.savez("shards/rank1.npz", SAMPLES[9:])
    np.savez("shards/.rank2.npz", SAMPLES)
    with pytest.raises(InputError, match=r"^shards: found 2 npz files \(rank0.npz, rank1.npz\), exp") as caught:
        open_image_set("shards")
    paths = str(caught.value).rpartition("(")[2].rstrip(")")
    np.testing.assert_array_equal(_read(split_paths(paths)), SAMPLES)
    Path("shards/picture.png").write_bytes(png_bytes(SAMPLES[0]))  # pictures come first
    assert open_image_set("shards").count == 1


def test_patterns(place, run):
    for i in (0, 9, 10):
        np.savez(f"rank{i}.npz", SAMPLES[i : i + 4])
    assert split_paths("rank*.npz") == ["rank0.npz", "rank9.npz", "rank10.npz"]
    assert split_paths("s.npz,rank?.npz") == ["s.npz", "rank0.npz", "rank9.npz"]
    assert split_paths("nothing*.npz") == ["nothing*.npz"]
    np.savez("odd[1].npz", SAMPLES)
    assert split_paths("odd[1].npz") == ["odd[1].npz"]
    found = run(EVALUATOR, ["ref.npz", "rank0.npz", "rank10.npz", "rank9.npz"], fails=True)
    (line,) = found.error_lines
    assert line == (
        "error: found 4 inputs (ref.npz, rank0.npz, rank10.npz, rank9.npz), expected a reference and samples; files "
        "that are one set are joined by commas (rank0.npz,rank10.npz) or named by a pattern in quotes ('rank*.npz')"
    )
    assert found.statuses == [2] and len(found.stderr.splitlines()) == 1


def test_an_empty_list(place):
    for names in (([], "s.npz"), ("ref.npz", [])):
        with pytest.raises(InputError, match="^found an empty list of files, expected at least one"):
            evaluator.evaluate(*names, StoredFeatures())


def _write_sizes(folder: Path) -> list[np.ndarray]:
    """Crops that training would make of pictures of four sizes."""
    folder.mkdir()
    random, crops = np.random.default_rng(0), []
    for i, (height, width) in enumerate([(16, 16), (40, 33), (16, 21), (9, 12)]):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image.save(folder / f"{i}.png")
        crops.append(center_crop_arr(image, 16))
    return crops


def test_images_of_many_sizes(place):
    crops = _write_sizes(place / "sizes")
    with pytest.raises(InputError, match="expected one size; --resize N crops .* make_reference.py --image_size N"):
        open_image_set("sizes")
    np.testing.assert_array_equal(_read("sizes", resize=16), crops)
    pictures = make_reference.Pictures("sizes", 16)
    np.testing.assert_array_equal(np.concatenate(list(pictures.batches(4))), crops)
    assert open_image_set("sizes", resize=16).digest() != open_image_set("sizes", resize=8).digest()


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_images_of_one_size(place, channels):
    images = SAMPLES[..., :channels]
    np.savez("a.npz", images, mu=np.zeros(2), sigma=np.eye(2))
    np.testing.assert_array_equal(_read("a.npz", resize=16), images)
    small = _read("a.npz", resize=8)
    blocks = images.reshape(20, 8, 2, 8, 2, channels).mean(axis=(2, 4))
    assert small.shape == (20, 8, 8, channels) and np.abs(small - blocks).max() <= 1
    assert open_image_set("a.npz", resize=16).stored and not open_image_set("a.npz", resize=16).warnings
    resized = open_image_set("a.npz", resize=8)
    assert resized.stored is None and "statistics are not used, as they are of images before" in resized.warnings[0]


def test_resize_and_its_remedy_in_results(place):
    engine = ClassifierExtractor(write_classifier(place))
    np.savez("large.npz", SAMPLES.repeat(2, axis=1).repeat(2, axis=2))
    with pytest.raises(InputError, match="--resize 16 crops and scales them"):
        evaluator.evaluate("ref.npz", "large.npz", engine)
    large, own = (evaluator.evaluate("ref.npz", name, engine, resize=16) for name in ("large.npz", "s.npz"))
    assert large.fid == pytest.approx(own.fid, rel=1e-4)
    assert large.resize_before == "to 16x16: centre crop; box-filtered halvings, then bicubic"


@pytest.mark.parametrize("program", ["evaluator", "make_reference"])
def test_names_that_are_no_text_or_no_number(place, run, program, caplog):
    """Bytes that are no UTF-8 and labels of 20 digits are names like others, and no labels."""
    os.mkdir("odd")
    for i, pixels in enumerate(SAMPLES):
        name = b"k\xff\xe9_%04d.png" % i if i % 2 else b"%d_%d.png" % (10**19 + i, 10**19 + i)
        with open(b"odd/" + name, "wb") as file:
            file.write(png_bytes(pixels))
    network = ["--features", str(write_classifier(place))]
    if program == "evaluator":
        assert open_image_set("odd").labels() is None
        run(EVALUATOR, ["ref.npz", "odd", *network, "--json", "out.json"])
        assert json.loads(Path("out.json").read_text())["n_samples"] == 20
    else:
        run(ROOT / "evaluations" / "make_reference.py", ["odd", "r.npz", "--image_size", "16", *network])
        assert open_image_set("r.npz").count == 20
    os.rename("odd", os.fsdecode(b"\xff"))
    caplog.set_level("CRITICAL")  # pytest's workers send what was logged as UTF-8
    evaluator.evaluate("ref.npz", os.fsdecode(b"\xff"), ClassifierExtractor(network[1]))


def test_labels_of_many_digits(place):
    os.mkdir("long")
    for i in range(4):
        Path(f"long/{10**19 + i}_{i}.png").write_bytes(png_bytes(SAMPLES[i]))
    assert open_image_set("long").labels() is None


def test_a_number_of_samples_is_drawn_by_the_seed(place):
    np.savez("first.npz", SAMPLES[:9], np.arange(9))
    np.savez("second.npz", SAMPLES[9:], np.arange(9, 20))
    whole, parts = open_image_set("s.npz"), open_image_set(["first.npz", "second.npz"])
    for seed in range(3):
        chosen = parts.choose(7, seed)
        places = chosen.labels()
        assert (np.diff(places) > 0).all() and len(places) == 7 and places.max() > 8  # not just the first
        batches = list(chosen.batches(3))
        assert len(batches) == len(chosen.batches(3))
        np.testing.assert_array_equal(np.concatenate(batches), SAMPLES[places])
        np.testing.assert_array_equal(np.concatenate(list(whole.choose(7, seed).batches(3))), SAMPLES[places])
    digests = [parts.choose(count, seed).digest() for count, seed in ((7, 0), (7, 1), (8, 0), (20, 0))]
    assert len(set(digests)) == 4 and digests[3] == parts.digest() and parts.choose(20, 0) is parts


@pytest.mark.slow
def test_num_samples(place, run):
    engine = ClassifierExtractor(write_classifier(place))
    found = evaluator.evaluate("ref.npz", "s.npz", engine, num_samples=12, seed=3, paired="s.npz", paired_rounds=1)
    for name, images in (("ref", REFERENCE), ("s", SAMPLES)):
        np.savez(f"few_{name}.npz", images[np.sort(np.random.default_rng(3).choice(len(images), 12, replace=False))])
    few = evaluator.evaluate("few_ref.npz", "few_s.npz", engine)
    assert (found.fid, found.precision, found.recall) == (few.fid, few.precision, few.recall)
    assert (found.n_reference, found.n_samples) == (12, 12) and found.chosen == "12 of each set at random, seed 3"
    assert found.paired["fid"]["difference"] == 0
    assert evaluator.evaluate("ref.npz", "s.npz", engine, num_samples=20).n_reference == 20
    assert evaluator.evaluate("few_ref.npz", "s.npz", engine, num_samples=20).n_reference == 12  # all there are
    with pytest.raises(InputError, match="few_s.npz: found 12 images, expected 20, one for each"):
        evaluator.evaluate("ref.npz", "s.npz", engine, num_samples=10, paired="few_s.npz")
    with pytest.raises(InputError, match="s.npz: found 20 images, expected at least --num_samples 21"):
        evaluator.evaluate("ref.npz", "s.npz", engine, num_samples=21)
    for flag, value in (("num_samples", 3), ("resize", 0), ("kid_subset_size", 1)):
        line = run(EVALUATOR, ["ref.npz", "s.npz", f"--{flag}", str(value)], fails=True).error_lines
        assert line == [f"error: --{flag}: found {value}, expected at least {value + 1}"]


def test_num_samples_leaves_a_references_statistics_alone(place):
    """They are of the whole data set; those of samples are not of these samples."""
    pool = StoredFeatures().compute_activations([REFERENCE]).pool * 2
    statistics = {"mu": pool.mean(axis=0), "sigma": np.cov(pool, rowvar=False)}
    for name, images in (("ref2.npz", REFERENCE), ("s2.npz", SAMPLES)):
        np.savez(name, images, **statistics)
    whole, few = (evaluator.evaluate("ref2.npz", "s.npz", StoredFeatures(), num_samples=n) for n in (20, 10))
    assert evaluator.evaluate("ref2.npz", "s2.npz", StoredFeatures()).fid == 0
    assert evaluator.evaluate("ref2.npz", "s2.npz", StoredFeatures(), num_samples=10).fid == few.fid != whole.fid


def test_figures_by_class(place, run):
    labels = {"ref": np.repeat([0, 1, 7], [12, 9, 3]), "s": np.repeat([0, 1, 2], [8, 8, 4])}
    settings = np.array(json.dumps({"class_names": ["cat", "dog"]}))
    np.savez("ref.npz", REFERENCE, labels["ref"], settings=settings)
    np.savez("s.npz", SAMPLES, labels["s"])
    checkpoint = write_classifier(place)
    argv = ["ref.npz", "s.npz", "--features", str(checkpoint), "--per_class", "--json", "out.json"]
    found = run(EVALUATOR, argv)
    table = run(EVALUATOR, [*argv, "--markdown"]).stdout.splitlines()
    classes = json.loads(Path("out.json").read_text())["per_class"]
    assert list(classes) == ["0", "1", "2", "7"]
    pools = [ClassifierExtractor(checkpoint).compute_activations([x]).pool for x in (REFERENCE, SAMPLES)]
    own = [pool[labels[name] == 1] for name, pool in zip(("ref", "s"), pools, strict=True)]
    assert classes["1"]["fid"] == pytest.approx(frechet_distance(*map(fit_gaussian, own)), rel=1e-3)
    assert (classes["1"]["precision"], classes["1"]["recall"]) == precision_recall(*own)
    assert classes["1"]["name"] == "dog" and classes["7"]["name"] is None
    assert (classes["2"]["n_reference"], classes["2"]["n_samples"], classes["2"]["fid"]) == (0, 4, None)
    assert f"Class 1 (dog) FID: {classes['1']['fid']}" in found.stdout.splitlines() and "Class 7" not in found.stdout
    assert "2 of 4 classes have under 4 images on a side and no figures: 2, 7" in found.stderr
    assert table[3:6] == ["", "| Class | N reference | N | FID | Precision | Recall |", "| --- " * 6 + "|"]
    assert table[7].startswith("| dog | 9 | 8 | ") and table[9] == "| 7 | 3 | 0 |  |  |  |"


def test_classes_need_labels_on_both_sides(place):
    np.savez("plain.npz", SAMPLES)
    np.savez("stats.npz", mu=np.zeros(12), sigma=np.eye(12))
    engine = StoredFeatures()
    engine.compute_activations = None  # never gets that far
    for names in (("plain.npz", "s.npz"), ("ref.npz", "plain.npz")):
        with pytest.raises(InputError, match="plain.npz: found no labels, expected some for --per_class: arr_1 in"):
            evaluator.evaluate(*names, engine, per_class=True)
    with pytest.raises(InputError, match="stats.npz: found statistics only, expected images with labels"):
        evaluator.evaluate("stats.npz", "s.npz", engine, per_class=True)


def test_what_needs_no_network_is_checked_before_it_runs(place):
    engine = StoredFeatures()
    engine.compute_activations = None
    np.savez("five.npz", REFERENCE[:5])
    with pytest.raises(InputError, match="five.npz: found 5 images, expected more than 5 for density"):
        evaluator.evaluate("five.npz", "s.npz", engine, extra=True)
    with pytest.raises(InputError, match="--kid_subset_size: found no --extra, expected it"):
        evaluator.evaluate("ref.npz", "s.npz", engine, kid_subset_size=10)
    with pytest.raises(InputError, match="--kid_subset_size: found 21, expected at most 20, as .*s.npz holds"):
        evaluator.evaluate("ref.npz", "s.npz", engine, extra=True, kid_subset_size=21)


def test_kid_of_few_images_says_what_its_deviation_is_of(place):
    found, chosen = (
        evaluator.evaluate("ref.npz", "s.npz", StoredFeatures(), extra=True, kid_subset_size=size) for size in (None, 8)
    )
    assert found.kid_deviation > 1e-6 and found.kid_subset_size == 10 and chosen.kid_subset_size == 8
    said = "KID: its deviation is over subsets of 10 images, half the smaller set, not 1000"
    assert any(line.startswith(said) for line in found.warnings) and "KID:" not in "".join(chosen.warnings)


def test_a_folder_of_runs_or_of_a_training_is_none_of_images(place):
    """The pictures of a run are its grids; each line says what the folder is and what to give."""
    for name in ("runs/a", "runs/deep/b"):
        os.makedirs(name)
        Path(name, "run.json").write_text("{}")
        save_grid(SAMPLES, Path(name, "samples_20x16x16x3.png"))
    line = r"^runs: a folder with 2 runs in it \(a, deep/b\), expected one run's folder, such as runs/a$"
    with pytest.raises(InputError, match=line):
        open_image_set("runs")
    os.mkdir("training")
    for name in ("config.json", "ema_0.9999_000100.pt", "model000100.pt", "opt000100.pt", "log.txt"):
        Path("training", name).write_text("")
    line = r"^training: a training's folder, with model000100.pt, expected images; a sampling script draws some"
    with pytest.raises(InputError, match=line):
        open_image_set("training")
    os.makedirs("shards/x")
    np.savez("shards/x/rank0.npz", SAMPLES)
    line = r"^shards: found no images, but npz files in subfolders \(x/rank0.npz\), expected one; say which, shards/x/"
    with pytest.raises(InputError, match=line):
        open_image_set("shards")


def test_images_in_subfolders_are_said(place, caplog):
    caplog.set_level(logging.INFO)
    for i in range(6):
        path = Path("images", "cat" if i < 2 else "dog/brown", f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(SAMPLES[i]))
    Path("images/dataset.txt").write_text("")
    assert open_image_set("images").count == 6 and open_image_set("images").count == 6
    assert caplog.messages.count("images: reading 6 images of 2 folders in it: cat 2, dog/brown 4") == 1

"""The layouts of folders that users have, and the classes that training takes from them."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluations.image_sets import open_image_set
from guided_diffusion.data.image_files import ImageFiles, list_images
from guided_diffusion.data.image_labels import read_labels
from guided_diffusion.errors import InputError, counted
from guided_diffusion.io.reading import read_json
from tests.support.helpers import CLASSIFIER, DIFFUSION, MODEL, SUPER_RES, Runner, make_images

CATS, DOGS = ("cat",) * 4, ("dog",) * 4


@pytest.mark.parametrize(
    ("number", "things", "says"),
    [(1, "images", "1 image"), (1, "classes", "1 class"), (1, "files", "1 file"), (0, "steps", "0 steps"),
     (1, "known classes", "1 known class"), (1, "processes", "1 process"), (2, "classes", "2 classes")],
)  # fmt: skip
def test_counts(number, things, says):
    assert counted(number, things) == says


def files_of(*names: str) -> ImageFiles:
    return ImageFiles("data", "data_dir data", sorted(names), Counter())


def numbered(*patterns: str) -> ImageFiles:
    """Four files by each pattern."""
    return files_of(*(pattern.format(i) for pattern in patterns for i in range(4)))


LAYOUTS = {
    "upstream's names": (["cat_{}.png", "dog_{}.png"], CATS + DOGS, "file name"),
    "class folders": (["cat/000{}.png", "dog/000{}.png"], CATS + DOGS, "folder"),
    "class folders, one prefix": (["cat/train_{}.png", "dog/train_{}.png"], CATS + DOGS, "folder"),
    "class folders, other names": (["cat/IMG{}_a.png", "dog/IMG1{}_a.png"], CATS + DOGS, "folder"),
    "ImageNet": (["n01/n01_{}.JPEG", "n02/n02_{}.JPEG"], ("n01",) * 4 + ("n02",) * 4, "file name"),
    "ImageNet, flat": (["n01_{}.JPEG", "n02_{}.JPEG"], ("n01",) * 4 + ("n02",) * 4, "file name"),
    "ImageFolder": (["cat/s1/{}.png", "dog/s2/{}.png"], CATS + DOGS, "folder"),
    "ImageFolder, images below": (["cat/images/{}.png", "dog/images/{}.png"], CATS + DOGS, "folder"),
    "a folder around all": (["data/train/cat/{}.png", "data/train/dog/{}.png"], CATS + DOGS, "folder"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_auto_finds_the_classes_of_every_usual_layout(layout):
    patterns, expected, source = LAYOUTS[layout]
    found = read_labels(numbered(*patterns))
    assert (found.labels, found.source, found.remark, found.warnings) == (expected, source, "", ())
    assert found.number(numbered(*patterns)) == [0] * 4 + [1] * 4
    names = "cat 4, dog 4" if "cat" in expected else "n01 4, n02 4"
    assert found.describe() == f"8 images, 2 classes by {source}: {names} (smallest 4, largest 4)"


def test_where_both_fit_the_file_name_wins_with_a_warning():
    files = numbered("cat/a_{}.png", "dog/b_{}.png", "dog/c_{}.png")
    found = read_labels(files)
    assert found.names == ["a", "b", "c"] and found.warnings == (
        "data_dir data: file names give 3 classes (a, b, c), folders 2 classes (cat, dog); taking the file names', as "
        "upstream does; --labels folder takes the others",
    )
    assert read_labels(files, "folder").names == ["cat", "dog"] and not read_labels(files, "folder").warnings


WRITTEN_BY_CAMERAS = (
    ["IMG_{}.jpg", "DSC_{}.jpg"], ["img_{}.jpg", "PXL_2024013{}_1200.jpg"], ["_MG_{}.jpg", "20240131_{}.jpg"],
    ["2024-01-31_{}.jpg", "Screenshot-2024_{}.png"], ["DSCN000{}_a.jpg", "WP_{}.jpg", "IMG-20240131-WA000{}_a.jpg"],
    ["train_{}.png", "val_{}.png"],
)  # fmt: skip


@pytest.mark.parametrize("patterns", WRITTEN_BY_CAMERAS)
def test_names_that_cameras_write_are_no_classes(patterns):
    in_folders = numbered(*(f"{folder}/{pattern}" for folder in ("cat", "dog") for pattern in patterns))
    found = read_labels(in_folders)
    assert found.source == "folder" and found.names == ["cat", "dog"]
    assert len(found.warnings) == 0
    with pytest.raises(InputError, match=": names that cameras and programs write"):
        read_labels(numbered(*patterns))
    mixed = read_labels(numbered(*(f"cat/{pattern}" for pattern in patterns), "dog/rex_{}.png"))
    assert mixed.source == "folder" or mixed.warnings, "one name that may be a class's: as upstream, said aloud"


def test_two_cameras():
    files = numbered("cat/IMG_{}.jpg", "cat/DSC_{}.jpg", "dog/IMG_{}.jpg")
    assert read_labels(files).describe() == (
        "12 images, 2 classes by folder: cat 8, dog 4 (smallest 4, largest 8); file names give 2 classes (DSC, IMG: "
        "names that cameras and programs write)"
    )
    assert read_labels(files, "filename").names == ["DSC", "IMG"]
    with pytest.raises(InputError) as caught:
        read_labels(numbered("IMG_{}.jpg", "DSC_{}.jpg"))
    line = str(caught.value)
    assert "file names give 2 classes (DSC, IMG: names that cameras and programs write), there is no folder for" in line
    assert "--labels filename" in line and "--labels FILE.csv" in line
    with pytest.raises(InputError, match=r'give 2 classes \("", IMG: names that cameras'):
        read_labels(numbered("_MG_{}.jpg", "IMG_{}.jpg"))
    with pytest.raises(InputError, match=r"folders 2 classes \(2024-01-31, 2024-02-01: names that cameras"):
        read_labels(numbered("2024-01-31/{}.jpg", "2024-02-01/{}.jpg"))


@pytest.mark.parametrize("names", ["photo sketch", "IMG cat", "plane train", "n02084071 n02085620", "1999 2024"])
def test_names_that_may_be_classes(names):
    assert read_labels(numbered(*(f"{name}_{{}}.jpg" for name in names.split()))).names == names.split()


def test_classes_of_one_image():
    files = files_of("0001.png", "0002.png", "0003.png", "0004.png")
    (line,) = read_labels(files, "filename").warnings
    assert line.startswith("data_dir data: 4 of 4 classes have a single image (0001.png, 0002.png, 0003.png, ...); ")
    assert line.endswith('or give --labels FILE.csv with lines "file,label"')
    files = numbered("cat/{}.png", "dog/{}.png")
    (line,) = read_labels(files_of(*files.names, "fox/7.png")).warnings
    assert "1 of 3 classes have a single image (fox)" in line
    assert not read_labels(files_of("cat/1.png", "dog/2.png"), class_names=["cat", "dog"]).warnings, "to validate"


@pytest.mark.parametrize(
    ("first", "second"), [("Cat", "cat"), ("cat ", "cat"), ("hot dog", "hot  Dog"), ("caf\u00e9", "cafe\u0301")]
)
def test_labels_that_look_the_same(tmp_path, first, second):
    for files, rule in (
        (numbered(f"{first}/{{}}.png", f"{second}/{{}}.png"), "folder"),
        (numbered(f"{first}_{{}}.png", f"{second}_{{}}.png"), "auto"),
    ):
        found = read_labels(files, rule)
        (line,) = found.warnings
        assert len(found.names) == 2 and f"{found.names[0]!r} and {found.names[1]!r}" in line
        assert "they count as different classes; where they are one, rename files or folders, or give --labels" in line


REFUSED = {
    "flat, numbered": (
        ["IMG000{}.png"], "4 classes (IMG0000.png, IMG0001.png, IMG0002.png, ...) (4 of 4 have no _), ", ""
    ),
    "one class": (["cat_{}.png"], "give 1 class (cat), there is no folder for each class; expected 2 to 2", "filename"),
    "one class folder": (["cat/{}.png"], "folders 1 class (cat); expected 2 to 2. ", "folder"),
    "both": (["cat/dog_{}.png"], "give 1 class (dog), folders 1 class (cat); ", "filename or --labels folder"),
    "ImageNet's validation": (["ILSVRC2012_val_{}.JPEG"], "file names give 1 class (ILSVRC2012), ", "filename"),
}  # fmt: skip


@pytest.mark.parametrize("layout", REFUSED)
def test_auto_refuses_what_has_no_classes_and_names_the_remedies(layout):
    patterns, fragment, rules = REFUSED[layout]
    with pytest.raises(InputError) as caught:
        read_labels(numbered(*patterns))
    line = str(caught.value)
    assert line.startswith("data_dir data: found no classes in 4 images: ") and fragment in line
    anyway = f"--labels {rules} takes that rule whatever the number, " if rules else ""
    assert f"expected 2 to 2. {anyway}--labels FILE.csv" in line, "no rule that would make one class an image"
    assert line.endswith('--labels FILE.csv reads lines "file,label"')
    assert len(read_labels(numbered(*patterns), "filename").labels) == 4


def test_auto_refuses_folders_in_folders_that_can_be_read_in_two_ways():
    files = numbered("train/cat/{}.png", "train/dog/{}.png", "val/cat/{}.png", "val/dog/{}.png")
    with pytest.raises(InputError) as caught:
        read_labels(files)
    line = str(caught.value)
    assert "the first ones give 2 classes (train, val: names that cameras and programs write), " in line
    assert "the last 2 classes (cat, dog); --labels folder takes the first, " in line
    assert read_labels(files, "folder").names == ["train", "val"]


def test_folder_needs_a_folder_for_every_image():
    with pytest.raises(InputError) as caught:
        read_labels(files_of("cat/1.png", "2.png"), "folder")
    assert str(caught.value) == (
        "data_dir data: --labels folder: 1 of 2 images are in no folder, such as 2.png; expected every image in a "
        'folder of its class; or give --labels FILE.csv with lines "file,label"'
    )


def test_known_classes_choose_the_rule():
    """Validation sets and resumed runs: too few images for auto's bound, but the names are known."""
    names = ["n01", "n02", "n03"]
    found = read_labels(files_of("n01/ILSVRC2012_val_1.JPEG", "n03/ILSVRC2012_val_2.JPEG"), class_names=names)
    assert (found.labels, found.source) == (("n01", "n03"), "folder")
    assert read_labels(files_of("a/n01_1.JPEG", "b/n03_2.JPEG"), class_names=names).source == "file name"
    files = files_of("n01/0.png", "n07/1.png")
    with pytest.raises(InputError, match=r"n07/1.png: its label 'n07' is none of the 3 known classes \(n01, n02, "):
        read_labels(files, class_names=names).number(files, names)


def csv(tmp_path: Path, text: str) -> str:
    (tmp_path / "labels.csv").write_text(text)
    return str(tmp_path / "labels.csv")


@pytest.mark.parametrize(
    "rows",
    [
        "a/1.png,dog\nb/2.png,cat\n", "file,label\n1.png, dog\n2.png,cat\n", "id,breed\n1,dog\n2,cat",
        "a/1.png;dog\nb/2.png;cat\n", "file\tlabel\n1.png\tdog\n2.png\tcat", "./a/1.png,dog\n./b/2.png,cat",
        "a\\1.png;dog\nb\\2.png;cat", "data/a/1.png,dog\n./data/b/2.png,cat",
    ],
)  # fmt: skip
def test_labels_of_a_csv_file(tmp_path, rows):
    files = files_of("a/1.png", "b/2.png")
    found = read_labels(files, csv(tmp_path, rows))
    assert found.labels == ("dog", "cat") and found.number(files) == [1, 0]


def test_commas_are_taken_first(tmp_path):
    found = read_labels(files_of("a;1.png", "b;2.png"), csv(tmp_path, "a;1.png,dog\nb;2.png,cat"))
    assert found.labels == ("dog", "cat")
    assert read_labels(files_of("2.png", "a,1.png"), csv(tmp_path, "a,1.png;x,y\n2.png;z")).labels == ("z", "x,y")
    assert read_labels(files_of("a\\1.png"), csv(tmp_path, "a\\1.png,dog")).labels == ("dog",)


@pytest.mark.parametrize("rows", ["dog,1.png\ndog,2.png", "label;file\ndog;./a/1.png\ncat;b\\2.png"])
def test_swapped_columns(tmp_path, rows):
    with pytest.raises(InputError, match=r"labels.csv: the columns look swapped: expected file,label, found \w+,"):
        read_labels(files_of("a/1.png", "b/2.png"), csv(tmp_path, rows))


def test_a_name_of_several_images(tmp_path):
    found = read_labels(files_of("a/1.png", "b/1.png"), csv(tmp_path, "1.png,dog"))
    assert found.labels == ("dog", "dog") and "1 of its names are those of several images" in found.warnings[0]


def test_numbers_in_a_file_are_in_the_order_of_numbers(tmp_path):
    files = files_of(*(f"{i:02}.png" for i in range(12)))
    found = read_labels(files, csv(tmp_path, "".join(f"{i:02}.png,{i}\n" for i in range(12))))
    assert found.number(files) == list(range(12))
    by_name = read_labels(files_of(*(f"{i}_{k}.png" for i in range(12) for k in range(2))))
    assert by_name.names[:4] == ["0", "1", "10", "11"]  # upstream's order, which checkpoints depend on


def test_bad_csv_files(tmp_path):
    files = files_of("a/1.png", "b/2.png")
    for rows, line in {
        "1.png,dog\n": r"labels.csv: has no label for 1 of 2 images, such as data/b/2.png",
        "1.png,dog\n1.png,cat\n": "gives 1.png two labels, 'dog' and 'cat'",
        "1.png,dog\n2.png,cat,3\n": 'row 2 has 3 columns, expected two: "file,label"',
        "1.png;dog\n2.png;cat;3\n": 'row 2 has 3 columns, expected two: "file,label"',
        "1.png,\n2.png,cat\n": "gives 1.png no label, expected one for every image",
        "\0": "row 1 has 1 columns",
        "1.png," + "x" * 200_000: "no CSV file: field larger than field limit",
        "": "has no label for 2 of 2 images",
    }.items():
        with pytest.raises(InputError, match=line):
            read_labels(files, csv(tmp_path, rows))
    with pytest.raises(InputError, match="--labels none.csv: no such file"):
        read_labels(files, "none.csv")
    with pytest.raises(InputError, match="--labels folders: expected one of auto, folder, filename, or a FILE.csv"):
        read_labels(files, "folders")
    (tmp_path / "labels.csv").write_bytes(b"1.png,dog\n2.png,Gr\xfcn\n")
    with pytest.raises(InputError, match="labels.csv: line 2 is not in UTF-8, expected a CSV file saved in UTF-8"):
        read_labels(files, str(tmp_path / "labels.csv"))


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_files_of_other_programs(tmp_path, coding, end):
    path = tmp_path / "labels.csv"
    path.write_bytes(f"file,label{end}1.png,grün{end}2.png,rot{end}".encode(coding))
    assert read_labels(files_of("a/1.png", "b/2.png"), str(path)).labels == ("grün", "rot")


def test_names_that_cameras_write_are_classes_only_where_that_is_said():
    files = numbered("IMG_{}.png", "DSC_{}.png")
    (line,) = read_labels(files, "filename").warnings
    assert "2 classes (DSC, IMG: names that cameras and programs write): they count as classes; where they are" in line


def edm_zip(path: Path, content: object, count: int = 6) -> Path:
    """As EDM's dataset_tool.py writes: 00000/img00000000.png and dataset.json."""
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(count):
            file = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(file, format="PNG")
            archive.writestr(f"00000/img{i:08}.png", file.getvalue())
        archive.writestr("dataset.json", json.dumps(content))
    return path


def test_the_dataset_json_of_edm(tmp_path):
    pairs = [[f"00000/img{i:08}.png", 10 * (i % 2)] for i in range(6)]
    files = list_images(str(edm_zip(tmp_path / "a.zip", {"labels": pairs})))
    found = read_labels(files)
    assert found.source == "dataset.json" and not files.skipped
    assert found.names == ["0", "10"] and found.number(files) == [0, 1, 0, 1, 0, 1]
    with pytest.raises(InputError, match="found no classes in 6 images"):
        read_labels(list_images(str(edm_zip(tmp_path / "b.zip", {"labels": None}))))
    for content, line in (
        ({"labels": pairs[:5]}, "a.zip: dataset.json: has no label for 1 of 6 images"),
        ({"labels": [["x", "y"]]}, r"dataset.json: expected \"labels\": .*, found \['x', 'y'\]"),
        ({"labels": 3}, "found a int"),
        ([], "expected a JSON object, found a list"),
    ):
        with pytest.raises(InputError, match=line):
            read_labels(list_images(str(edm_zip(tmp_path / "a.zip", content))))


def test_labels_of_an_image_set_by_known_names(tmp_path):
    for name in ("cat/0.png", "dog/0.png"):
        (tmp_path / "s" / name).parent.mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "s" / name)
    images = open_image_set(tmp_path / "s")
    assert images.labels() is None and images.labels(["ant", "cat", "dog"]).tolist() == [1, 2]
    assert images.labels(["ant", "cat"]) is None


@pytest.fixture
def class_folders(tmp_path) -> Path:
    """Three class folders of files that are numbered from 0 in each."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog", "fox")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4 + label):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i:04}.png")
    return tmp_path / "images"


TRAIN = {"iterations": 2, "batch_size": 2, "save_interval": 1, **DIFFUSION}
TABLE = "15 images, 3 classes by folder: cat 4, dog 5, fox 6 (smallest 4, largest 6)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "flags"), [("classifier_train", CLASSIFIER), ("image_train", {**MODEL, "class_cond": True})]
)
def test_training_on_class_folders(run: Runner, class_folders, tmp_path, script, flags):
    command = {"data_dir": class_folders, "log_dir": "out", **TRAIN, **flags}
    assert TABLE in run(script, command).stdout
    config = read_json(tmp_path / "out" / "config.json")
    assert config["class_names"] == ["cat", "dog", "fox"] and config["num_classes"] == 3
    run(script, command | {"labels": "folder", "iterations": 3})  # the same labels: the same run
    line = run(script, command | {"labels": "filename", "iterations": 4}, fails=True).error_lines[0]
    assert "the run there has 3 classes (cat, dog, fox)" in line and "(0000.png, 0001.png, 0002.png, ...)" in line


def test_a_run_that_began_with_upstreams_rule_keeps_its_labels(run: Runner, class_folders, tmp_path):
    command = {"data_dir": class_folders, "log_dir": "out", **TRAIN, **CLASSIFIER}
    run("classifier_train", command | {"labels": "filename"})
    config = read_json(tmp_path / "out" / "config.json")
    del config["labels"]  # an earlier version had no such flag
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    assert "6 classes by file name" in run("classifier_train", command | {"iterations": 3}).stdout


def test_training_on_names_that_are_no_text(run: Runner, class_folders, tmp_path):
    os.rename(class_folders / "cat", os.fsencode(class_folders) + b"/c\xe4t")
    command = {"data_dir": class_folders, "log_dir": "out", **TRAIN, **CLASSIFIER}
    assert "15 images, 3 classes by folder" in run("classifier_train", command).stdout
    assert "already complete" in run("classifier_train", command).stdout


def test_training_by_a_csv_file(run: Runner, tmp_path):
    """As for flat, numbered photographs; validation images are looked up in the same file."""
    rows = ["file,label"]
    for number in range(9):
        name = ("train", "val")[number > 5]
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 25 * number, np.uint8)).save(tmp_path / name / f"IMG{number:04}.jpg")
        rows.append(f"IMG{number:04}.jpg,{('cat', 'dog')[number % 2]}")
    (tmp_path / "l.csv").write_text("\n".join(rows))
    flags = {"data_dir": "train", "val_data_dir": "val", "labels": "l.csv", "log_dir": "out", **TRAIN, **CLASSIFIER}
    told = run("classifier_train", flags).stdout
    assert "data_dir train: 6 images, 2 classes by l.csv: cat 3, dog 3 (smallest 3, largest 3)" in told
    assert "data_dir val: 3 images, 2 classes by l.csv: cat 2, dog 1 (smallest 1, largest 2)" in told


def test_a_run_whose_labels_became_others_is_refused(run: Runner, class_folders, tmp_path):
    """The classes may still be called the same."""
    names = [f"{path.parent.name}/{path.name}" for path in sorted(class_folders.rglob("*.png"))]
    command = {"data_dir": class_folders, "log_dir": "out", "labels": "l.csv", **TRAIN, **CLASSIFIER}
    for labels, fails in ("xyz", False), ("zyx", True):
        rows = (f"{name},{labels[number % 3]}" for number, name in enumerate(names))
        (tmp_path / "l.csv").write_text("\n".join(rows))
        done = run("classifier_train", command | {"iterations": 3 if fails else 2}, fails=fails)
    assert "--labels SHA-256 " in done.error_lines[0] and "classes" not in done.error_lines[0]


def test_warnings_of_labels_are_repeated_at_the_end(run: Runner, class_folders, tmp_path):
    for number, path in enumerate(sorted(class_folders.rglob("*.png"))):
        path.rename(path.with_name(f"{'ab'[number % 2]}_{number}.png"))
    command = {"data_dir": class_folders, "log_dir": "out", **TRAIN, **CLASSIFIER}
    first, end = run("classifier_train", command).stdout.split("checkpoints: ")
    for told in first, end:
        assert "file names give 2 classes (a, b), folders 3 classes (cat, dog, fox); taking the file names'" in told


@pytest.mark.parametrize(("script", "flags"), [("image_train", MODEL), ("super_res_train", SUPER_RES)])
def test_without_classes_the_images_are_counted_and_labels_not_read(run: Runner, class_folders, script, flags):
    command = {"data_dir": class_folders, "log_dir": "out", **TRAIN, **flags}
    told = run(script, command | {"labels": "folder"}).stdout
    assert f"data_dir {class_folders}: 15 images\n" in told
    assert "--labels folder: not read, without --class_cond True the network has no classes" in told
    assert "not read" not in run(script, command | {"log_dir": "other"}).stdout


@pytest.mark.parametrize(("script", "network"), [("image_nll", "model"), ("super_res_sample", "super_res")])
def test_other_programs_that_do_not_read_labels(run: Runner, class_folders, checkpoints, script, network):
    for path in class_folders.rglob("*.png"):
        Image.open(path).resize((4, 4)).save(path)
    place = {"image_nll": "data_dir", "super_res_sample": "base_samples"}[script]
    flags = {"model_path": checkpoints[network], place: class_folders, "num_samples": 1, "timestep_respacing": "2"}
    told = run(script, flags | {"labels": "folder", "batch_size": 1, "log_dir": "out"}).stdout
    assert "--labels folder: not read, without --class_cond True the network has no classes" in told


def test_warnings_of_labels_are_given_to_a_resumed_run_too(run: Runner, tmp_path):
    make_images(tmp_path / "images", names=["cat", "Cat", "dog"], per_class=2)
    command = {"data_dir": "images", "log_dir": "out", **TRAIN, **CLASSIFIER}
    for _ in range(2):
        told = run("classifier_train", command).stdout
        assert "labels differ by case, white space or the coding of accents alone ('Cat' and 'cat')" in told
    assert "already complete" in told


def test_training_without_classes_needs_no_labels(run: Runner, class_folders, tmp_path):
    for number, path in enumerate(sorted(class_folders.rglob("*.png"))):
        path.rename(class_folders / f"IMG{number:04}.png")
    command = {"data_dir": class_folders, "log_dir": "out", **TRAIN, **MODEL}
    run("image_train", command)
    line = run("image_train", command | {"class_cond": True, "log_dir": "other"}, fails=True).error_lines[0]
    assert "found no classes in 15 images" in line


def test_training_on_a_zip_of_edm(run: Runner, tmp_path):
    edm_zip(tmp_path / "d.zip", {"labels": [[f"00000/img{i:08}.png", i % 3] for i in range(6)]})
    done = run("classifier_train", {"data_dir": "d.zip", "log_dir": "out", **TRAIN, **CLASSIFIER, "data_workers": 2})
    assert "6 images, 3 classes by dataset.json: 0 2, 1 2, 2 2 (smallest 2, largest 2)" in done.stdout

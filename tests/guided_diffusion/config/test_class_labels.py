"""Classes by number and by name, classes that training never saw, and a classifier that knows other classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from guided_diffusion import logger
from guided_diffusion.config.class_labels import Classes
from guided_diffusion.errors import InputError
from tests.support.helpers import CLASSIFIER, DIFFUSION, Run, make_checkpoint, make_images, read_npz

ELEVEN = Classes(11, tuple(sorted(map(str, range(11)))))  # 0, 1, 10, 2, ...
ANIMALS = Classes(5, ("cat", "dog", "fox"), (0, 1, 2))
DRAW = {"num_samples": 6, "batch_size": 6, "timestep_respacing": "2", "balanced": None}


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    said = []
    monkeypatch.setattr(logger, "warning", said.append)
    return said


@pytest.mark.parametrize(
    ("classes", "text", "expected"),
    [
        (ELEVEN, "name:10", [2]),
        (ELEVEN, "name:2,0", [3, 0]),
        (ELEVEN, "", list(range(11))),
        (ANIMALS, "dog,fox", [1, 2]),
        (ANIMALS, " fox , 0", [2, 0]),
        (ANIMALS, "", [0, 1, 2]),
        (Classes(3, ("2014", "cat", "dog")), "2014", [0]),
        (Classes(3, ("-1", "cat", "dog")), "-1", [0]),
        (Classes(2, ("name:a", "b")), "name:name:a", [0]),
    ],
)
def test_by_name_and_number(classes, text, expected, warnings):
    assert classes.choose(text) == expected and not warnings


@pytest.mark.parametrize(
    ("classes", "text", "says"),
    [
        (ELEVEN, "2", "found 2, .*name:2 for the class of that name .number 3. or name:10 for class number 2"),
        (ELEVEN, "11", "found 11, expected 0 to 10"),
        (ANIMALS, "owl", "found 'owl', expected numbers from 0 to 4, or names: cat, dog, fox"),
        (ANIMALS, "name:1", "found 'name:1', expected"),
        (Classes(3), "dog", "found 'dog', expected .*no config.json beside the checkpoint tells the classes' names"),
    ],
)
def test_refused(classes, text, says):
    with pytest.raises(InputError, match=f"--classes: {says}"):
        classes.choose(text)


def test_a_class_that_training_never_saw(warnings):
    assert ANIMALS.choose("1,4") == [1, 4]
    assert "--classes: training never saw 4" in warnings[0]
    named = Classes(3, ("cat", "dog", "fox"), (0, 2))
    assert named.choose("") == [0, 2]


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        (None, Classes(3)),
        ({"class_names": None}, Classes(3)),
        ({"class_names": ["a", "b"]}, Classes(3, ("a", "b"), (0, 1))),
        ({"class_names": ["a", "b"], "seen_classes": [1]}, Classes(3, ("a", "b"), (1,))),
    ],
)
def test_what_config_json_says(saved, expected):
    assert Classes.from_config(3, saved, "model.pt") == expected


@pytest.mark.parametrize(
    "saved",
    [
        {"class_names": "ab"}, {"class_names": [1]}, {"class_names": list("abcd")}, {"seen_classes": [3]},
        {"seen_classes": 1}, {"seen_classes": [True]},
    ],
)  # fmt: skip
def test_nonsense_in_config_json(saved):
    with pytest.raises(InputError, match=r"^model.pt: config.json beside it has"):
        Classes.from_config(3, saved, "model.pt")


def labels_of(folder: Path) -> set[int]:
    return set(read_npz(folder / "samples_6x8x8x3.npz")["arr_1"].tolist())


def test_image_sample_by_name(run, tmp_path):
    notes = {"class_names": ["0", "1", "10", "2"]}
    path = make_checkpoint(tmp_path / "model", "model", class_cond=True, num_classes=6, notes=notes)
    ended = run("image_sample", DRAW | {"model_path": path, "classes": "name:10,1", "log_dir": "named"})
    assert "classes sampled: 2 = 10, 1 = 1" in ended.stdout and labels_of(tmp_path / "named") == {1, 2}
    ended = run("image_sample", DRAW | {"model_path": path, "log_dir": "all"})
    assert "classes sampled: 0 = 0, 1 = 1, 2 = 10, 3 = 2" in ended.stdout
    assert "not sampled: 2 of 6 labels, which were not in the training data" in ended.stdout
    assert labels_of(tmp_path / "all") == {0, 1, 2, 3}
    assert json.loads((tmp_path / "all" / "run.json").read_text())["classes"] == "0,1,2,3"
    assert "already complete" in run("image_sample", DRAW | {"model_path": path, "log_dir": "all"}).stdout
    ended = run("image_sample", DRAW | {"model_path": path, "classes": "5", "log_dir": "unseen"})
    assert "--classes: training never saw 5" in ended.stdout


class TestGuide:
    """classifier_sample with a classifier that does not fit its model."""

    @pytest.fixture
    def sample(self, run, tmp_path):
        def call(model: dict, classifier: dict, fails: bool = False, **flags) -> Run:
            flags = {"class_cond": True, "num_classes": 3} | flags
            paths = {
                "model_path": make_checkpoint(tmp_path / "model", "model", notes=model, **flags),
                "classifier_path": make_checkpoint(tmp_path / "guide", "classifier", notes=classifier, num_classes=3),
            }
            return run("classifier_sample", DRAW | paths | {"log_dir": "out"}, fails=fails)

        return call

    def test_other_classes(self, sample):
        names = [{"class_names": text.split()} for text in ("cat dog fox", "dog fox owl")]
        (line,) = sample(*names, fails=True).error_lines
        assert "--classifier_path" in line and "class 0 is 'dog', but 'cat' for --model_path" in line

    def test_another_number_of_classes(self, sample):
        names = [{"class_names": text.split()} for text in ("cat dog", "cat dog fox")]
        (line,) = sample(*names, fails=True, num_classes=2).error_lines
        assert "model.pt has 2 classes (cat, dog), but --classifier_path" in line
        assert "has 3 classes (cat, dog, fox); expected a classifier of the same classes" in line

    def test_classes_that_both_have_seen(self, sample, tmp_path):
        names = [{"class_names": text.split()} for text in ("cat dog fox", "cat dog")]
        ended = sample(*names)
        assert "not sampled: 1 of 3" in ended.stdout and labels_of(tmp_path / "out") == {0, 1}
        assert "--classifier_path" not in ended.stdout

    def test_an_unconditional_model_takes_the_classifiers(self, sample, tmp_path):
        sample({"class_names": None}, {"class_names": ["cat", "dog"]}, class_cond=False)
        assert labels_of(tmp_path / "out") == {0, 1}

    def test_trained_on_clean_images(self, sample):
        printed = sample({}, {"noised": False}).stdout
        assert "warning: --classifier_path" in printed
        assert "trained on clean images" in printed and "--noised True" in printed

    def test_another_process(self, sample):
        printed = sample({}, {"noise_schedule": "linear"}, rescale_timesteps=True).stdout
        assert "trained with linear, sampling uses cosine" in printed and "--noise_schedule cosine" in printed
        assert "--rescale_timesteps: the classifier sees t * 1000 / T" in printed


def test_upsampling_with_a_label_that_training_never_saw(run, tmp_path):
    path = make_checkpoint(tmp_path / "m", "super_res", class_cond=True, notes={"class_names": ["cat", "dog"]})
    np.savez(tmp_path / "base.npz", np.zeros((6, 4, 4, 3), np.uint8), np.array([0, 1, 3, 0, 1, 3]))
    flags = {"model_path": path, "base_samples": "base.npz", "num_samples": 2, "timestep_respacing": "2"}
    ended = run("super_res_sample", flags | {"log_dir": "out"})
    assert "--base_samples: it has labels that training never saw: 3" in ended.stdout


def test_training_says_what_a_folder_has(run, tmp_path):
    images = make_images(tmp_path / "images", names=["ant", "bee", "cat"])
    flags = CLASSIFIER | DIFFUSION | {"data_dir": images, "iterations": 1, "batch_size": 4, "log_dir": "out"}
    printed = run("classifier_train", flags).stdout
    assert f"3 classes, counted in {images}; --num_classes 1000 makes a checkpoint that upstream's" in printed
    assert "seen_classes" not in json.loads((tmp_path / "out" / "config.json").read_text())

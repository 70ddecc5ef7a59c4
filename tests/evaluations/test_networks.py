"""Networks to judge by: what they are is part of every result; any function; how good a classifier is."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluations import evaluator
from evaluations.features.classifier import ClassifierExtractor
from evaluations.features.function import FunctionExtractor, names_function
from evaluations.metrics.frechet import frechet_distance
from evaluations.metrics.inception_score import inception_score
from evaluations.metrics.statistics import fit_gaussian
from guided_diffusion.errors import InputError
from guided_diffusion.io.checkpoint import write_config
from tests.support.evaluations import CLASSIFIER_CONFIG, make_images, write_classifier
from tests.support.helpers import ROOT

REFERENCE, SAMPLES = make_images(0, 24, 16), make_images(1, 20, 16)
EVALUATOR = ROOT / "evaluations" / "evaluator.py"

MODULE = """
import numpy as np, torch

def features(images):
    assert images.dtype == torch.uint8 and images.shape[1] == 3
    return images[:, :, ::4, ::4].flatten(1).float() / 255

def both(images):
    return features(images), features(images)[:, :5]

class Network(torch.nn.Module):
    def forward(self, images):
        return features(images)

network = Network()
number, words = 3, lambda images: "words"
arrays = lambda images: features(images).numpy().astype(np.float64)
many = lambda images: (features(images),) * 3
short = lambda images: features(images)[1:]
square = lambda images: images.float()
fails = lambda images: features(images) @ torch.zeros(2, 2)
nothing = lambda images: features(images) * float("nan")
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_network", raising=False)
    Path("own_network.py").write_text(MODULE)
    np.savez("ref.npz", REFERENCE)
    np.savez("s.npz", SAMPLES)
    return tmp_path


@pytest.mark.slow
def test_another_architecture_of_the_same_weights_is_another_network(place):
    """Such as a flag that changes no weight's shape: it must not find the other's cache entry."""
    checkpoint = write_classifier(place)
    found = []
    for scale_shift in (True, False):
        write_config(place, CLASSIFIER_CONFIG | {"classifier_resblock_updown": True, "classifier_num_heads": 1})
        config = json.loads(Path("config.json").read_text())
        config |= {"classifier_num_head_channels": 32 if scale_shift else 16}
        Path("config.json").write_text(json.dumps(config))
        for cache in ("cache", None):
            found.append(evaluator.evaluate("ref.npz", "s.npz", ClassifierExtractor(checkpoint), cache=cache))
    cached, plain, other_cached, other_plain = found
    assert cached.fid == plain.fid and other_cached.fid == other_plain.fid != plain.fid
    assert len(os.listdir("cache")) == 2
    assert plain.network_sha256 == other_plain.network_sha256
    assert plain.network_config["classifier_num_head_channels"] == 32
    assert other_plain.network_config["classifier_num_head_channels"] == 16


@pytest.mark.slow
def test_any_function_gives_features(place, run):
    found = run(EVALUATOR, ["ref.npz", "s.npz", "--features", "own_network:features", "--json", "out.json"])
    assert [line.split(":")[0] for line in found.stdout.splitlines()] == ["FID", "Precision", "Recall"]
    for line in ("function own_network:features: gives no spatial features: no sFID", "no logits: no inception score"):
        assert line in found.stderr
    sets = (x.transpose(0, 3, 1, 2)[:, :, ::4, ::4] for x in (REFERENCE, SAMPLES))
    pools = [x.reshape(len(x), -1) / np.float32(255) for x in sets]
    written = json.loads(Path("out.json").read_text())
    assert written["fid"] == pytest.approx(frechet_distance(*map(fit_gaussian, pools)), rel=1e-5)
    assert written["sfid"] is written["inception_score"] is None
    shared = run(EVALUATOR, ["ref.npz", "s.npz", "--features", "own_network:features"], launcher="fork2")
    assert shared.stdout == found.stdout


def test_a_function_may_give_logits_too(place):
    np.savez("s.npz", SAMPLES, np.arange(20) % 5)
    engine = FunctionExtractor("own_network:both", batch_size=7)
    found = evaluator.evaluate("ref.npz", "s.npz", engine, extra=True, bootstrap=3, paired="s.npz", paired_rounds=1)
    logits = torch.from_numpy(engine.compute_activations([SAMPLES]).pool[:, :5])
    assert found.inception_score == pytest.approx(inception_score(logits.softmax(-1).numpy()))
    assert found.accuracy == pytest.approx((logits.argmax(-1).numpy() == np.arange(20) % 5).mean())
    assert found.sfid is None and "sfid" not in found.intervals | found.paired


@pytest.mark.parametrize("name", ["network", "arrays", "Network.forward"])
def test_what_may_stand_for_a_function(place, name):
    if name == "Network.forward":
        with pytest.raises(InputError, match="Network.forward: TypeError on images"):
            evaluator.evaluate("ref.npz", "s.npz", FunctionExtractor(f"own_network:{name}"))
        return
    engines = [FunctionExtractor(f"own_network:{one}") for one in ("features", name)]
    plain, other = (evaluator.evaluate("ref.npz", "s.npz", engine) for engine in engines)
    assert plain.fid == other.fid


def test_grey_images_are_repeated(place):
    engine = FunctionExtractor("own_network:features")
    grey, repeated = (engine.compute_activations([x]) for x in (SAMPLES[..., :1], SAMPLES[..., :1].repeat(3, axis=-1)))
    np.testing.assert_array_equal(grey.pool, repeated.pool)


BAD = {
    "none": "--features own_network:none: AttributeError",
    "number": "--features own_network:number: found a int, expected a function",
    "words": "--features own_network:words: returned a str, expected a tensor",
    "many": "returned 3 values, expected features, or features and logits",
    "short": r"returned the shape \[23, 48\], expected \[24, D\]",
    "square": r"returned the shape \[24, 3, 16, 16\], expected",
    "fails": r"--features own_network:fails: RuntimeError on images \[24, 3, 16, 16\]",
    "nothing": "function own_network:nothing yields pooled outputs that are nan",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_functions(place, name):
    with pytest.raises(InputError, match=BAD[name]):
        evaluator.evaluate("ref.npz", "s.npz", FunctionExtractor(f"own_network:{name}"))


def test_a_module_that_is_not_there_or_broken(place):
    with pytest.raises(InputError, match="--features no_such_module:f: ModuleNotFoundError: No module named"):
        FunctionExtractor("no_such_module:f")
    Path("broken_network.py").write_text("1 / 0")
    with pytest.raises(InputError, match="--features broken_network:f: ZeroDivisionError"):
        FunctionExtractor("broken_network:f")


def test_a_path_is_no_function(place):
    assert names_function("package.module:function.part")
    for path in ("run/model.pt", "C:/model.pt", "model.pt", "a:b:c", "a b:c"):
        assert not names_function(path)
    Path("own:file").touch()
    assert not names_function("own:file")


def _labels_by(engine: ClassifierExtractor, images: np.ndarray, wrong: int) -> np.ndarray:
    """The network's own classes, but for the first ``wrong`` images."""
    labels = engine.compute_activations([images]).probabilities.argmax(axis=1)
    labels[:wrong] = (labels[:wrong] + 1) % 5
    return labels


@pytest.mark.parametrize(("wrong", "poor"), [(0, False), (4, False), (6, True)])
def test_the_classifiers_accuracy_on_the_reference(place, run, wrong, poor):
    """It is printed whenever the reference has labels, and said to be poor below four fifths."""
    checkpoint = write_classifier(place)
    np.savez("ref.npz", REFERENCE, _labels_by(ClassifierExtractor(checkpoint), REFERENCE, wrong))
    found = run(EVALUATOR, ["ref.npz", "s.npz", "--features", str(checkpoint), "--json", "out.json"])
    accuracy = json.loads(Path("out.json").read_text())["reference_accuracy"]
    assert accuracy == pytest.approx((24 - wrong) / 24)
    assert f"Reference accuracy: {accuracy}" in found.stdout.splitlines()
    said = "agrees with 75.0% of these labels only (by chance: 20.0%; expected at least 80%): it may score noise"
    assert (said in found.stderr) == poor


def test_classes_go_by_name_where_both_sides_know_them(place):
    checkpoint = write_classifier(place)
    write_config(place, CLASSIFIER_CONFIG | {"class_names": list("abcde")})
    engine = ClassifierExtractor(checkpoint)
    labels = _labels_by(engine, REFERENCE, wrong=0)
    names = ["e", "d", "c", "b", "a", "never"]  # numbered the other way round

    def judged(names: list) -> evaluator.Metrics:
        np.savez("ref.npz", REFERENCE, 4 - labels, settings=np.array(json.dumps({"class_names": names})))
        return evaluator.evaluate("ref.npz", "s.npz", engine)

    assert judged(names).reference_accuracy == 1
    other = judged([*"zyxwv"])
    assert other.reference_accuracy is None
    assert any("ref.npz: no accuracy: found the classes" in line for line in other.warnings)
    assert judged([1, [2]]).reference_accuracy is not None  # no names: by number


def test_class_folders_of_a_reference_are_labels_for_a_judge_that_knows_their_names(place):
    checkpoint = write_classifier(place)
    write_config(place, CLASSIFIER_CONFIG | {"class_names": list("abcde")})
    engine = ClassifierExtractor(checkpoint)
    for number, (image, label) in enumerate(zip(REFERENCE, _labels_by(engine, REFERENCE, wrong=0), strict=True)):
        path = Path("reference", "abcde"[label], f"IMG{number:03d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    assert evaluator.evaluate("reference", "s.npz", engine).reference_accuracy == 1

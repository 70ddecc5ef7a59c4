"""The flags of guidance beyond the paper: runs, what run.json keeps, and what is refused."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

from benchmarks.gpu import program_checks
from ed_dpm_patches import ClassifierGuidance, EntropyRule
from ed_dpm_patches.config import with_rule_named
from guidance_methods import AtDenoised, GuidanceEvery, SineVariance, Stabilized, Through
from guidance_methods.config import MethodsConfig, parse_classes
from guidance_methods.terms import with_methods
from guided_diffusion.errors import InputError
from guided_diffusion.script_util import create_gaussian_diffusion
from tests.support.helpers import read_npz

sample = partial(program_checks.call, "classifier_sample")


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    return program_checks.guided(tmp_path_factory.mktemp("networks")) | {"eds": False, "guidance": "constant"}


def images(folder) -> np.ndarray:
    return read_npz(next(folder.glob("samples_*.npz")))["arr_0"]


def test_runs(flags, tmp_path):
    """Each changes the images, alone or with EDS; run.json names what was asked for."""
    asked = {
        "plain": {},
        "elucd": {"guidance": "elucd", "guidance_t2": 0.3, "eds": True, "eds_cap": 20.0},
        "reverse-kl": {"guidance": "reverse-kl", "eds": True, "guidance_smoothing": 0.2},
        "multi": {"guidance": "multi", "guidance_classes": "1:2,2"},
        "steps": {"guidance_at": "denoised", "stabilizer": "adam", "guidance_every": 2},
    }
    found = {}
    for name, more in asked.items():
        folder = sample(tmp_path / name, **flags | more)
        saved = json.loads((folder / "run.json").read_text())
        assert {key: saved[key] for key in more} == more and saved["guidance"] == more.get("guidance", "constant")
        found[name] = images(folder)
    assert all((found[name] != found["plain"]).any() for name in asked if name != "plain")
    again = sample(tmp_path / "again", **flags | asked["steps"])
    assert np.array_equal(images(again), found["steps"])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"guidance": "elucd", "eds": True}, "--eds_cap: found none with the entropy factor on ElucdRule, expected a"),
        ({"guidance_t2": 0.3}, "--guidance_t2: found with --guidance constant, expected elucd"),
        ({"guidance": "kl", "guidance_classes": "1"}, "--guidance_classes: found with --guidance kl, expected mul"),
        ({"guidance": "negative"}, "--guidance_classes: found none with --guidance negative"),
        ({"guidance": "negative", "guidance_classes": "99"}, "--guidance_classes: found 99, the classifier's classes"),
        ({"guidance_every": 2, "trace": "x.npz"}, "--trace: found together with --guidance_every 2, expected one"),
        ({"stabilizer": "ema", "trace": "x.npz"}, "--trace: found together with --stabilizer ema"),
        ({"guidance_at": "denoised", "trace": "x.npz"}, "--trace: found together with --guidance_at denoised"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(flags, tmp_path, more, says):
    with pytest.raises(InputError, match=says):
        sample(tmp_path / "out", **flags | more | ({"trace": tmp_path / "x.npz"} if "trace" in more else {}))


def test_lists_of_classes():
    assert parse_classes("") == ((), ()) and parse_classes("3,7") == ((3, 7), (1.0, 1.0))
    assert parse_classes("3:0.5,7:-1") == ((3, 7), (0.5, -1.0))
    for text in ("a", "1.5", "3;4", "3:x"):
        with pytest.raises(ValueError):
            parse_classes(text)


def test_the_default_is_the_guidance_itself():
    guidance = ClassifierGuidance(lambda x, t: x, EntropyRule())
    host = create_gaussian_diffusion(steps=10, noise_schedule="cosine"), lambda x, t, y: x, True
    assert with_methods(guidance, MethodsConfig(), *host) is guidance
    steps = {"stabilizer": "adam", "guidance_every": 3, "guidance_sine": 0.3}
    for place, kind in (("denoised", AtDenoised), ("through", Through)):
        wrapped = with_methods(guidance, MethodsConfig(guidance_at=place, **steps), *host)
        assert wrapped.report is guidance.report and wrapped.wants_variance
        assert wrapped.wants_x0 == (place == "denoised")
        layers = [wrapped]
        while hasattr(layers[-1], "guidance"):
            layers.append(layers[-1].guidance)
        assert [type(layer) for layer in layers] == [SineVariance, GuidanceEvery, Stabilized, kind, ClassifierGuidance]


def test_the_rule_that_a_run_names():
    assert with_rule_named({"eds": True, "guidance": "elucd"}) == {"eds": True, "guidance": "elucd"}
    for flags in ({"eds": True}, {"guidance": "entropy"}, {"eds": True, "guidance": "constant"}):
        assert with_rule_named(flags) == {"eds": True, "guidance": "entropy"}


def test_a_resumed_run_is_the_uninterrupted_one(flags, tmp_path, monkeypatch):
    """The memory of a stabilizer and of skipped steps ends with each batch."""
    asked = flags | {"stabilizer": "adam", "guidance_every": 2}
    whole = images(sample(tmp_path / "whole", **asked))
    wrapped, calls = Stabilized.__call__, []

    def interrupted(self, x, t, **kwargs):
        calls.append(t)
        if len(calls) == 3:  # in the second batch, whose memory is lost
            raise KeyboardInterrupt
        return wrapped(self, x, t, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Stabilized, "__call__", interrupted)
        sample(tmp_path / "resumed", **asked)
    assert np.array_equal(images(sample(tmp_path / "resumed", **asked)), whole)

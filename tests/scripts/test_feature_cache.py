"""--cache_every and its flags in the sampling programs: against the naive reference, resumed, by default, refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from benchmarks.builders import SMALLEST, random_images, write_network
from benchmarks.gpu import program_checks
from benchmarks.gpu.program_checks import DRAW, call
from guided_diffusion.errors import InputError
from guided_diffusion.models.feature_cache import FeatureCache
from guided_diffusion.sampling import setup
from guided_diffusion.sampling.pretrained import load_model
from tests.support.helpers import read_npz
from tests.support.naive_cache import NaiveCache

GUIDED = "classifier_sample"
PAIR = {"uncond_model_path": "uncond", "cfg_scale": 3.0, "pair_interval": "0,700"}
HALF = {"use_fp16": True, "amp_dtype": "bf16"}
# script, flags, flags of the cache
RUNS = {
    "guided": (GUIDED, {"sampler": "ddim"}, {"cache_every": 2}),
    "quadratic": (GUIDED, {"sampler": "unipc"}, {"cache_every": 3, "cache_schedule": "quadratic"}),
    "half precision": (GUIDED, HALF, {"cache_every": 2, "cache_depth": 2}),
    "pair": (GUIDED, PAIR, {"cache_every": 2}),
    "through": (GUIDED, {"guidance_at": "through", "guidance_every": 2}, {"cache_every": 2}),
    "unguided": ("image_sample", {}, {"cache_every": 3, "cache_depth": 3}),
    "upsampled": ("super_res_sample", {}, {"cache_every": 2}),
}
DEFAULTS = {"cache_every": 1, "cache_depth": 1, "cache_schedule": "uniform"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Flags of the programs, with an unconditional model for pairs by name."""
    folder = tmp_path_factory.mktemp("networks")
    guided = program_checks.guided(folder)
    uncond = write_network(folder / "uncond", dataclasses.replace(SMALLEST.model, class_cond=False))
    np.savez(folder / "base.npz", random_images(0, 3, 4))
    upsampling = {
        "model_path": write_network(folder / "upsampling", program_checks.SUPER_RES),
        "base_samples": folder / "base.npz",
    }
    flags = {
        "classifier_sample": guided,
        "image_sample": DRAW | {"model_path": guided["model_path"]},
        "super_res_sample": DRAW | upsampling,
    }
    return flags, {"uncond": uncond}


def sample(files, name, folder, cache=None):
    script, flags, own = RUNS[name]
    flags = files[0][script] | flags | (own if cache is None else cache)
    return call(script, folder, **{flag: files[1].get(value, value) for flag, value in flags.items()})


def images(folder) -> np.ndarray:
    return read_npz(next(folder.glob("samples_*.npz")))["arr_0"]


@pytest.mark.parametrize("name", RUNS)
def test_the_images_are_those_of_the_reference(files, tmp_path, monkeypatch, name):
    """In batches of 3, 3 and 1; each model has a cache of its own, and run.json the flags."""
    found = sample(files, name, tmp_path / "found")
    saved = json.loads((found / "run.json").read_text())
    assert {flag: saved[flag] for flag in DEFAULTS} == DEFAULTS | RUNS[name][2]
    made = []
    monkeypatch.setattr(setup, "FeatureCache", lambda *args: made.append(NaiveCache.like(*args)) or made[-1])
    assert np.array_equal(images(found), images(sample(files, name, tmp_path / "naive")))
    assert len(made) == (2 if name == "pair" else 1)


def test_a_model_of_the_library(files):
    model = load_model(files[1]["uncond"])
    cache, t = FeatureCache(model, 4, every=2), torch.tensor([500, 500])
    x, y = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])  # labels, which it ignores
    with torch.no_grad():
        assert torch.equal(cache(x, t, y=y), model(x, t, y=y))
        assert not torch.equal(cache(2 * x, t - 1, y=y), model(2 * x, t - 1))


@pytest.mark.parametrize("name", ["pair", "unguided", "upsampled"])
def test_by_default_there_is_no_cache(files, tmp_path, monkeypatch, name):
    monkeypatch.setattr(setup, "FeatureCache", None)
    found = images(sample(files, name, tmp_path / "default", cache={}))
    assert np.array_equal(found, images(sample(files, name, tmp_path / "one", cache={"cache_every": 1})))
    monkeypatch.undo()
    assert (found != images(sample(files, name, tmp_path / "cached"))).any()


@pytest.mark.parametrize("calls", [3, 6])
def test_a_resumed_run_is_the_uninterrupted_one(files, tmp_path, monkeypatch, calls):
    """What is cached ends with each batch, which has 4 steps."""
    whole, forward, made = sample(files, "guided", tmp_path / "whole"), FeatureCache.forward, []

    def interrupted(self, *args, **kwargs):
        made.append(1)
        if len(made) == calls:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FeatureCache, "forward", interrupted)
        sample(files, "guided", tmp_path / "resumed")
    assert np.array_equal(images(sample(files, "guided", tmp_path / "resumed")), images(whole))
    with pytest.raises(InputError, match="holds samples of another run: --cache_every"):
        sample(files, "guided", tmp_path / "resumed", cache={"cache_every": 3})


@pytest.mark.parametrize(
    ("name", "cache", "says"),
    [
        ("guided", {"cache_depth": 2}, "--cache_depth: found without --cache_every above 1, expected both"),
        ("unguided", {"cache_schedule": "quadratic"}, "--cache_schedule: found without --cache_every above 1, exp"),
        ("upsampled", {"cache_every": 2, "cache_depth": 4}, "--cache_depth: found 4, expected 1 to 3: the diffusion"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(files, tmp_path, name, cache, says):
    with pytest.raises(InputError, match=says):
        sample(files, name, tmp_path / "out", cache=cache)


@pytest.mark.parametrize(
    ("cache", "says"),
    [
        ({"cache_every": 0}, "--cache_every: found 0, expected at least 1"),
        ({"cache_every": 2, "cache_depth": 0}, "--cache_depth: found 0, expected at least 1"),
        ({"cache_every": 2, "cache_schedule": "cubic"}, "--cache_schedule: found 'cubic', expected one of uniform, q"),
    ],
)
def test_values_out_of_range(files, tmp_path, capsys, cache, says):
    with pytest.raises(SystemExit, match="2"):
        sample(files, "guided", tmp_path / "out", cache=cache)
    assert says in capsys.readouterr().err

"""Flags of guidance beyond the paper against the library's objects: the same images; and what is refused."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.builders import DIFFUSION, SMALLEST, write_network
from benchmarks.gpu import program_checks
from ed_dpm_patches import ClassifierGuidance, ConstantRule, EntropyRule
from ed_dpm_patches.config import GuidanceConfig
from guidance_methods import (
    Adam,
    AdaptiveProjection,
    AtDenoised,
    CleanClassifier,
    Decoded,
    Denoiser,
    ElucdRule,
    Pair,
    ScoreGuidance,
    SineVariance,
    Stabilized,
    Sum,
    Through,
    discriminator_score,
    multi_label_score,
    without_labels,
)
from guidance_methods.clean import AtZero
from guidance_methods.config import MethodsConfig, guidance_rule
from guidance_methods.terms import CONFIGS, Term, with_methods
from guided_diffusion.config.class_labels import Classes
from guided_diffusion.config.flags import ParsedFlags, flags_from
from guided_diffusion.errors import InputError
from guided_diffusion.runs import logger
from guided_diffusion.sampling.noise import LabelPlan, PerSampleNoise
from guided_diffusion.sampling.pretrained import load_classifier, load_diffusion, load_model
from guided_diffusion.sampling.run import to_uint8
from tests.support import clean_networks
from tests.support.helpers import read_npz

OWN = "tests.support.clean_networks"
COUNT = program_checks.DRAW["num_samples"]
sample = partial(program_checks.call, "classifier_sample")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Flags of classifier_sample for a conditional model and a classifier, and further networks by name."""
    folder = tmp_path_factory.mktemp("networks")
    flags = program_checks.guided(folder) | {"eds": False, "use_ddim": True}
    small = dataclasses.replace
    others = {
        "uncond": write_network(folder / "uncond", small(SMALLEST.model, class_cond=False)),
        "weak": write_network(folder / "weak", small(SMALLEST.model, channel_mult="1,1")),
        "named": write_network(folder / "named", SMALLEST.model, class_names=["cat", "dog"]),
        "renamed": write_network(folder / "renamed", SMALLEST.model, class_names=["fox", "dog"]),
        "rescaled": write_network(
            folder / "rescaled", SMALLEST.model, small(DIFFUSION, diffusion_steps=500, rescale_timesteps=True)
        ),
        "second": write_network(folder / "second", small(SMALLEST.classifier, classifier_depth=2)),
        "seven": write_network(folder / "seven", small(SMALLEST.classifier, num_classes=7)),
        "grey": write_network(folder / "grey", small(SMALLEST.model, in_channels=1)),
        "cosine": write_network(folder / "cosine", SMALLEST.model, small(DIFFUSION, noise_schedule="cosine")),
    }
    return flags, others


def images(folder) -> np.ndarray:
    return read_npz(next(folder.glob("samples_*.npz")))["arr_0"]


def by_library(flags, build):
    """Sample with the objects that build(model, classifier, diffusion) returns: a model and a cond_fn."""
    diffusion = load_diffusion(flags["model_path"], timestep_respacing=flags["timestep_respacing"])
    model, cond_fn = build(load_model(flags["model_path"]), load_classifier(flags["classifier_path"]), diffusion)
    noise = PerSampleNoise(0, range(COUNT), torch.device("cpu"))
    y = LabelPlan("", False, Classes(4)).labels(range(COUNT), noise)
    made = diffusion.ddim_sample_loop(
        model, (COUNT, 3, 8, 8), noise=noise.normal((3, 8, 8)), cond_fn=cond_fn, model_kwargs={"y": y}, device="cpu"
    )
    return to_uint8(made).numpy()


def clean(name="classifier", **options):
    return CleanClassifier(getattr(clean_networks, name)(), **options).eval().requires_grad_(False)


def own_label(network):
    score = multi_label_score(network)
    return lambda x, t, y: score(x, t, 2 * F.one_hot(y, 4) - 1)


def projected(model, weak, diffusion):
    abar_T = np.full(1000, np.nan)
    abar_T[diffusion.timestep_map] = diffusion.alphas_cumprod
    return Pair(model, weak, 3.0, (200, 700), AdaptiveProjection(abar_T, eta=0.2, norm=5.0, momentum=-0.5))


NO_CLASSIFIER = {"classifier_path": None, "classifier_scale": None, "eds": None}
CLEAN = {"classifier_path": None, "clean_classifier": f"{OWN}:classifier", "guidance_at": "denoised"}
INPUT = {"clean_input": "range=0,255 mean=128 std=64,60,50", "clean_softplus": 3.0}
ASKED = {
    "through": (
        {"guidance_at": "through", "guidance_sine": 0.3},
        lambda model, classifier, diffusion: (model, SineVariance(
            Through(ClassifierGuidance(AtZero(classifier), ConstantRule(2.0)), Denoiser.of(diffusion, model)),
            diffusion.betas.max(), 1000,
        )),
    ),
    "clean": (
        CLEAN | INPUT | {"guidance": "elucd", "decoder": f"{OWN}:decoder"},
        lambda model, classifier, diffusion: (model, AtDenoised(ClassifierGuidance(Decoded(
            clean(low=0, high=255, mean=[128], std=[64, 60, 50], softplus=3.0), clean_networks.decoder(),
        ), ElucdRule(2.0)))),
    ),
    "labels": (
        CLEAN | {"clean_output": "labels"},
        lambda model, classifier, diffusion: (
            model, AtDenoised(ScoreGuidance(own_label(clean()), 2.0, takes=("y",)))),
    ),
    "score": (
        CLEAN | {"clean_classifier": f"{OWN}:score", "clean_output": "score", "guidance_interval": "0,500"},
        lambda model, classifier, diffusion: (model, AtDenoised(Sum([
            (ScoreGuidance(lambda x, t: clean("score")(x, t).flatten(), 2.0), 1.0, (0, 500))]))),
    ),
    "discriminator": (
        CLEAN | {"clean_classifier": f"{OWN}:discriminator", "clean_output": "probability"},
        lambda model, classifier, diffusion: (
            model, AtDenoised(ScoreGuidance(discriminator_score(clean("discriminator")), 2.0))),
    ),
    "cfg alone": (
        NO_CLASSIFIER | {"uncond_model_path": "uncond", "cfg_scale": 3.0},
        lambda model, classifier, diffusion: (Pair(model, without_labels(other("uncond")), 3.0), None),
    ),
    "cfg and EDS": (
        {"eds": True, "uncond_model_path": "uncond", "cfg_scale": 3.0, "pair_interval": "300,999"},
        lambda model, classifier, diffusion: (
            Pair(model, without_labels(other("uncond")), 3.0, (300, 999)),
            ClassifierGuidance(classifier, EntropyRule(2.0)),
        ),
    ),
    "autoguidance": (
        {"weak_model_path": "weak", "autoguidance_scale": 3.0, "pair_interval": "200,700", "apg_eta": 0.2,
         "apg_norm": 5.0, "apg_momentum": -0.5},
        lambda model, classifier, diffusion: (
            projected(model, other("weak"), diffusion), ClassifierGuidance(classifier, ConstantRule(2.0))),
    ),
    "file": (
        {"guidance_file": "terms"},
        lambda model, classifier, diffusion: (model, Sum([
            (ClassifierGuidance(classifier, ConstantRule(2.0)), 1.0),
            (ClassifierGuidance(load_classifier(FILES["second"]), EntropyRule(0.5), interval=(0, 400)), -0.5),
            (AtDenoised(ClassifierGuidance(clean(), ElucdRule(3.0))), lambda t: 2 - t / 500),
        ])),
    ),
}  # fmt: skip
TERMS = """
[[terms]]
classifier_path = "{second}"
classifier_scale = 0.5
eds = true
guidance_interval = "0,400"
weight = -0.5

[[terms]]
clean_classifier = "tests.support.clean_networks:classifier"
guidance = "elucd"
guidance_at = "denoised"
classifier_scale = 3
weight = [[0, 2.0], [1000, 0.0]]
"""
FILES: dict = {}


def other(name):
    return load_model(FILES[name])


def asked_for(files, more, folder):
    """Flags with the files that they name; None takes a flag away."""
    flags, others = files
    FILES.update(others)
    if "guidance_file" in more and more["guidance_file"] == "terms":
        more = more | {"guidance_file": folder / "terms.toml"}
        (folder / "terms.toml").write_text(TERMS.format(**others))
    more = {name: others.get(value, value) if name.endswith("_path") else value for name, value in more.items()}
    return {name: value for name, value in (flags | more).items() if value is not None}


@pytest.mark.parametrize("name", ASKED)
def test_flags_make_the_images_of_the_objects(files, tmp_path, name):
    more, build = ASKED[name]
    flags = asked_for(files, more, tmp_path)
    found = images(sample(tmp_path / "run", **flags))
    expected = by_library(files[0], build)
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.02
    plain = by_library(files[0], lambda model, classifier, diffusion: (
        model, ClassifierGuidance(classifier, ConstantRule(2.0))))  # fmt: skip
    assert (np.abs(plain.astype(int) - expected) > 1).any()


def test_the_order_of_steps_and_the_content_of_networks_are_recorded(files, tmp_path, monkeypatch):
    flags = asked_for(files, {"guidance_file": "terms"}, tmp_path)
    folder = sample(tmp_path / "run", **flags)
    saved = json.loads((folder / "run.json").read_text())
    assert [term["weight"] for term in saved["guidance_terms"]] == [-0.5, [[0, 2.0], [1000, 0.0]]]
    assert all(len(term["network"]) == 64 for term in saved["guidance_terms"])
    assert "guidance scale: median" in (folder / "log.txt").read_text()
    sample(tmp_path / "run", **flags)  # complete
    (tmp_path / "terms.toml").write_text(TERMS.format(**files[1]).replace("-0.5", "-0.4"))
    with pytest.raises(InputError, match="holds samples of another run: --guidance_terms"):
        sample(tmp_path / "run", **flags)
    flags = asked_for(files, CLEAN, tmp_path)
    sample(tmp_path / "clean", **flags)
    monkeypatch.setattr(clean_networks, "classifier", lambda: clean_networks._linear(4, seed=5))
    with pytest.raises(InputError, match="another run: --clean_classifier_weights"):
        sample(tmp_path / "clean", **flags)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"clean_classifier": f"{OWN}:classifier"}, "--clean_classifier: found together with --classifier_path"),
        ({"clean_input": "size=8"}, "--clean_input: found without --clean_classifier"),
        (CLEAN | {"guidance_at": "noisy"}, "found with --guidance_at noisy, expected denoised or through: it knows"),
        (CLEAN | {"clean_output": "score"}, r"found an output of shape \(2, 4\) for two images, expected \(2,\)"),
        (CLEAN | {"clean_classifier": f"{OWN}:score"}, r"expected \(2, K\) with K > 1"),
        (CLEAN | {"clean_input": "mean=0.5,0.5"}, "mean, std: found 2 values for 3 channels, expected 1 or 3"),
        (CLEAN | {"clean_input": "size=9"}, r"fails for images of shape \(3, 8, 8\); RuntimeError"),
        (CLEAN | {"clean_classifier": f"{OWN}:nothing"}, "expected package.module:function without arguments; Attr"),
        (CLEAN | {"clean_classifier": "torch"}, "expected package.module:function without arguments; ValueError"),
        (CLEAN | {"clean_classifier": f"{OWN}:no_network"}, "found int, expected a Module"),
        (CLEAN | {"clean_classifier": f"{OWN}:of_other_classes"}, "--num_classes: --model_path .* has 4 .*has 7"),
        (CLEAN | {"clean_output": "labels", "eds": True}, "--eds: found with --clean_output labels, expected logits"),
        ({"guidance_at": "through", "trace": "x.npz"}, "--trace: found together with --guidance_at through"),
        ({"guidance_file": "terms", "trace": "x.npz"}, "--trace: found together with --guidance_file"),
        ({"cfg_scale": 2.0}, "--cfg_scale: found without --uncond_model_path, expected both"),
        ({"apg_eta": 0.0}, "--apg_eta: found without --uncond_model_path or --weak_model_path, expected both"),
        ({"weak_model_path": "weak", "cfg_scale": 2.0}, "--cfg_scale: found without --uncond_model_path"),
        ({"weak_model_path": "weak", "uncond_model_path": "uncond"}, "found together with --uncond_model_path"),
        ({"uncond_model_path": "weak"}, "found a model with classes, expected an unconditional one"),
        ({"weak_model_path": "uncond"}, "found a model of other classes.*without classes there is --uncond_model_pa"),
        ({"weak_model_path": "grey"}, "--in_channels: .* has 3, but .* has 1"),
        ({"weak_model_path": "cosine"}, "--noise_schedule: .* has linear, but .* has cosine"),
        ({"model_path": "uncond", "uncond_model_path": "uncond"}, "found a model without classes, expected one with"),
        ({"classifier_path": None, "uncond_model_path": "uncond"}, "--classifier_scale: found without a classifier"),
        ({"guidance_file": "none.toml"}, "none.toml: expected TOML with"),
        (CLEAN | {"clean_classifier": f"{OWN}:without_gradient"}, "without_gradient: found an output without a grad"),
        (CLEAN | {"clean_classifier": f"{OWN}:squeezed"}, r"shape \(4,\) for one image, expected \(1, 4\)"),
        (CLEAN | {"clean_classifier": f"{OWN}:no_probability", "clean_output": "probability"}, "returned 5.*0 to 1"),
        (CLEAN | {"clean_classifier": f"{OWN}:ends_the_program"}, "ends_the_program: expected .*; SystemExit: 0"),
        (CLEAN | {"decoder": f"{OWN}:no_network"}, f"--decoder {OWN}:no_network: found int, expected a function"),
        (CLEAN | {"decoder": f"{OWN}:score"}, f"--clean_classifier {OWN}:classifier, --decoder {OWN}:score: fails"),
        (CLEAN | {"classifier_use_fp16": True}, "--classifier_use_fp16: found with --clean_classifier"),
        (CLEAN | {"clean_output": "labels", "guidance_t1": 0.0}, "--guidance_t1: found with --clean_output labels"),
        (NO_CLASSIFIER | {"uncond_model_path": "uncond", "cfg_scale": 2.0, "classifier_use_fp16": True},
         "--classifier_use_fp16: found without a classifier"),
        ({"guidance_skipped": "none"}, "--guidance_skipped: found without --guidance_every above 1"),
        ({"guidance": "elucd", "guidance_factor": 2.0}, "--guidance_factor: found with --guidance elucd, expected"),
        ({"guidance": "multi"}, "--guidance_classes: found none with --guidance multi"),
        ({"guidance": "negative", "guidance_classes": "3:0.5"}, "--guidance_classes: found 3:0.5 with --guidance neg"),
        ({"uncond_model_path": "uncond", "cfg_scale": 2.0, "autoguidance_scale": 2.0},
         "--autoguidance_scale: found without --weak_model_path"),
        ({"model_path": "named", "weak_model_path": "renamed", "autoguidance_scale": 2.0},
         "renamed.*: class 0 is 'fox', but 'cat' for --model"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(files, tmp_path, more, says):
    more = more | ({"trace": tmp_path / "x.npz"} if "trace" in more else {})
    flags = asked_for(files, more, tmp_path)
    with pytest.raises(InputError, match=says):
        sample(tmp_path / "out", **flags)


@pytest.mark.parametrize(
    ("rule", "option", "says"),
    [
        ({"eds": True}, {"guidance_factor": 3.0}, "--eds, expected range or timestep or gradnorm"),
        ({}, {"guidance_until": 5}, "--guidance constant, expected range; it"),
        ({"guidance": "timestep"}, {"guidance_norm": 0.1}, "--guidance timestep, expected gradnorm; it"),
        ({"guidance": "range"}, {"guidance_until": 5}, ""),
    ],
)
def test_a_flag_of_another_rule_of_the_paper_changes_nothing_and_says_so(monkeypatch, rule, option, says):
    said: list[str] = []
    monkeypatch.setattr(logger, "warn", said.append)
    parsed = ParsedFlags(rule | option)
    found = guidance_rule(parsed, parsed.make(GuidanceConfig), parsed.make(MethodsConfig), 1000, 4)
    assert (said == []) == (not says)
    if says:
        (name,) = option
        assert says in said[0] and said[0].startswith(f"warning: --{name}: found with ")
        plain = ParsedFlags(rule)
        assert found == guidance_rule(plain, plain.make(GuidanceConfig), plain.make(MethodsConfig), 1000, 4)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected TOML|alone"),
        ("x = 1\n[[terms]]", "found 'x', expected"),
        ("terms = 3", "found 3, expected"),
        ("[[terms]]\nweight = 'a'", r"terms\[0\]: weight: found 'a', expected a number"),
        ("[[terms]]\nweight = [[3, 1.0], [1, 2.0]]", "with t ascending"),
        ("[[terms]]\nclassifier_scale = 'a'", "--classifier_scale: found 'a', expected a number"),
        ("[[terms]]\nguidance = 'best'", "--guidance: found 'best', expected one of constant"),
        ("[[terms]]\nguidance_interval = '5'", "--guidance_interval: found '5', expected two numbers"),
        ("[[terms]]\nnum_samples = 3", "num_samples: no such flag"),
        ("[[terms]]\neds = true", "--classifier_path: missing"),
        ("[[terms]]\nclassifier_path = '{seven}'", "has 7"),
        ("[[terms]]\nguidance_file = 'x'", "found in a term, expected on the command line"),
        ("[[terms]]\ntrace_samples = 3", "trace_samples: found in a term, expected on the command line"),
        ("[[terms]]\nclean_input = 'size=inf'", "--clean_input: found 'size=inf', expected range=LO,HI"),
        (f"[[terms]]\nweight = 1{'0' * 400}", "weight: found 1.*, expected a number"),
        (f"[[terms]]\nweight = {'[' * 5000}{']' * 5000}", r"expected TOML with \[\[terms\]\]"),
    ],
)
def test_a_wrong_file_of_terms(files, tmp_path, text, says):
    (tmp_path / "terms.toml").write_text(text.replace("{seven}", str(files[1]["seven"])))
    with pytest.raises(InputError, match=says) as caught:
        sample(tmp_path / "out", **files[0] | {"guidance_file": tmp_path / "terms.toml"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("guidance_classes", "1:nan"), ("guidance_classes", "1:inf"), ("clean_input", "size=inf"),
        ("clean_input", "mean=nan"), ("clean_input", "mean=0 mean=1"), ("clean_input", "range=0,1 range=0,255"),
    ],
)  # fmt: skip
def test_a_value_that_is_no_value(files, tmp_path, capsys, flag, value):
    with pytest.raises(SystemExit, match="2"):
        sample(tmp_path / "out", **files[0] | {flag: value})
    assert f"--{flag}: found {value!r}, expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"guidance_interval": "0,400"}, "--guidance_interval 0,400: found with --rescale_timesteps and --diffusion"),
        ({"guidance": "timestep"}, "--guidance timestep: found with --rescale_timesteps and --diffusion_steps 500"),
        ({"guidance_at": "through"}, "--guidance_at through: found with --rescale_timesteps and --diffusion_steps 500"),
        ({"weak_model_path": "rescaled", "autoguidance_scale": 2.0, "pair_interval": "0,400"}, "--pair_interval: fou"),
        ({"guidance_file": "terms"}, r"terms\[0\]: --guidance_interval 0,400: found with"),
    ],
)
def test_what_counts_in_timesteps_of_another_scale_is_refused(files, tmp_path, more, says):
    with pytest.raises(InputError, match=says):
        sample(tmp_path / "out", **asked_for(files, {"model_path": "rescaled"} | more, tmp_path))


def test_the_sine_is_that_of_the_rescaled_timesteps(files):
    diffusion = load_diffusion(files[1]["rescaled"], timestep_respacing="4")
    told = {}

    def guidance(x, t, **_):
        told.update(t=t)
        return torch.ones_like(x)

    sine = with_methods(guidance, MethodsConfig(guidance_sine=0.3), diffusion, None, True)
    x, variance = torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.1)
    shift = diffusion.condition_mean(
        sine, {"pred_xstart": x, "mean": x, "variance": variance}, x, torch.tensor([3])
    )
    assert told["t"] == 998  # of 1000
    expected = 0.1 + 0.3 * diffusion.betas.max() * np.sin(0.998 * np.pi)
    torch.testing.assert_close(shift, torch.full_like(x, expected))


def test_a_second_model_without_config_is_as_the_first(files, tmp_path):
    flags = asked_for(files, ASKED["cfg alone"][0], tmp_path)
    bare = tmp_path / "bare.pt"
    bare.write_bytes(flags["uncond_model_path"].read_bytes())
    found, expected = (
        images(sample(tmp_path / name, **flags | {"uncond_model_path": path}))
        for name, path in (("bare", bare), ("saved", flags["uncond_model_path"]))
    )
    assert np.array_equal(found, expected)


def test_a_second_model_that_has_no_say_is_told(files, tmp_path):
    flags = asked_for(files, NO_CLASSIFIER | {"uncond_model_path": "uncond"}, tmp_path)
    log = (sample(tmp_path / "run", **flags) / "log.txt").read_text()
    assert "--cfg_scale: found 1, which is --model_path alone" in log


def test_a_score_is_scaled_after_its_stabilizer_and_inside_its_interval(files, tmp_path):
    flags = asked_for(files, ASKED["score"][0] | {"stabilizer": "adam", "guidance_interval": "300,800"}, tmp_path)
    found = images(sample(tmp_path / "run", **flags))
    expected = by_library(files[0], lambda model, classifier, diffusion: (model, Stabilized(AtDenoised(
        ScoreGuidance(lambda x, t: clean("score")(x, t).flatten(), 2.0, interval=(300, 800))), Adam())))  # fmt: skip
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.02
    weaker = images(sample(tmp_path / "weaker", **flags | {"classifier_scale": 0.01}))
    assert (np.abs(weaker.astype(int) - found) > 1).any()


def test_no_guidance_of_a_step_inside_an_interval_is_reused_outside(files, tmp_path):
    """Of t = 0, 333, 666 and 999 the second is inside: evaluated there, and not reused at 0."""
    inside = {"guidance_interval": "300,400", "classifier_scale": 100.0}
    flags = asked_for(files, inside | {"guidance_every": 2}, tmp_path)
    found, expected = (
        images(sample(tmp_path / str(every), **flags | {"guidance_every": every})) for every in (2, 1)
    )
    unguided = images(sample(tmp_path / "unguided", **flags | {"classifier_scale": 0.0}))
    assert np.array_equal(found, expected) and not np.array_equal(found, unguided)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"guidance_interval": "1001,2000"}, "--guidance_interval 1001,2000: found none of the run's 4 timesteps"),
        ({"uncond_model_path": "uncond", "cfg_scale": 2.0, "pair_interval": "1,2"}, "--pair_interval 1,2: found none"),
        ({"guidance_every": 4}, "--guidance_every 4: found for 4 evaluations: the classifier sees the first alone"),
        ({"cache_every": 4}, "--cache_every 4: found for 4 steps: the whole model is evaluated at the first"),
        ({"guidance_every": 7, "sampler": "heun", "use_ddim": None}, "--guidance_every 7: found for 7 evaluations"),
        ({"guidance_every": 2, "guidance_interval": "300,700"}, "--guidance_every 2: found for 2 evaluations"),
        ({"amp_dtype": "bf16"}, "--amp_dtype bf16: found with all networks in float32, expected --use_fp16 True or"),
    ],
)  # fmt: skip
def test_flags_that_leave_nothing_are_named(files, tmp_path, monkeypatch, flags, says):
    said: list[str] = []
    monkeypatch.setattr(logger, "warn", said.append)
    sample(tmp_path / "run", **asked_for(files, flags, tmp_path))
    (line,) = said
    assert says in line


def test_flags_that_leave_something_are_not_named(files, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(logger, "warn", said.append)
    flags = {"guidance_every": 4, "sampler": "heun", "use_ddim": None, "amp_dtype": "fp32"}
    sample(tmp_path / "run", **asked_for(files, flags, tmp_path))
    assert not said


def test_where_a_term_guides(files, tmp_path):
    """Not where its weight is 0, nor outside its interval."""
    flags = flags_from({"guidance_interval": "100,900"}, *CONFIGS)
    configs = [flags.make(config) for config in CONFIGS]
    term = Term(flags, *configs, network=None, classes=None, rule=None, weight=[[500, 1.0], [800, 0.0]])
    assert term.guided_at([0, 100, 500, 799, 800, 900, 999]) == [100, 500, 799]
    assert dataclasses.replace(term, weight=0.0).guided_at([0, 500]) == []


def test_a_classifier_as_the_weak_model(files, tmp_path):
    flags = asked_for(files, {"autoguidance_scale": 2.0}, tmp_path)
    with pytest.raises(InputError, match="--weak_model_path .*: found a .*classifier, expected a [^;]*$"):
        sample(tmp_path / "run", **flags | {"weak_model_path": flags["classifier_path"]})


def test_a_network_with_other_state_and_terms_in_short(files, tmp_path):
    flags = asked_for(files, CLEAN | {"clean_classifier": f"{OWN}:unchanged", "guidance_file": "terms"}, tmp_path)
    saved = json.loads((sample(tmp_path / "run", **flags) / "run.json").read_text())
    assert set(saved["guidance_terms"][1]) == {
        "clean_classifier", "guidance", "guidance_at", "classifier_scale", "weight", "network"
    }  # fmt: skip


@pytest.mark.slow
def test_a_network_that_differs_between_processes_is_refused(run, files):
    flags = files[0] | CLEAN | {"clean_classifier": f"{OWN}:unseeded", "log_dir": "out"}
    flags = {name: value for name, value in flags.items() if value is not None}
    ended = run("classifier_sample", flags, launcher="fork2", fails=True)
    assert ended.statuses == [2, 2]
    assert "unseeded: found weights that differ from those in another process" in ended.stderr


def test_a_score_alone_needs_no_classes(files, tmp_path):
    flags = asked_for(files, ASKED["score"][0] | {"model_path": "uncond"}, tmp_path)
    arrays = read_npz(next(sample(tmp_path / "run", **flags).glob("samples_*.npz")))
    assert set(arrays) == {"arr_0"}
    with pytest.raises(InputError, match="--classes, --balanced: found for networks without classes"):
        sample(tmp_path / "other", **flags | {"balanced": True})


def test_a_score_that_is_no_number_is_named(files, tmp_path):
    flags = asked_for(files, ASKED["score"][0] | {"clean_classifier": f"{OWN}:broken_score"}, tmp_path)
    with pytest.raises(InputError, match="scorer's score"):
        sample(tmp_path / "run", **flags)


def test_the_terms_of_a_run_may_move_to_another_file(files, tmp_path):
    flags = asked_for(files, {"guidance_file": "terms"}, tmp_path)
    sample(tmp_path / "run", **flags)
    moved = flags["guidance_file"].rename(tmp_path / "moved.toml")
    sample(tmp_path / "run", **flags | {"guidance_file": moved})

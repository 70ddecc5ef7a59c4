"""Counted work against PyTorch's counter around the real sampling loop."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ed_dpm_patches.guidance import ClassifierGuidance
from ed_dpm_patches.rules import ConstantRule
from experiments.frontier.work import count_flops, flops, unfused
from experiments.spec import Network, Run, Spec
from guidance_methods.clean import AtZero
from guidance_methods.config import SAMPLING_CONFIGS as CONFIGS
from guidance_methods.denoiser import Denoiser
from guidance_methods.every import GuidanceEvery
from guidance_methods.pairs import Pair
from guidance_methods.places import AtDenoised, Through
from guided_diffusion.config.configs import ClassifierConfig, DiffusionConfig, ModelConfig
from guided_diffusion.config.create import build_classifier, build_diffusion, build_model
from guided_diffusion.config.flags import from_values
from guided_diffusion.diffusion.solvers import SAMPLERS, sampling_loop

MODEL = {
    "image_size": 8, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,1", "attention_resolutions": "4",
    "num_head_channels": 32, "learn_sigma": True, "class_cond": True, "num_classes": 4,
}  # fmt: skip
CLASSIFIER = {
    "image_size": 8, "num_classes": 4, "classifier_width": 32, "classifier_depth": 1, "classifier_channel_mult": "1,1",
    "classifier_attention_resolutions": "4", "classifier_num_head_channels": 32,
}  # fmt: skip
NETWORKS = {
    "model": Network("model", "model", 0, MODEL),
    "weak": Network("weak", "weak", 0, MODEL | {"channel_mult": "1,2"}),
    "classifier": Network("classifier", "classifier", 0, CLASSIFIER),
}


def spec_of(run: Run) -> Spec:
    return Spec("A trial", "digits", NETWORKS, {run.name: run}, {})


def real_flops(run: Run) -> int:
    """PyTorch's count around the loop with real networks, whose guidance is put together here."""
    flags = run.flags
    diffusion = build_diffusion(from_values(DiffusionConfig, MODEL | flags))
    networks = {name: build_model(from_values(ModelConfig, NETWORKS[name].flags), DiffusionConfig(learn_sigma=True))
                for name in ("model", "weak")}  # fmt: skip
    networks["classifier"] = build_classifier(from_values(ClassifierConfig, CLASSIFIER))
    for network in networks.values():
        network.eval().requires_grad_(False)
    model, guidance = networks["model"], None
    if flags.get("cache_every", 1) > 1:
        from guided_diffusion.models.feature_cache import FeatureCache

        model = FeatureCache(model, diffusion.num_timesteps, flags["cache_every"])
    if run.others:
        low, high = map(int, flags["pair_interval"].split(","))
        model = Pair(model, networks["weak"], 2.0, (low, high))
    if run.classifier:
        interval = tuple(map(float, flags["guidance_interval"].split(","))) if "guidance_interval" in flags else None
        place, classifier = flags.get("guidance_at", "noisy"), networks["classifier"]
        classifier = classifier if place == "noisy" else AtZero(classifier)
        guidance = ClassifierGuidance(classifier, ConstantRule(), interval=interval)
        if place == "denoised":
            guidance = AtDenoised(guidance)
        if place == "through":
            guidance = Through(guidance, Denoiser.of(diffusion, model, True))
        guidance = GuidanceEvery(guidance, flags.get("guidance_every", 1))
    loop = sampling_loop(diffusion, flags["sampler"])
    arguments = {"device": "cpu", "cond_fn": guidance, "model_kwargs": {"y": torch.zeros(1, dtype=torch.long)}}
    with unfused():
        return count_flops(lambda: loop(model, (1, 3, 8, 8), **arguments))


def run_of(sampler: str, classifier: str | None = "classifier", others: dict | None = None, **flags) -> Run:
    common = {"num_samples": 10, "timestep_respacing": "6", "sampler": sampler, "classifier_scale": 1.0}
    if not classifier:
        del common["classifier_scale"]
    return Run("run", "model", "heldout.npz", common | flags, classifier, others=others or {})


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler(sampler):
    run = run_of(sampler)
    assert flops(spec_of(run), run) == real_flops(run) > 0


FLAGS = [
    {"guidance_every": 2}, {"guidance_every": 4, "eds": True}, {"guidance_interval": "300,700"},
    {"guidance_at": "denoised"}, {"guidance_at": "through"}, {"cache_every": 2},
    {"cache_every": 3, "guidance_every": 2},
]  # fmt: skip


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_guidance_and_cache(flags):
    known = {field.name for config in CONFIGS for field in dataclasses.fields(config)}
    if missing := flags.keys() - known:
        pytest.skip(f"no flags {missing}")
    run = run_of("ddim", **flags)
    assert flops(spec_of(run), run) == real_flops(run)
    if "guidance_at" not in flags:
        assert flops(spec_of(run), run) < flops(spec_of(run), run_of("ddim"))


def test_a_pair_and_no_guidance():
    run = run_of("ddim", None, {"weak_model_path": "weak"}, autoguidance_scale=2.0, pair_interval="300,700")
    alone = run_of("ddim", None)
    assert flops(spec_of(run), run) == real_flops(run) > flops(spec_of(run), alone) == real_flops(alone)


def test_the_unit_is_that_of_evaluations():
    """Of twice the steps an image costs twice as much, and of a scale of 0 what it costs without a classifier."""
    twice, once = run_of("ddim", timestep_respacing="12"), run_of("ddim")
    assert flops(spec_of(twice), twice) == 2 * flops(spec_of(once), once)
    zero, alone = run_of("ddim", classifier_scale=0.0), run_of("ddim", None)
    assert flops(spec_of(zero), zero) == flops(spec_of(alone), alone)

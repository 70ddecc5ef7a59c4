"""The code of docs/guidance.md, block after block in one namespace, on networks of a few pixels."""

from __future__ import annotations

import ast
import dataclasses
import re
import tomllib
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import guidance_methods
from ed_dpm_patches.config import GuidanceConfig
from experiments.diagnose.flags import DiagnoseConfig
from experiments.tune.__main__ import create_parser
from guidance_methods.config import SAMPLING_CONFIGS, CleanConfig, MethodsConfig, PairConfig
from guidance_methods.guidance_file import checked_weight
from guidance_methods.terms import CONFIGS
from guided_diffusion.config.configs import DiffusionConfig, ModelConfig
from guided_diffusion.config.flags import flags_from
from guided_diffusion.diffusion.schedules import get_named_beta_schedule
from guided_diffusion.script_util import create_gaussian_diffusion
from tests.support.documents import fenced_blocks
from tests.support.gaussian_data import ABAR, GaussianData, smooth_classifier
from tests.support.helpers import ROOT

TEXT = (ROOT / "docs" / "guidance.md").read_text()
SHAPE = (3, 1, 8, 8)


class Model(nn.Module):
    """Predicts eps of Gaussian data."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.data, self.bias = GaussianData(SHAPE[1:], seed), nn.Parameter(torch.zeros(1))

    def forward(self, x, t, y=None):
        return self.data.eps(x, t) + self.bias


def namespace() -> dict:
    diffusion, model = create_gaussian_diffusion(timestep_respacing="ddim5"), Model()
    labels, noise = torch.tensor([0, 3, 4]), torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    kwargs = {"noise": noise, "model_kwargs": {"y": labels}}
    classifier = smooth_classifier(SHAPE[1:])
    return {
        "diffusion": diffusion, "model": model, "classifier": classifier, "labels": labels, "noise": noise,
        "shape": SHAPE, "sample": partial(diffusion.ddim_sample_loop, model, SHAPE, **kwargs), "alphas_cumprod": ABAR,
        "network": nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 5)).eval(),
        "decode": torch.tanh, "discriminator": lambda x, t: x.flatten(1).mean(1), "weak_model": Model(2),
        "unconditional": lambda x, t: Model(1)(x, t), "diffusion_betas": get_named_beta_schedule("linear", 1000),
        "denoiser": lambda x, sigma, labels: model.data.denoised(x, torch.as_tensor(sigma).expand(len(x))).float(),
    }  # fmt: skip


def test_every_line_of_code_runs():
    pytest.importorskip("diffusers")
    space = namespace()
    free = space["sample"]()
    blocks = [code for language, code in fenced_blocks(TEXT) if language == "python"]
    assert len(blocks) == 7
    for code in blocks:
        for node in ast.parse(code).body:
            space["images"] = None
            exec(ast.get_source_segment(code, node), space)
            images = space["images"]
            if images is not None:
                assert np.isfinite(np.asarray(images)).all() and not np.array_equal(images, free)


def test_every_object_is_named():
    told = {name for name in guidance_methods.__all__ if name in TEXT}
    assert set(guidance_methods.__all__) - told <= {"STABILIZERS", "Stabilizer", "EntropyScaled"}


def test_the_terms_of_the_file_are_flags():
    (text,) = [code for language, code in fenced_blocks(TEXT) if language == "toml"]
    first, second = tomllib.loads(text)["terms"]
    assert checked_weight(first.pop("weight")) == [[0, 1.0], [700, 0.2]] and checked_weight(second.pop("weight")) == 0.5
    assert flags_from(first, *CONFIGS).make(GuidanceConfig).guidance_interval == "0,700"
    assert flags_from(second, *CONFIGS).make(CleanConfig).clean_output == "probability"


def test_every_flag_of_the_table_is_one():
    diagnosed = (DiagnoseConfig, ModelConfig, DiffusionConfig)
    configs = (*SAMPLING_CONFIGS, *diagnosed)
    known = {field.name for config in configs for field in dataclasses.fields(config)}
    known |= {action.dest for action in create_parser()._actions}
    named = set(re.findall(r"--(\w+)", TEXT))
    assert named <= known
    beyond = {field.name for config in (MethodsConfig, CleanConfig, PairConfig) for field in dataclasses.fields(config)}
    assert beyond <= named

"""The published ImageNet 256x256 configuration at full size: loads strictly and samples with EDS on a CPU.

Takes some minutes, 4 GB of disk and about 10 GB of memory, so it runs only on request:
ED_DPM_PUBLISHED=1 python -m pytest tests/experiments/test_published.py -s
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from guided_diffusion.config.configs import ClassifierConfig, DiffusionConfig, ModelConfig
from guided_diffusion.io import checkpoint
from guided_diffusion.script_util import build_classifier, build_model
from tests.support.helpers import ROOT

# The flags with which the 256x256 unconditional model is published.
MODEL_FLAGS = {
    "image_size": 256,
    "attention_resolutions": "32,16,8",
    "num_channels": 256,
    "num_head_channels": 64,
    "num_res_blocks": 2,
    "resblock_updown": True,
    "use_scale_shift_norm": True,
    "class_cond": False,
}
DIFFUSION_FLAGS = {"learn_sigma": True, "diffusion_steps": 1000, "noise_schedule": "linear"}

pytestmark = pytest.mark.skipif(
    not os.environ.get("ED_DPM_PUBLISHED"), reason="minutes and 10 GB of memory: set ED_DPM_PUBLISHED=1 to run it"
)


def write_random_weights(network: torch.nn.Module, path: Path, seed: int) -> int:
    """Seeded random values in every key, zero-initialised layers included; returns the parameter count."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
            spread = fan_in**-0.5 if parameter.dim() > 1 else 0.02
            noise = spread * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    checkpoint.save(network.state_dict(), path)
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.timeout(3600)
def test_two_ddim_steps_with_eds(tmp_path):
    model = build_model(ModelConfig(**MODEL_FLAGS), DiffusionConfig(**DIFFUSION_FLAGS))
    assert write_random_weights(model, tmp_path / "model.pt", seed=0) == 552_814_086
    del model
    classifier = build_classifier(ClassifierConfig(image_size=256))
    assert write_random_weights(classifier, tmp_path / "classifier.pt", seed=1) == 54_096_360
    del classifier

    flags = [f"--{name}={value}" for name, value in (MODEL_FLAGS | DIFFUSION_FLAGS).items()]
    command = [
        sys.executable, ROOT / "scripts/classifier_sample.py", *flags, "--eds", "--classifier_scale", "6.0",
        "--use_ddim", "--timestep_respacing", "ddim2", "--num_samples", "1", "--batch_size", "1",
        "--model_path", tmp_path / "model.pt", "--classifier_path", tmp_path / "classifier.pt",
        "--log_dir", tmp_path / "out",
    ]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    print(done.stdout[-2000:], done.stderr[-2000:])
    assert done.returncode == 0
    assert "0 non-finite" in done.stdout
    with np.load(tmp_path / "out/samples_1x256x256x3.npz", allow_pickle=False) as samples:
        assert samples["arr_0"].shape == (1, 256, 256, 3) and samples["arr_0"].std() > 0
    peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"peak memory {peak_gb:.1f} GB")
    assert peak_gb < 24

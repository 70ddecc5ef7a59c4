"""The command on the digits, with the shipped diffusion model and a classifier that has been trained for seconds."""

from __future__ import annotations

import json

import pytest

from experiments.comparison import UNIT_FACTORS
from experiments.diagnose.diagnosis import named_rules
from experiments.digits.data import write_parts
from experiments.tune.__main__ import _centres
from guided_diffusion.errors import InputError
from guided_diffusion.sampling.setup import trained_file
from tests.support.helpers import CLASSIFIER, ROOT

MODEL = ROOT / "experiments" / "digits" / "model" / "uncond.safetensors"


@pytest.mark.slow
def test_a_classifier_of_digits_improves_the_denoising(run, tmp_path):
    pytest.importorskip("matplotlib")
    write_parts(tmp_path)
    training = CLASSIFIER | {
        "data_dir": "train", "log_dir": "plain", "in_channels": 1, "iterations": 80, "batch_size": 64, "lr": 1e-3,
        "anneal_lr": True, "random_crop": False, "random_flip": False, "log_interval": 40,
    }  # fmt: skip
    run("classifier_train", training)
    flags = {"model_path": MODEL, "classifier_path": "plain", "data_dir": "heldout", "out": "out"}
    flags |= {"num_images": 128, "levels": 5, "batch_size": 64, "rules": "entropy", "replicates": 200}
    words = ["diagnose", *(str(word) for name, value in flags.items() for word in (f"--{name}", value))]
    told = run(ROOT / "experiments" / "__main__.py", words).stdout
    found = json.loads((tmp_path / "out" / "diagnose.json").read_text())
    entry = found["classifiers"]["plain"]
    assert entry["levels"]["accuracy"][0][0] > 0.6 > entry["levels"]["accuracy"][-1][0]
    assert entry["rules"]["constant"]["gain"][0] > 0
    assert 0.3 < entry["overall"]["s_star"][0] < 2
    centres = _centres(tmp_path / "out" / "diagnose.json", trained_file("classifier_path", str(tmp_path / "plain")))
    assert centres["constant"] == entry["rules"]["constant"]["gamma"][0]
    with pytest.raises(InputError, match="diagnose.json: found the classifiers plain, expected one with the content"):
        _centres(tmp_path / "out" / "diagnose.json", str(MODEL))
    assert "L / (1 - abar) falls most" in told or "No classifier" in told
    assert (tmp_path / "out" / "diagnose.html").is_file()


def test_scales_mean_the_same_to_tune():
    rule = named_rules("timestep", 250)["timestep"]
    assert rule.factor == UNIT_FACTORS["timestep"](250) and rule.num_timesteps == 250

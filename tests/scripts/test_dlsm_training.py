"""classifier_train with --dlsm_weight, --model_path and --keep_best."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from guidance_methods.dlsm_flags import read_denoising
from guided_diffusion.config.configs import ClassifierConfig, DiffusionConfig
from guided_diffusion.config.flags import ParsedFlags, from_values
from guided_diffusion.errors import InputError
from guided_diffusion.runs.best_checkpoint import best_weights
from tests.support.helpers import CLASSIFIER, DIFFUSION, MODEL, Runner, make_checkpoint, read_csv

FLAGS = CLASSIFIER | DIFFUSION | {
    "batch_size": 6, "iterations": 6, "log_interval": 1, "eval_interval": 1, "save_interval": 1, "lr": 2e-3,
}  # fmt: skip
DLSM = {"dlsm_weight": 96, "ect": None}


@pytest.fixture(scope="module")
def folder(fork_server, tmp_path_factory, images, checkpoints) -> Path:
    """Runs in folders of its own: "plain" without the diffusion model, "judged" and "dlsm" with it."""
    folder = tmp_path_factory.mktemp("dlsm")
    run = Runner(fork_server, folder)
    flags = FLAGS | {"data_dir": images, "val_data_dir": images}
    model = {"model_path": checkpoints["model"]}
    for name, changes in {"plain": {}, "judged": model, "dlsm": model | DLSM}.items():
        run("classifier_train", flags | changes | {"log_dir": name})
    return folder


def weights(path: Path) -> torch.Tensor:
    return torch.cat([value.flatten() for value in torch.load(path, weights_only=True).values()])


@pytest.mark.slow
class TestLoss:
    def test_a_model_to_judge_by_leaves_training_alone(self, folder):
        assert torch.equal(weights(folder / "plain" / "model000005.pt"), weights(folder / "judged" / "model000005.pt"))
        plain, judged = (read_csv(folder / name / "progress.csv") for name in ("plain", "judged"))
        new = {"dlsm", "dlsm_gain", "dlsm_size", "ideal_scale"}
        added = judged[-1].keys() - plain[-1].keys()
        assert {re.sub("_q[0-3]$", "", name) for name in added} == {f"val_{name}" for name in new}
        assert added >= {f"val_{name}_q{q}" for name in new for q in range(4)}
        assert [{name: row[name] for name in plain[-1]} for row in judged] == plain
        assert 0 <= float(plain[-1]["val_ece"]) <= 1 and "val_ece_q3" in plain[-1] and "train_ece" not in plain[-1]

    def test_the_loss_is_what_it_says(self, folder):
        for row in read_csv(folder / "dlsm" / "progress.csv"):
            for part in ("train", "val"):
                loss, ce, ect, dlsm = (float(row[f"{part}_{term}"]) for term in ("loss", "ce", "ect", "dlsm"))
                assert loss == pytest.approx(ce + 0.2 * ect + 96 * dlsm, rel=1e-5)
            ideal = float(row["val_dlsm_gain"]) / float(row["val_dlsm_size"]) / 2 + 0.5
            assert float(row["val_ideal_scale"]) == pytest.approx(ideal, rel=1e-4)

    def test_it_trains(self, folder):
        plain, dlsm = (weights(folder / name / "model000005.pt") for name in ("plain", "dlsm"))
        assert not torch.equal(plain, dlsm)

    def test_resumed_with_the_best_kept(self, run, folder, tmp_path, images, checkpoints):
        """Of 6 checkpoints the best and the last are left, over an interruption, and the weights are the same."""
        flags = FLAGS | DLSM | {
            "data_dir": images, "val_data_dir": images, "model_path": checkpoints["model"].parent, "log_dir": "run",
            "keep": 1, "keep_best": "val_ce_q0",
        }  # fmt: skip
        run("classifier_train", flags | {"iterations": 3})
        ended = run("classifier_train", flags)
        assert torch.equal(weights(tmp_path / "run" / "model000005.pt"), weights(folder / "dlsm" / "model000005.pt"))
        values = [float(row["val_ce_q0"] or "inf") for row in read_csv(tmp_path / "run" / "progress.csv")]
        best = values.index(min(values))
        names = {path.name for path in (tmp_path / "run").glob("model*")}
        assert len(values) == 6 and names == {f"model{best:06d}.pt", "model000005.pt"}
        assert best_weights(tmp_path / "run") == str(tmp_path / "run" / f"model{best:06d}.pt")
        assert ended.stdout.splitlines()[-1].endswith(f"model{best:06d}.pt")

        other = make_checkpoint(tmp_path / "other", "model", learn_sigma=True, seed=1)
        for changes, says in {
            ("dlsm_weight", 95): "holds checkpoints of another run: --dlsm_weight 95.0 (the run there has 96.0); use",
            ("dlsm_weight", 0): "--dlsm_weight 0.0 (the run there has 96.0), --model_path",
            ("model_path", other): "holds checkpoints of another run: --model_path SHA-256",
        }.items():
            (line,) = run("classifier_train", flags | dict([changes]), fails=True).error_lines
            assert says in line

    def test_float16_on_two_ranks_in_microbatches(self, run, tmp_path, images, checkpoints):
        flags = FLAGS | DLSM | {
            "data_dir": images, "model_path": checkpoints["model"], "classifier_use_fp16": None, "use_fp16": None,
            "microbatch": 2, "iterations": 3, "log_dir": "run",
        }  # fmt: skip
        run("classifier_train", flags, launcher="fork2")
        rows = read_csv(tmp_path / "run" / "progress.csv")
        assert float(rows[-1]["lg_loss_scale"]) >= 8 and float(rows[-1]["train_dlsm_size"]) > 0


def read(path: Path, **flags):
    """Read a diffusion model for the classifier of the tests, on the default process but for the flags."""
    parsed = ParsedFlags(flags | {"model_path": str(path), "dlsm_weight": 1.0})
    return read_denoising(parsed, from_values(ClassifierConfig, CLASSIFIER), parsed.make(DiffusionConfig))[0]


def test_a_model_of_another_process(checkpoints):
    with pytest.raises(InputError, match="--noise_schedule: found linear for the classifier, but .* has cosine"):
        read(checkpoints["model"])
    with pytest.raises(InputError, match="config.json beside it contradicts --diffusion_steps 30"):
        read(checkpoints["model"], diffusion_steps=30)
    assert read(checkpoints["model"], **DIFFUSION).weight == 1


def test_a_model_without_config_json(tmp_path):
    path = make_checkpoint(tmp_path, "model", config_json=False)
    assert read(path, **DIFFUSION, **MODEL).diffusion.num_timesteps == 20
    with pytest.raises(InputError, match="the file was made with --num_channels 32"):
        read(path, **DIFFUSION, image_size=8, channel_mult="1,2")

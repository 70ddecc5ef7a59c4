"""The same training command given again: it goes on, and ends with the files of a run that nobody interrupted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from guided_diffusion.training import setup
from tests.support.helpers import (
    CLASSIFIER,
    DIFFUSION,
    MODEL,
    ROOT,
    SCRIPTS,
    SUPER_RES,
    Run,
    Runner,
    as_arguments,
    make_checkpoint,
    make_images,
    read_csv,
    tree,
)

PROGRAM = ROOT / "tests" / "support" / "interrupted_program.py"
COMMON = {"batch_size": 4, "microbatch": 2, "log_interval": 1, "save_interval": 2, "seed": 3, "iterations": 6}
JOBS = {
    "classifier_train": COMMON | DIFFUSION | CLASSIFIER | {"ect": None, "anneal_lr": None, "eval_interval": 2},
    "image_train": COMMON | MODEL | {
        "diffusion_steps": 2, "noise_schedule": "cosine", "schedule_sampler": "loss-second-moment", "dropout": 0.1,
        "ema_rate": "0.5,0.9", "class_cond": None, "learn_sigma": None, "lr_anneal_steps": 20,
    },
    "super_res_train": COMMON | DIFFUSION | SUPER_RES,
}  # fmt: skip


@pytest.fixture
def train(run, tmp_path, images):
    """Runs a training script on the images into a folder of the test; `cut`: (moment, signal, rank)."""

    def call(script: str, log_dir: str, cut: tuple[str, str, str] | None = None, launcher="fork", **flags) -> Run:
        chosen = JOBS[script] | {"data_dir": images, "log_dir": log_dir}
        if script == "classifier_train":
            chosen["val_data_dir"] = images
        fails = flags.pop("fails", cut is not None and cut[1] != "SIGUSR1")
        arguments = as_arguments(chosen | flags)
        if cut is None:
            return run(SCRIPTS / f"{script}.py", arguments, launcher=launcher, fails=fails)
        return run(PROGRAM, [str(SCRIPTS / f"{script}.py"), *cut, *arguments], launcher=launcher, fails=fails)

    return call


def checkpoint_names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.pt")}


def assert_same_files(found: Path, expected: Path) -> None:
    """Every checkpoint of one folder is in the other, to the last bit."""
    names = checkpoint_names(expected)
    assert names and names <= checkpoint_names(found)
    for name in sorted(names):
        values = [torch.load(folder / name, weights_only=True) for folder in (found, expected)]
        torch.testing.assert_close(*values, rtol=0, atol=0, msg=lambda text, name=name: f"{name} {text}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "launcher"),
    [(script, launcher) for script in JOBS for launcher in ("fork", "fork2")][:-1],  # one and two processes
)
def test_an_interrupted_run_equals_an_undisturbed_one(train, tmp_path, script, launcher):
    """Killed in the midst of a step, then in the midst of a checkpoint, then stopped by a signal that one rank gets."""
    train(script, "whole", launcher=launcher)
    train(script, "cut", ("step:4", "SIGKILL", "all"), launcher)
    folder = tmp_path / "cut"
    assert_same_files(tmp_path / "whole", folder)  # so far
    if script != "super_res_train":
        train(script, "cut", ("file:2", "SIGKILL", "all"), launcher)
        newest = max(folder.glob("model*.pt")).name[5:11]
        assert not (folder / f"state{newest}.json").exists(), "ended between two files of a checkpoint"
    stopped = train(script, "cut", ("step:1", "SIGTERM", "0" if launcher == "fork" else "1"), launcher)
    assert set(stopped.statuses) == {143}
    (line,) = [line for line in stopped.stdout.splitlines() if line.startswith("stopped by SIGTERM")]
    saved = Path(line.split("saved ")[1].split(";")[0])
    assert saved.is_file() and saved.parent == folder
    assert "resuming from" in train(script, "cut", launcher=launcher).stdout
    assert_same_files(folder, tmp_path / "whole")
    steps = [int(float(row["step"])) for row in read_csv(folder / "progress.csv")]
    assert steps[-1] == 5 and set(steps) == set(range(6)) and len(steps) < 12, "nothing was trained anew"


@pytest.mark.slow
def test_the_sampler_of_timesteps_was_at_work(train, tmp_path):
    """Of 2 timesteps each has been seen 10 times after 6 batches of 4, so the runs above did weigh them."""
    train("image_train", "run")
    kept = json.loads((tmp_path / "run" / "state000006.json").read_text())
    assert [len(losses) for losses in kept["state"]["loop"]["schedule_sampler"]["recent"]] == [10, 10]


@pytest.mark.slow
def test_signals_that_save(train, tmp_path):
    """SIGUSR1 saves and goes on; SIGINT saves and ends; where the last step is done nothing is left to stop."""
    folder = tmp_path / "run"
    train("image_train", "run", ("step:2", "SIGUSR1", "0"), iterations=3, save_interval=100)
    assert {name for name in checkpoint_names(folder) if "model" in name} == {
        "model000000.pt", "model000001.pt", "model000003.pt",
    }  # fmt: skip
    stopped = train("image_train", "run", ("step:1", "SIGINT", "0"), iterations=6, save_interval=100)
    assert stopped.statuses == [130] and "stopped by SIGINT" in stopped.stdout and not stopped.stderr.count("Traceback")
    assert f"the same command with --log_dir {folder} resumes from there" in stopped.stdout
    last = train("image_train", "run", ("step:2", "SIGTERM", "0"), iterations=6, save_interval=100, fails=False)
    assert "stopped" not in last.stdout and (folder / "model000006.pt").is_file()
    train("image_train", "whole", iterations=6, save_interval=100)
    assert_same_files(folder, tmp_path / "whole")


@pytest.fixture(scope="module")
def finished(fork_server, tmp_path_factory) -> Path:
    """A folder with the images and a finished run of the classifier in it."""
    folder = tmp_path_factory.mktemp("finished")
    images = make_images(folder / "images")
    flags = JOBS["classifier_train"] | {"data_dir": images, "log_dir": "run"}
    Runner(fork_server, folder)("classifier_train", flags)
    return folder


@pytest.fixture
def again(run, tmp_path, finished):
    """Gives the finished run's command again, with other flags if wanted, in a copy of its folder."""
    shutil.copytree(finished / "run", tmp_path / "run")

    def call(fails: bool = False, **flags) -> Run:
        chosen = JOBS["classifier_train"] | {"data_dir": finished / "images", "log_dir": "run"} | flags
        return run("classifier_train", chosen, fails=fails)

    return call


def what_counts(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(folder).items() if not name.startswith(("log", "status"))}


DAMAGES = {
    "truncated": lambda run: (run / "opt000005.pt").write_bytes((run / "opt000005.pt").read_bytes()[:1000]),
    "missing": lambda run: (run / "opt000005.pt").unlink(),
    "of another time": lambda run: shutil.copy(run / "opt000004.pt", run / "opt000005.pt"),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(again, tmp_path, finished, damage):
    DAMAGES[damage](tmp_path / "run")
    printed = again().stdout
    (warning,) = [line for line in printed.splitlines() if "opt000005.pt: " in line]
    assert "resuming from checkpoint 000004" in warning
    assert_same_files(tmp_path / "run", finished / "run")


def test_without_an_intact_checkpoint_a_run_begins_again(again, tmp_path, finished):
    for path in (tmp_path / "run").glob("model*.pt"):
        path.write_bytes(path.read_bytes()[:-1])
    assert again().stdout.count("resuming from the run's beginning") == 3
    assert_same_files(tmp_path / "run", finished / "run")


def test_a_finished_run_is_left_alone(again, tmp_path):
    before = what_counts(tmp_path / "run")
    assert "already complete: " in again(log_interval=3, save_interval=7, keep=1).stdout
    assert what_counts(tmp_path / "run") == before


@pytest.mark.parametrize(("steps", "more"), [(6, ""), (4, " (6 steps are done, --iterations 4 asks for fewer)")])
def test_fewer_steps_than_are_done(monkeypatch, steps, more):
    told = []
    monkeypatch.setattr(setup.logger, "log", told.append)
    monkeypatch.setattr(setup.logger, "get_dir", lambda: "")
    monkeypatch.setattr(setup, "note_complete", lambda *args: None)
    monkeypatch.setattr(setup, "say_what_to_use", lambda purpose: None)
    run = SimpleNamespace(model_path="model000005.pt", first_step=6, state={})
    assert setup.Training.is_complete(None, run, "--iterations", steps, "sample from")
    assert told == [f"already complete: model000005.pt{more}"]


def test_another_run_is_refused(again, tmp_path):
    before = what_counts(tmp_path / "run")
    (line,) = again(True, lr=1e-3, seed=4, iterations=9, batch_size=5).error_lines
    for difference in (
        "--lr 0.001 (the run there has 0.0003)", "--seed 4 (the run there has 3)",
        "--iterations 9 (the run there has 6)", "--batch_size times processes 5 (the run there has 4)",
    ):  # fmt: skip
        assert difference in line
    assert "the learning rate is annealed over --iterations, so another value is another run; use another" in line
    assert what_counts(tmp_path / "run") == before
    for path in (tmp_path / "run").glob("state*.json"):
        path.unlink()
    assert "--lr 0.001" in again(True, lr=1e-3).error_lines[0], "config.json tells it too"
    (tmp_path / "run" / "config.json").unlink()
    assert "no config.json" in again(True).error_lines[0]


def test_other_images_are_refused(again, tmp_path, finished):
    copied = shutil.copytree(finished / "images", tmp_path / "moved")
    assert "already complete" in again(data_dir=copied).stdout, "the same images elsewhere"
    next(copied.iterdir()).unlink()
    assert "images 23 with names" in again(True, data_dir=copied).error_lines[0]


@pytest.mark.slow
def test_more_steps_later_and_keeping_few(train, tmp_path):
    """A run's last checkpoint has the count of steps for its name, which a longer run gives to another step."""
    train("image_train", "whole", iterations=6, save_interval=4)
    train("image_train", "run", iterations=4, save_interval=4, keep=2)
    assert {path.name for path in (tmp_path / "run").glob("model*")} == {"model000000.pt", "model000004.pt"}
    train("image_train", "run", ("file:6", "SIGKILL", "0"), iterations=6, save_interval=4, keep=2)  # renews 000004
    train("image_train", "run", iterations=6, save_interval=4, keep=1)
    assert {path.name for path in (tmp_path / "run").glob("model*")} == {"model000006.pt"}
    assert len(list((tmp_path / "run").glob("ema*"))) == 2 and len(list((tmp_path / "run").glob("state*"))) == 1
    for name in checkpoint_names(tmp_path / "run"):
        values = [torch.load(tmp_path / folder / name, weights_only=True) for folder in ("run", "whole")]
        torch.testing.assert_close(*values, rtol=0, atol=0)


@pytest.mark.slow
def test_a_requeued_command_prefers_its_own_checkpoints(train, tmp_path):
    """--resume_checkpoint is where the run begins, each time the command is given; its own newer steps come first."""
    start = make_checkpoint(tmp_path / "start", "model", learn_sigma=True, class_cond=True).rename(
        tmp_path / "start" / "model000002.pt"
    )
    resume = {"resume_checkpoint": start}
    train("image_train", "whole", **resume)
    train("image_train", "cut", ("step:2", "SIGTERM", "0"), **resume)
    start.unlink()
    assert "model000003.pt at step 4" in train("image_train", "cut", **resume).stdout
    assert_same_files(tmp_path / "cut", tmp_path / "whole")
    assert [float(row["step"]) for row in read_csv(tmp_path / "cut" / "progress.csv")] == [2, 3, 4, 5]


def test_more_steps_of_a_falling_rate(train, tmp_path):
    train("image_train", "run", lr_anneal_steps=2)
    (line,) = train("image_train", "run", lr_anneal_steps=4, fails=True).error_lines
    assert "--lr_anneal_steps 4 (the run there has 2); the learning rate is annealed over --lr_anneal_steps, so" in line


@pytest.mark.slow
def test_another_number_of_processes_with_the_same_batch(train, tmp_path):
    train("image_train", "run", ("step:3", "SIGTERM", "all"), launcher="fork2", batch_size=2)
    assert "resuming with 1 process, 2 before" in train("image_train", "run", batch_size=4).stdout
    rows = read_csv(tmp_path / "run" / "progress.csv")
    assert [float(row["samples"]) for row in rows] == [4.0 * n for n in range(1, 7)]
    assert all(np.isfinite(float(row["loss"])) for row in rows)


@pytest.mark.slow
def test_float16_keeps_its_loss_scale(train, tmp_path):
    grown = {"use_fp16": None, "fp16_scale_growth": 0.4, "schedule_sampler": "uniform"}
    train("image_train", "whole", **grown)
    train("image_train", "cut", ("step:3", "SIGTERM", "0"), **grown)
    train("image_train", "cut", **grown)
    scales = {
        name: [row["lg_loss_scale"] for row in read_csv(tmp_path / name / "progress.csv")] for name in ("whole", "cut")
    }
    assert scales["cut"] == scales["whole"] and len(set(scales["whole"])) > 2

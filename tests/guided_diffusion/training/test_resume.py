"""Going on after an interruption, and training in several processes as in one."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.helpers import (
    CLASSIFIER,
    DIFFUSION,
    MODEL,
    ROOT,
    SCRIPTS,
    TIMEOUT,
    as_arguments,
    clean_environment,
    kill_tree,
    launch_prefix,
    read_csv,
    read_npz,
)

PROGRAM = ROOT / "tests" / "support" / "training_program.py"


def steps_taken(path: Path) -> set[float]:
    """How many steps the optimizer in a file has taken, over all parameters."""
    state = torch.load(path, weights_only=True)["state"]
    return {float(entry["step"]) for entry in state.values()}


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def assert_finite_progress(folder: Path, steps: list[int]) -> None:
    rows = read_csv(folder / "progress.csv")
    assert [int(float(row["step"])) for row in rows] == steps
    assert all(np.isfinite(float(value)) for row in rows for value in row.values() if value)


def checkpoint_names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.pt")}


@pytest.mark.slow
def test_classifier_training_goes_on(run, tmp_path, images):
    flags = CLASSIFIER | DIFFUSION | {
        "data_dir": images, "val_data_dir": images, "batch_size": 4, "log_interval": 1, "eval_interval": 1,
        "save_interval": 2, "ect": None, "anneal_lr": None,
    }  # fmt: skip
    run("classifier_train", flags | {"iterations": 3, "log_dir": "first"}, launcher="fork2")
    first, second = tmp_path / "first", tmp_path / "second"
    assert checkpoint_names(first) == {"model000002.pt", "opt000002.pt"}
    assert steps_taken(first / "opt000002.pt") == {3}

    resume = {"resume_checkpoint": "first/model000002.pt", "iterations": 6, "log_dir": "second"}
    run("classifier_train", flags | resume, launcher="fork2")
    assert checkpoint_names(second) == {f"{name}{step:06d}.pt" for name in ("model", "opt") for step in (4, 5)}
    assert_finite_progress(second, [2, 3, 4, 5])
    assert steps_taken(second / "opt000004.pt") == {6} and steps_taken(second / "opt000005.pt") == {7}
    (group,) = torch.load(second / "opt000005.pt", weights_only=True)["param_groups"]
    assert group["lr"] == pytest.approx(3e-4 * (1 - 5 / 6))
    samples = [float(row["samples"]) for row in read_csv(second / "progress.csv")]
    assert samples == [24, 32, 40, 48], "of both processes"


@pytest.mark.slow
def test_diffusion_training_goes_on(run, tmp_path, images):
    """An average with rate 1.0 never moves, so a run that lost it would show."""
    flags = MODEL | DIFFUSION | {
        "data_dir": images, "batch_size": 4, "log_interval": 1, "save_interval": 2, "ema_rate": "1.0", "lr": 1e-3,
    }  # fmt: skip
    run("image_train", flags | {"iterations": 3, "log_dir": "first"}, launcher="fork2")
    first, second = tmp_path / "first", tmp_path / "second"
    assert steps_taken(first / "opt000002.pt") == {3}
    average = weights(first / "ema_1.0_000002.pt")
    assert any(not torch.equal(average[name], value) for name, value in weights(first / "model000002.pt").items())

    resume = {"resume_checkpoint": "first/model000002.pt", "iterations": 4, "log_dir": "second"}
    run("image_train", flags | resume, launcher="mpiexec")
    names = {f"{name}{step:06d}.pt" for name in ("model", "opt", "ema_1.0_") for step in (2, 4)}
    assert checkpoint_names(second) == names
    assert_finite_progress(second, [2, 3])
    assert steps_taken(second / "opt000002.pt") == {4} and steps_taken(second / "opt000004.pt") == {5}
    assert all(torch.equal(average[name], v) for name, v in weights(second / "ema_1.0_000004.pt").items())
    assert any(
        not torch.equal(value, weights(second / "model000004.pt")[name])
        for name, value in weights(first / "model000002.pt").items()
    )


@pytest.fixture(scope="module")
def sampling(checkpoints) -> dict:
    return {
        "model_path": checkpoints["model"], "classifier_path": checkpoints["classifier"], "eds": None,
        "num_samples": 40, "batch_size": 1, "log_dir": "cut", "trace": "trace.npz",
    }  # fmt: skip


@pytest.mark.slow
def test_killed_in_the_midst_of_sampling(run, tmp_path, sampling):
    """kill -9 for the launcher and all ranks; the same command then completes the run."""
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            [*launch_prefix("mpiexec"), str(SCRIPTS / "classifier_sample.py"), *as_arguments(sampling)],
            cwd=tmp_path, env=clean_environment(), stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        parts, deadline = tmp_path / "cut" / "parts", time.monotonic() + TIMEOUT
        while not list(parts.glob("part-*.npz")):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "output").read_text()
            time.sleep(0.02)
        kill_tree(process.pid)
        process.wait(timeout=30)
    time.sleep(0.5)
    finished = {path.name: path.read_bytes() for path in parts.glob("part-*.npz")}
    assert 0 < len(finished) < 40 and not list((tmp_path / "cut").glob("samples*"))

    again = run("classifier_sample", sampling, launcher="fork2")
    assert f"resuming: {len(finished)} of 40 images exist" in again.stdout, "what was finished is not made again"
    assert "of 800 evaluations" in again.stdout, "with those before the interruption"
    result = tmp_path / "cut" / "samples_40x8x8x3.npz"
    resumed, trace = read_npz(result), read_npz(tmp_path / "trace.npz")
    assert not parts.exists()

    run("classifier_sample", sampling | {"log_dir": "whole", "trace": "whole.npz"}, launcher="fork2")
    whole, whole_trace = read_npz(tmp_path / "whole" / result.name), read_npz(tmp_path / "whole.npz")
    assert all(np.array_equal(resumed[name], whole[name]) for name in ("arr_0", "arr_1"))
    assert all(np.array_equal(trace[name], whole_trace[name]) for name in whole_trace)

    # Finished: the same command changes nothing, another one is refused.
    before = result.read_bytes(), result.stat().st_mtime_ns
    assert "already complete" in run("classifier_sample", sampling).stdout
    (line,) = run("classifier_sample", sampling | {"seed": 7, "eds": False}, fails=True).error_lines
    assert "--seed 7 (the run there has 0)" in line and "--eds False (the run there has True)" in line
    assert (result.read_bytes(), result.stat().st_mtime_ns) == before


@pytest.mark.slow
def test_two_ranks_train_as_one(run, tmp_path):
    gradients = {}
    for launcher, ranks in (("fork", 1), ("mpiexec", 2)):
        ended = run(PROGRAM, [str(tmp_path / f"{ranks}.pt")], launcher=launcher)
        for kind in ("classifier", "dlsm", "dlsm in microbatches", "diffusion"):
            for rank in range(ranks):
                assert f"{kind} rank {rank} same: True" in ended.stdout
        gradients[ranks] = torch.load(tmp_path / f"{ranks}.pt", weights_only=True)
    pairs = [(kind, expected, gradients[2][kind]) for kind, expected in gradients[1].items()]
    pairs += [("microbatches", gradients[1]["dlsm"], gradients[1]["dlsm in microbatches"])]
    for kind, expected, found in pairs:
        assert expected.keys() == found.keys()
        size = max(value.abs().max() for value in expected.values())
        assert size > 1e-3
        for name, value in expected.items():
            assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-6 * float(size)), f"{kind} {name}"


@pytest.mark.parametrize(
    ("signal", "status", "says"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "stopped by SIGTERM")]
)
def test_a_stop_without_a_log_dir_says_which_it_was(run, tmp_path, checkpoints, signal, status, says):
    """Without the flag the same command would begin a new folder; a scheduler's SIGTERM is told in the same way."""
    flags = {"model_path": checkpoints["model"], "num_samples": 6, "batch_size": 1, "timestep_respacing": "2"}
    program = ROOT / "tests" / "support" / "interrupted_program.py"
    arguments = [str(SCRIPTS / "image_sample.py"), "part:2", signal, "0", *as_arguments(flags)]
    ended = run(program, arguments, fails=True)
    (folder,) = (tmp_path / "runs").iterdir()
    assert ended.statuses == [status] and "Traceback" not in ended.stderr
    told = f"{says}; finished batches are kept; the same command with --log_dir {folder} resumes from there"
    assert told in ended.stdout
    assert json.loads((folder / "status.json").read_text())["state"] == "stopped"
    again = run("image_sample", flags | {"log_dir": folder})
    assert "of 6 images exist" in again.stdout and list(folder.glob("samples_6*.npz"))

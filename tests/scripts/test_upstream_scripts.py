"""Upstream's own scripts, unmodified, on our `guided_diffusion`.

Their source is not part of this repository: GUIDED_DIFFUSION_SCRIPTS names a checkout of
openai/guided-diffusion (or its scripts folder); without it these tests are skipped. Every script runs as
its own process with the repository first on PYTHONPATH. Two things need `upstream_script_runner.py`,
which says why: classifier_train on a CPU, and seeds.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from guided_diffusion import script_util
from tests.support.helpers import ROOT

RUNNER = ROOT / "tests" / "support" / "upstream_script_runner.py"
CLASSES = ("ant", "bee", "cat")
SCRIPTS = (
    "classifier_sample", "classifier_train", "image_nll", "image_sample", "image_train", "super_res_sample",
    "super_res_train",
)  # fmt: skip

# Sizes below 64 need --channel_mult; the classifier knows only the published sizes, from 64 on.
MODEL = {
    "image_size": 64, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,1", "num_heads": 1,
    "attention_resolutions": "32",
}  # fmt: skip
SMALL_MODEL = MODEL | {"image_size": 16, "attention_resolutions": "8"}
CLASSIFIER = {
    "image_size": 64, "classifier_width": 32, "classifier_depth": 1, "classifier_attention_resolutions": "8",
}  # fmt: skip
SUPER_RESOLUTION = {
    "large_size": 64, "small_size": 16, "num_channels": 32, "num_res_blocks": 1, "num_heads": 1,
    "attention_resolutions": "8",
}  # fmt: skip


@pytest.fixture(scope="module")
def scripts() -> Path:
    checkout = os.environ.get("GUIDED_DIFFUSION_SCRIPTS")
    if not checkout:
        pytest.skip("GUIDED_DIFFUSION_SCRIPTS does not name a checkout of openai/guided-diffusion")
    for folder in (Path(checkout) / "scripts", Path(checkout)):
        if (folder / "classifier_sample.py").is_file():
            return folder.resolve()
    pytest.fail(f"GUIDED_DIFFUSION_SCRIPTS={checkout}: no scripts/classifier_sample.py there")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Twelve labelled noise images of 64x64 and thereabouts."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(12):
        pixels = generator.integers(0, 256, (64 + index, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{CLASSES[index % 3]}_{index}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """State dicts of all tiny models, built by our builders."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for name, model in {
        "model": build("model", MODEL),
        "class_cond": build("model", SMALL_MODEL | {"class_cond": True}),
        "small": build("model", SMALL_MODEL),
        "learn_sigma": build("model", SMALL_MODEL | {"learn_sigma": True}),
        "classifier": build("classifier", CLASSIFIER),
        "super_res": build("super_res", SUPER_RESOLUTION),
    }.items():
        torch.save(model.state_dict(), folder / f"{name}.pt")
    return folder


def build(kind: str, flags: dict) -> torch.nn.Module:
    function, defaults = {
        "model": (script_util.create_model_and_diffusion, script_util.model_and_diffusion_defaults),
        "classifier": (
            script_util.create_classifier_and_diffusion,
            script_util.classifier_and_diffusion_defaults,
        ),
        "super_res": (script_util.sr_create_model_and_diffusion, script_util.sr_model_and_diffusion_defaults),
    }[kind]
    return function(**defaults() | flags)[0]


def run(script: Path, logs: Path, flags: dict, *, package=ROOT, runner=False, processes=1, seed=None) -> str:
    """Run a script to its end with its log directory at `logs`; returns what it printed."""
    command = [sys.executable, *([str(RUNNER)] if runner or seed is not None else []), str(script)]
    command += [text for name, value in flags.items() for text in (f"--{name}", str(value)) if text]
    if processes > 1:
        launcher = mpiexec()
        command = [launcher, "-n", str(processes), *command]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "OMPI_", "OPENAI_", "MPI"))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "UPSTREAM_SCRIPT_SEED"):
        inherited.pop(name, None)
    environment = inherited | {
        "PYTHONPATH": str(package),
        "OPENAI_LOGDIR": str(logs),
        "OMP_NUM_THREADS": "1",
        **({} if seed is None else {"UPSTREAM_SCRIPT_SEED": str(seed)}),
    }
    done = subprocess.run(
        command, cwd=logs.parent, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def mpiexec() -> str:
    found = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not found:
        pytest.skip("no mpiexec here")
    return found


def samples(logs: Path, shape: str) -> list[np.ndarray]:
    with np.load(logs / f"samples_{shape}.npz", allow_pickle=False) as file:
        return [file[name] for name in file.files]


def rows(logs: Path) -> list[dict]:
    with (logs / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_trained(folder: Path, name: str, kind: str, flags: dict) -> None:
    """The checkpoint fits our model strictly and differs from a zero-initialised one."""
    state = torch.load(folder / name, weights_only=True)
    build(kind, flags).load_state_dict(state, strict=True)
    zero_initialised = [key for key in state if key.endswith(("out_layers.3.weight", "proj_out.weight"))]
    assert any(state[key].any() for key in zero_initialised)


@pytest.mark.parametrize("name", SCRIPTS)
def test_our_script_knows_every_flag_of_upstreams(scripts, tmp_path, name):
    """Names only; `--help` of either side lists them."""
    ours, theirs = (
        set(re.findall(r"--\w+", run(folder / f"{name}.py", tmp_path / "logs", {"help": ""})))
        for folder in (ROOT / "scripts", scripts)
    )
    assert len(theirs) > 15 and theirs <= ours, sorted(theirs - ours)


def test_scripts_import_our_package(scripts, tmp_path):
    probe = tmp_path / "probe.py"
    probe.write_text("import guided_diffusion; print(guided_diffusion.__file__)")
    assert run(probe, tmp_path / "logs", {}).strip() == str(ROOT / "guided_diffusion" / "__init__.py")


@pytest.mark.parametrize("respacing, use_ddim", [("2", False), ("ddim2", True)])
def test_classifier_sample(scripts, weights, tmp_path, respacing, use_ddim):
    flags = MODEL | CLASSIFIER | guided(weights) | {"timestep_respacing": respacing, "use_ddim": use_ddim}
    run(scripts / "classifier_sample.py", tmp_path / "logs", flags)
    pixels, labels = samples(tmp_path / "logs", "3x64x64x3")
    assert (pixels.dtype, pixels.shape) == (np.uint8, (3, 64, 64, 3))
    assert (labels.dtype, labels.shape) == (np.int64, (3,))
    assert pixels.std() > 10


def guided(weights: Path) -> dict:
    paths = {"model_path": weights / "model.pt", "classifier_path": weights / "classifier.pt"}
    return paths | {"num_samples": 3, "batch_size": 2, "classifier_scale": 2.0}


def test_classifier_sample_in_two_processes(scripts, weights, tmp_path):
    flags = (
        MODEL | CLASSIFIER | guided(weights) | {"timestep_respacing": "2", "num_samples": 4, "batch_size": 1}
    )
    run(scripts / "classifier_sample.py", tmp_path / "logs", flags, processes=2)
    pixels, labels = samples(tmp_path / "logs", "4x64x64x3")
    assert pixels.shape == (4, 64, 64, 3) and labels.shape == (4,)
    assert len(np.unique(pixels.reshape(4, -1), axis=0)) == 4, "the ranks made the same images"
    assert (tmp_path / "logs" / "log-rank001.txt").is_file()


def test_classifier_sample_makes_the_images_it_makes_on_the_peer(scripts, weights, tmp_path):
    from benchmarks.upstream import import_location, require_upstream

    require_upstream()
    flags = MODEL | CLASSIFIER | guided(weights) | {"timestep_respacing": "3", "num_samples": 2}
    made = []
    for name, package in (("ours", ROOT), ("peer", import_location())):
        logs = tmp_path / name
        run(scripts / "classifier_sample.py", logs, flags, package=package, seed=5)
        made.append(samples(logs, "2x64x64x3"))
    difference = np.abs(made[0][0].astype(int) - made[1][0].astype(int))
    assert difference.max() <= 1  # 1e-5 of round-off can move a value over the edge between two bytes
    assert (difference == 0).mean() > 0.999
    assert np.array_equal(made[0][1], made[1][1])


@pytest.mark.parametrize("name, learned", [("small", False), ("class_cond", True)])
def test_image_sample(scripts, weights, tmp_path, name, learned):
    flags = SMALL_MODEL | {
        "class_cond": learned,
        "timestep_respacing": "3",
        "num_samples": 3,
        "batch_size": 2,
    }
    run(scripts / "image_sample.py", tmp_path / "logs", flags | {"model_path": weights / f"{name}.pt"})
    arrays = samples(tmp_path / "logs", "3x16x16x3")
    assert [a.shape for a in arrays] == [(3, 16, 16, 3)] + [(3,)] * learned
    assert arrays[0].dtype == np.uint8


def test_image_train_and_resume(scripts, images, tmp_path):
    flags = SMALL_MODEL | {
        "data_dir": images, "batch_size": 4, "microbatch": 2, "lr_anneal_steps": 3, "save_interval": 2,
        "log_interval": 1, "learn_sigma": True, "class_cond": True, "ema_rate": "0.5,0.9999",
    }  # fmt: skip
    logs = tmp_path / "logs"
    run(scripts / "image_train.py", logs, flags)
    stems = ("model", "ema_0.5_", "ema_0.9999_", "opt")
    assert {path.name for path in logs.glob("*.pt")} == {f"{s}{n:06d}.pt" for s in stems for n in (0, 2)}
    assert_trained(logs, "model000002.pt", "model", flags_of_model(flags))
    assert [float(row["step"]) for row in rows(logs)] == [0, 1, 2]
    assert {"loss", "mse", "vb", "grad_norm", "param_norm", "samples"} <= set(rows(logs)[0])
    again = tmp_path / "again"
    resumed = flags | {"resume_checkpoint": logs / "model000002.pt", "lr_anneal_steps": 4}
    run(scripts / "image_train.py", again, resumed)
    assert [float(row["step"]) for row in rows(again)] == [2, 3]


def flags_of_model(flags: dict) -> dict:
    known = script_util.model_and_diffusion_defaults()
    return {key: value for key, value in flags.items() if key in known}


def test_image_nll(scripts, weights, images, tmp_path):
    flags = SMALL_MODEL | {
        "model_path": weights / "learn_sigma.pt", "data_dir": images, "learn_sigma": True,
        "timestep_respacing": "4", "num_samples": 4, "batch_size": 2,
    }  # fmt: skip
    printed = run(scripts / "image_nll.py", tmp_path / "logs", flags)
    for name in ("vb", "mse", "xstart_mse"):
        with np.load(tmp_path / "logs" / f"{name}_terms.npz", allow_pickle=False) as file:
            assert file["arr_0"].shape == (4,) and np.isfinite(file["arr_0"]).all()
    assert "bpd=" in printed


def test_super_res_train_then_sample(scripts, images, tmp_path):
    logs = tmp_path / "logs"
    flags = SUPER_RESOLUTION | {"data_dir": images, "batch_size": 2, "lr_anneal_steps": 2, "save_interval": 1}
    run(scripts / "super_res_train.py", logs, flags)
    assert_trained(logs, "model000001.pt", "super_res", SUPER_RESOLUTION)
    base = tmp_path / "base.npz"
    np.savez(base, np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8))
    sampling = SUPER_RESOLUTION | {
        "model_path": logs / "ema_0.9999_000001.pt", "base_samples": base, "timestep_respacing": "2",
        "num_samples": 3, "batch_size": 2,
    }  # fmt: skip
    run(scripts / "super_res_sample.py", tmp_path / "samples", sampling)
    (pixels,) = samples(tmp_path / "samples", "3x64x64x3")
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("processes", [1, 2])
def test_classifier_train(scripts, images, tmp_path, processes):
    """Through the runner: DistributedDataParallel refuses upstream's CPU device ids."""
    logs = tmp_path / "logs"
    flags = CLASSIFIER | {
        "data_dir": images, "val_data_dir": images, "batch_size": 2, "microbatch": 1, "iterations": 3,
        "save_interval": 1, "log_interval": 1, "eval_interval": 1, "anneal_lr": True,
    }  # fmt: skip
    run(scripts / "classifier_train.py", logs, flags, runner=True, processes=processes)
    saved = {path.name for path in logs.glob("*.pt")}
    assert saved == {f"{stem}{step:06d}.pt" for stem in ("model", "opt") for step in (1, 2)}
    assert_trained(logs, "model000002.pt", "classifier", CLASSIFIER)
    assert [float(row["samples"]) for row in rows(logs)] == [2 * processes * n for n in (1, 2, 3)]
    assert {"train_loss", "train_acc@1", "train_acc@5", "val_loss", "grad_norm"} <= set(rows(logs)[0])
    if processes == 1:
        again = tmp_path / "again"
        resumed = flags | {"resume_checkpoint": logs / "model000001.pt"}
        run(scripts / "classifier_train.py", again, resumed, runner=True)
        assert [float(row["step"]) for row in rows(again)] == [1, 2]

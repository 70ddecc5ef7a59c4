"""Checks that the programs do on a device what they do elsewhere; `CHECKS` holds them by name, as in `checks.py`.

They run in this process, where the device is up already, in a folder of their own.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.builders import SMALLEST, random_images, write_images, write_network, write_networks
from benchmarks.gpu.checks import CPU
from benchmarks.programs import arguments, clean_environment, read_csv, read_npz
from guided_diffusion.config.configs import SuperResConfig
from guided_diffusion.runs import failure_log, logger

DRAW = {"num_samples": 7, "batch_size": 3, "timestep_respacing": "4"}
COMMON = {
    "diffusion_steps": 20, "noise_schedule": "cosine", "batch_size": 4, "log_interval": 1, "save_interval": 2,
    "lr": 1e-3,
}  # fmt: skip
JOBS = {
    "classifier_train": COMMON | {
        "image_size": 8, "classifier_width": 32, "classifier_depth": 1, "classifier_attention_resolutions": "4",
        "labels": "filename", "ect": None,
    },
    "image_train": COMMON | {
        "image_size": 8, "num_channels": 32, "num_res_blocks": 1, "num_heads": 1, "attention_resolutions": "4",
        "labels": "filename", "class_cond": None, "learn_sigma": None, "dropout": 0.1, "ema_rate": "0.5,0.9",
    },
}  # fmt: skip
SUPER_RES = SuperResConfig(
    large_size=8, small_size=4, num_channels=32, num_res_blocks=1, num_heads=1, attention_resolutions="4",
)  # fmt: skip


def call(script: str, folder: Path, **flags: Any) -> Path:
    """Run a script in this process; return the folder of its files."""
    argv = [script, *arguments(flags | {"log_dir": folder})]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(failure_log, "keep_warnings", lambda: None),  # they stay this process's
        mock.patch.dict(os.environ, clean_environment(), clear=True),
        logger.scoped_configure(dir=folder.parent / "none", format_strs=[]),
    ):
        try:
            importlib.import_module(f"scripts.{script}").main()
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
    return folder


def guided(folder: Path) -> dict[str, Any]:
    """Flags of classifier_sample for the smallest networks, written below a folder."""
    return DRAW | write_networks(folder / "networks", SMALLEST) | {"eds": None, "classifier_scale": 2.0}


def assert_same_images(found: Path, expected: Path) -> None:
    """The same labels, and the same images but for rounding."""
    one, other = (read_npz(next(folder.glob("samples_*.npz"))) for folder in (found, expected))
    assert np.array_equal(one["arr_1"], other["arr_1"])
    difference = np.abs(one["arr_0"].astype(int) - other["arr_0"])
    assert difference.max() <= 1 and (difference > 0).mean() < 0.02
    assert len(set(map(bytes, one["arr_0"]))) == DRAW["num_samples"]


def images_do_not_depend_on_the_batch_size(sampler: str, folder: Path) -> None:
    flags = guided(folder) | {"sampler": sampler}
    three, five = (call("classifier_sample", folder / str(n), **flags | {"batch_size": n}) for n in (3, 5))
    assert_same_images(five, three)


def other_sampling_programs_run(folder: Path) -> None:
    """image_sample, super_res_sample and image_nll run on the device, from files to files."""
    draw = DRAW | {"num_samples": 3, "batch_size": 2}
    model = write_network(folder / "model", dataclasses.replace(SMALLEST.model, class_cond=False))
    np.savez(folder / "base.npz", random_images(0, 3, 4))
    enlarged = {"model_path": write_network(folder / "enlarging", SUPER_RES), "base_samples": folder / "base.npz"}
    for results in (
        call("image_sample", folder / "images", model_path=model, **draw),
        call("super_res_sample", folder / "large", **enlarged, **draw),
    ):
        assert len(set(map(bytes, read_npz(results / "samples_3x8x8x3.npz")["arr_0"]))) == 3
    images = write_images(folder / "files", 8, 4, 4)
    nll = call("image_nll", folder / "nll", model_path=model, data_dir=images, num_samples=4, batch_size=4,
               timestep_respacing="20")  # fmt: skip
    bits = read_npz(nll / "vb_terms.npz")["arr_0"]
    assert bits.shape == (20,) and np.isfinite(bits).all()


@contextmanager
def deterministic() -> Iterator[None]:
    """Make rounding the same every time, as Adam turns the rounding of gradients that vanish into full steps."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def interrupted_training_equals_an_undisturbed_one(script: str, folder: Path) -> None:
    flags = JOBS[script] | {"data_dir": write_images(folder / "files", 8, 4, 8)}
    with deterministic():
        whole = call(script, folder / "whole", **flags, iterations=4)
        call(script, folder / "cut", **flags, iterations=2)
        cut = call(script, folder / "cut", **flags, iterations=4)
    assert [float(row["step"]) for row in read_csv(cut / "progress.csv")] == [0, 1, 2, 3]
    names = sorted(path.name for path in whole.glob("*.pt"))
    assert len(names) >= 2
    for name in names:
        one, other = (torch.load(run / name, map_location=CPU, weights_only=True) for run in (cut, whole))
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7, msg=lambda text, name=name: f"{name} {text}")
    state = torch.load(max(cut.glob("opt*.pt")), weights_only=True)["state"]
    on_host = {values["step"].device.type for values in state.values()} == {"cpu"}
    assert on_host, "on the device Adam's counts of steps are read back, one by one, at every step"


def half_precision_trains(script: str, name: str, folder: Path) -> None:
    """The loss is finite, the weights move, and float16's loss scale grows."""
    half, loss = {"classifier_use_fp16": None}, "train_loss"
    if script == "image_train":
        half, loss = {"use_fp16": None, "fp16_scale_growth": 0.4}, "loss"
    images = write_images(folder / "files", 8, 4, 8)
    run = call(script, folder / "half", **JOBS[script] | half, data_dir=images, iterations=6, amp_dtype=name)
    rows = read_csv(run / "progress.csv")
    assert len(rows) == 6 and all(np.isfinite(float(row[loss])) for row in rows)
    if name == "fp16":
        scales = [float(row["lg_loss_scale"]) for row in rows]
        assert min(scales) > 4 and (script == "classifier_train" or len(set(scales)) > 1)
    checkpoints = sorted(run.glob("model*.pt"))
    before, after = (torch.load(checkpoints[i], map_location=CPU, weights_only=True) for i in (0, -1))
    assert all(values.dtype is torch.float32 and values.isfinite().all() for values in after.values())
    assert sum(not torch.equal(before[key], after[key]) for key in after) > 0.9 * len(after)


CHECKS: dict[str, Callable[[Path], None]] = {
    f"batch size {sampler}": partial(images_do_not_depend_on_the_batch_size, sampler) for sampler in ("ddpm", "ddim")
}
CHECKS["other sampling programs"] = other_sampling_programs_run
for _script in JOBS:
    CHECKS[f"resumed {_script}"] = partial(interrupted_training_equals_an_undisturbed_one, _script)
    CHECKS |= {f"{dtype} {_script}": partial(half_precision_trains, _script, dtype) for dtype in ("fp16", "bf16")}

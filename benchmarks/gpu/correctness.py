"""Is what the device computes right? The checks of tests/benchmarks/test_cuda.py, without pytest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from benchmarks.gpu import made
from benchmarks.gpu.record import Context
from benchmarks.gpu.sampling import find_peer


def run(context: Context) -> None:
    """Run every check; one that fails is a result, and the next begins."""
    prepare(context)
    folder = context.out / "made"
    shutil.rmtree(folder, ignore_errors=True)
    # Compiled networks and programs of several processes are checked beside the others.
    beside = subprocess.Popen([sys.executable, "-m", "benchmarks.gpu.stage", "compiled-correctness", *sys.argv[2:]])
    two = two_processes(context, folder / "two")
    peer = find_peer()
    checks = [
        *plain(context), *upstreams(peer), *programs(folder), *features(folder),
        ("two processes", two),
    ]  # fmt: skip
    run_all(context, checks)
    if status := beside.wait():
        raise RuntimeError(f"compiled-correctness ended with status {status}")


def prepare(context: Context) -> None:
    """What the checks want of this process."""
    os.environ["ED_DPM_TEST_DEVICE"] = context.device
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32


def run_all(context: Context, checks: list[tuple[str, Callable[[], None]]]) -> None:
    """Run the checks, each with a limit of its own."""
    for name, check in checks:
        context.case(name, 120 if context.tiny else 60, partial(report, context, name, check))


def report(context: Context, name: str, check: Callable[[], None]) -> None:
    """Run one check and note that it passed."""
    start = time.perf_counter()
    check()
    context.add(name, passed=True, seconds=round(time.perf_counter() - start, 2))


def plain(context: Context) -> list[tuple[str, Callable[[], None]]]:
    """The checks of networks as they are."""
    from benchmarks.gpu import checks
    from guided_diffusion.diffusion import samplers
    from guided_diffusion.diffusion.solvers import SAMPLERS

    found = [
        (f"{name} {dtype}", partial(checks.networks_compute_what_float64_does, make, labels, dtype))
        for name, (make, labels) in checks.NETWORKS.items()
        for dtype in ("plain", *checks.TOLERANCE)
    ]
    found += [(f"guidance {type(rule).__name__}", partial(checks.guidance_is_float64s, rule)) for rule in checks.RULES]
    found += [
        (f"almost certain {type(rule).__name__}", partial(checks.guidance_of_an_almost_certain_classifier, rule))
        for rule in checks.RULES[:2]
    ]
    found += [(f"sampler {name}", partial(checks.guided_samples_are_the_cpus, name)) for name in SAMPLERS]
    found += [("noise", checks.noise_does_not_depend_on_the_batch)]
    found += [("normalisation in channels_last", checks.normalisation_keeps_the_layout)]
    found += [
        (f"losses {name}", partial(checks.losses_are_the_cpus, make, labels))
        for name, (make, labels) in checks.NETWORKS.items()
    ]
    if torch.device(context.device).type == "cuda":
        found += [
            (f"no waiting {step.__name__} {dtype}", partial(checks.host_does_not_wait, step, dtype))
            for step in (samplers.ddpm_step, samplers.ddim_step)
            for dtype in (None, torch.float16)
        ]
    return found


def upstreams(peer: SimpleNamespace | None) -> list[tuple[str, Callable[[], None]]]:
    """The checks beside upstream; none without it, which the command has said."""
    from benchmarks.gpu import checks

    if peer is None:
        return []
    return [
        (f"upstream's {name} {'float16' if half else 'float32'}",
         partial(checks.networks_are_upstreams, peer.unet, name, half))
        for name in checks.UPSTREAMS for half in (False, True)
    ]  # fmt: skip


def programs(folder: Path) -> list[tuple[str, Callable[[], None]]]:
    """The checks of whole programs."""
    from benchmarks.gpu import program_checks as checks

    found = [
        (f"batch size {sampler}", partial(checks.images_do_not_depend_on_the_batch_size, folder / sampler, sampler))
        for sampler in ("ddpm", "ddim")
    ]
    found += [("other sampling programs", partial(checks.other_sampling_programs_run, folder / "others"))]
    for script in checks.JOBS:
        resumed = partial(checks.interrupted_training_equals_an_undisturbed_one, folder / f"resumed-{script}", script)
        found += [(f"resumed {script}", resumed)]
        found += [
            (f"{dtype} {script}", partial(checks.half_precision_trains, folder / f"{dtype}-{script}", script, dtype))
            for dtype in ("fp16", "bf16")
        ]
    return found


def features(folder: Path) -> list[tuple[str, Callable[[], None]]]:
    """The checks of evaluation."""
    from benchmarks.gpu import evaluation_checks as checks

    pools = [(f"features {p}", partial(checks.classifier_features_are_the_cpus, folder / p, p)) for p in checks.POOLS]
    return pools + [
        (f"inception's operations {prepare.__name__}", partial(checks.inceptions_operations_are_the_cpus, prepare))
        for prepare in checks.PREPARATIONS
    ]


def two_processes(context: Context, folder: Path) -> Callable[[], None]:
    """Start programs of two processes on one device, and return the check of what they made."""
    from benchmarks.gpu import program_checks as checks

    flags = checks.guided(folder)
    train = checks.JOBS["classifier_train"] | {
        "data_dir": made.make_images(folder / "files", 8, 4, 8), "iterations": 3, "log_dir": folder / "train",
    }  # fmt: skip
    sampling = ("scripts/classifier_sample.py", flags | {"log_dir": folder / "two"}, 2)
    running = made.Running(context, [sampling, ("scripts/classifier_train.py", train, 2)])

    def check() -> None:
        """They drew the images that one draws, but for rounding, and trained."""
        running.wait()
        checks.assert_same_images(folder / "two", checks.call("classifier_sample", folder / "alone", **flags))
        losses = [float(row["train_loss"]) for row in checks.read_csv(folder / "train" / "progress.csv")]
        assert len(losses) == 3 and np.isfinite(losses).all()

    return check

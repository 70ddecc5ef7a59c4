"""Is what the device computes right? The checks of tests/test_cuda.py, without pytest."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch

from benchmarks.gpu import made
from benchmarks.gpu.record import Context
from benchmarks.gpu.sampling import find_peer


def run(context: Context) -> None:
    """Run every check; one that fails is a result, and the next begins."""
    os.environ["ED_DPM_TEST_DEVICE"] = context.device
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    if context.tiny:  # the same way through the code, without a compiler
        compile = torch.compile
        backend = mock.patch("torch.compile", lambda network, **_: compile(network, backend="aot_eager", dynamic=False))
        backend.start()
    folder = context.out / "made"
    shutil.rmtree(folder, ignore_errors=True)
    waiting = start_two_processes(context, folder / "two")  # they run beside the other checks
    peer = find_peer()
    checks = [
        *plain(context), *upstreams(peer), *programs(folder), *features(folder), *compiled(),
        ("two processes", partial(two_processes, waiting, folder / "two")),
    ]  # fmt: skip
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


def compiled() -> list[tuple[str, Callable[[], None]]]:
    """The checks of compiled networks."""
    from benchmarks.gpu import compiled_checks

    layers = [
        (f"compiled {layer}", partial(compiled_checks.compiled_layers_have_the_same_gradients, layer))
        for layer in compiled_checks.LAYERS
    ]
    return [
        *layers, ("compiled networks", compiled_checks.compiled_networks_compute_the_same),
        ("compiled training", compiled_checks.compiled_training_has_the_same_gradients),
    ]  # fmt: skip


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


def start_two_processes(context: Context, folder: Path) -> made.Running:
    """Sampling alone and in two processes on one device, and training in two."""
    from benchmarks.gpu import program_checks as checks

    flags = checks.guided(folder)
    train = checks.JOBS["classifier_train"] | {
        "data_dir": made.make_images(folder / "files", 8, 4, 8), "iterations": 3, "log_dir": folder / "train",
    }  # fmt: skip
    sample = "scripts/classifier_sample.py"
    return made.Running(
        context,
        [
            (sample, flags | {"log_dir": folder / "alone"}, 1),
            (sample, flags | {"log_dir": folder / "two"}, 2),
            ("scripts/classifier_train.py", train, 2),
        ],
    )


def two_processes(waiting: made.Running, folder: Path) -> None:
    """They draw, on one GPU, the images that one draws, but for rounding, and train."""
    from benchmarks.gpu import program_checks as checks

    waiting.wait()
    checks.assert_same_images(folder / "two", folder / "alone")
    losses = [float(row["train_loss"]) for row in checks.read_csv(folder / "train" / "progress.csv")]
    assert len(losses) == 3 and np.isfinite(losses).all()

"""Is what the device computes right? The checks of tests/test_cuda.py, without pytest, and two processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

import numpy as np
import torch

from benchmarks.gpu import made
from benchmarks.gpu.record import Context


def run(context: Context) -> None:
    """Run every check; one that fails is a result, and the next begins."""
    os.environ["ED_DPM_TEST_DEVICE"] = context.device
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    if context.tiny:  # the same way through the code, without a compiler
        compile = torch.compile
        backend = mock.patch("torch.compile", lambda network, **_: compile(network, backend="aot_eager", dynamic=False))
        backend.start()
    for name, check in [*plain(context), *compiled(), ("two processes", partial(two_processes, context))]:
        context.case(name, 60, partial(report, context, name, check))


def report(context: Context, name: str, check: Callable[[], None]) -> None:
    """Run one check and note that it passed."""
    start = time.perf_counter()
    check()
    context.add(name, passed=True, seconds=round(time.perf_counter() - start, 2))


def plain(context: Context) -> list[tuple[str, Callable[[], None]]]:
    """The checks of networks as they are."""
    from benchmarks.gpu import checks
    from guided_diffusion import samplers
    from guided_diffusion.solvers import SAMPLERS

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


def two_processes(context: Context) -> None:
    """Two processes draw, on one GPU, the images that one draws, but for rounding."""
    folder = context.out / "made" / "two-processes"
    flags = made.sampling_flags(folder, made.SMALLEST, num_samples=6, batch_size=3, steps="4")
    found = []
    for name, ranks in (("alone", 1), ("two", 2)):
        made.run_program(context, "scripts/classifier_sample.py", flags | {"log_dir": folder / name}, ranks)
        with np.load(next((folder / name).glob("samples_*.npz")), allow_pickle=False) as file:
            found.append((file["arr_0"].astype(int), file["arr_1"]))
    (one, labels), (other, other_labels) = found
    assert np.array_equal(labels, other_labels)
    assert np.abs(one - other).max() <= 1 and len(np.unique(one.reshape(6, -1), axis=0)) == 6

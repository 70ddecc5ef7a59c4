"""What it costs that a sampling run cannot be lost: the programs' run beside a bare loop of the same networks.

The run has an owner file, a generator for every sample, part files that reach the disk and are read back with their
checksums, a manifest with hashes, a digest of the result, the search for inf and nan at every step, status.json and a
heartbeat of two ranks; the bare loop draws its noise at once and writes one
npz at the end. A batch here is a hundredth or less of one in practice (250 steps of a large network), so what a batch
costs beside its steps weighs more here.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.cases import Setting
from benchmarks.measure import alternate, spread, synchronise
from benchmarks.tracing import free_model, networks
from guided_diffusion import logger, run_directory, script_util
from guided_diffusion.checkpoint import save
from guided_diffusion.generate import SampleRun, to_uint8
from guided_diffusion.heartbeat import Heartbeat
from guided_diffusion.nonfinite import Watch, timesteps_of
from guided_diffusion.sample_noise import LabelPlan

STEPS, BATCHES = 4, 2
HEADER = (
    "config", "part", "bare s", "run s", "images/s ratio", "95 %", "10-90 %", "CPU ratio", "10-90 %", "own ms",
    "own share",
)  # fmt: skip


def measure(setting: Setting, device: torch.device, half: bool, rounds: int) -> dict[str, float | str]:
    """Measure seconds of both, interleaved, and the run's images/s beside the bare loop's.

    The 95 % interval is that of the median over the rounds, by resampling them. The ratio by CPU seconds tells more on
    a machine that does other work too; it has no waiting for the disk in it. `own_seconds` is what the run adds, on the
    wall, around a network that costs nothing, and `own_share` that beside the bare loop: on a noisy machine it tells
    more than the difference of two long times.
    """
    model, _ = networks(setting, device, half)
    folder = Path(tempfile.mkdtemp(prefix="robustness-"))
    save({"weights": torch.zeros(1 << 20)}, folder / "model.pt")  # to be hashed
    with logger.scoped_configure(dir=str(folder), format_strs=[]), _heartbeat():
        times = alternate(*_sides(setting, device, model, folder), rounds, warmup=1)
        free = alternate(*_sides(setting, device, free_model, folder), rounds=40, warmup=1)
    shutil.rmtree(folder)
    wall, cpu = ([peer[clock] / own[clock] for own, peer in times] for clock in (0, 1))
    medians = np.median(np.random.default_rng(0).choice(wall, (10_000, len(wall))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    bare_seconds = statistics.median(peer[0] for _, peer in times)
    own_seconds = statistics.median(own[0] - peer[0] for own, peer in free)
    return {
        "part": f"{BATCHES} batches of {setting.batch_size}, {STEPS} steps", "rounds": rounds,
        "bare_seconds": bare_seconds, "run_seconds": statistics.median(own[0] for own, _ in times),
        "own_seconds": own_seconds, "own_share": own_seconds / bare_seconds,
        **spread("rate_ratio", wall), "rate_ratio_low": float(low), "rate_ratio_high": float(high),
        **spread("cpu_rate_ratio", cpu),
    }  # fmt: skip


def _sides(setting: Setting, device: torch.device, model: Callable, folder: Path) -> tuple[Callable, Callable]:
    """A run, and the bare loop; each returns its clocks."""
    diffusion = script_util.create_gaussian_diffusion(learn_sigma=True, timestep_respacing=str(STEPS))
    shape, count, classes = (3, setting.side, setting.side), BATCHES * setting.batch_size, 10

    def loop(model: Callable, y: torch.Tensor, **arguments) -> torch.Tensor:
        return diffusion.p_sample_loop(model, model_kwargs={"y": y}, **arguments)

    def run() -> None:
        directory = Path(tempfile.mkdtemp(dir=folder))
        run_directory.claim(directory, print)
        plan = SampleRun(
            num_samples=count, batch_size=setting.batch_size, shape=shape, seed=0, directory=directory,
            flags={"model_path": str(folder / "model.pt")}, labels=LabelPlan("", False, classes),
            watch=Watch(timesteps_of(diffusion)),
        )  # fmt: skip
        plan.generate(lambda batch: loop(model, batch.labels, **batch.loop_arguments(shape)))
        run_directory.release()

    def bare() -> None:
        images, labels = [], []
        for _ in range(BATCHES):
            y = torch.randint(classes, (setting.batch_size,), device=device)
            drawn = loop(model, y, shape=(setting.batch_size, *shape), device=device)
            images.append(to_uint8(drawn).cpu().numpy())
            labels.append(y.cpu().numpy())
        np.savez(folder / "bare.npz", np.concatenate(images), np.concatenate(labels))

    return partial(_clocks, run, device), partial(_clocks, bare, device)


@contextmanager
def _heartbeat() -> Iterator[None]:
    """Two ranks' heartbeats in this process: twice the work of one."""
    server = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    hearts = [Heartbeat(print) for _ in range(2)]
    starts = [threading.Thread(target=heart.start, args=(server.clone(), i, 2)) for i, heart in enumerate(hearts)]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    try:
        yield
    finally:
        for heart in hearts:
            heart.expect_leavers()
            heart.stop()


def _clocks(work: Callable, device: torch.device) -> tuple[float, float]:
    """Seconds on the wall, and of this process on all CPUs."""
    synchronise(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    synchronise(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def line(row: dict) -> str:
    """One row of the table."""
    return " | ".join(
        (
            row["config"], row["part"], f"{row['bare_seconds']:.2f}", f"{row['run_seconds']:.2f}",
            f"{row['rate_ratio']:.4f}", f"{row['rate_ratio_low']:.3f}-{row['rate_ratio_high']:.3f}",
            f"{row['rate_ratio_p10']:.3f}-{row['rate_ratio_p90']:.3f}",
            f"{row['cpu_rate_ratio']:.4f}", f"{row['cpu_rate_ratio_p10']:.3f}-{row['cpu_rate_ratio_p90']:.3f}",
            f"{row['own_seconds'] * 1e3:.1f}", f"{row['own_share']:.2%}",
        )
    )  # fmt: skip

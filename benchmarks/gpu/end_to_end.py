"""Whole programs as users run them, with random networks and images: images/s, memory, how busy the GPU is."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.builders import SETTINGS, SMALLEST, write_images, write_networks
from benchmarks.gpu.record import Context
from benchmarks.programs import Flags, finish, start

PERIOD = 1.0  # seconds between two looks at the GPU


def run(context: Context) -> None:
    """Sample with and without --eds, train a classifier, evaluate by its features."""
    setting = SMALLEST if context.tiny else SETTINGS["published-64-b1"]
    side, classes = setting.classifier.image_size, setting.classifier.num_classes
    count, batch, iterations = (4, 2, 2) if context.tiny else (128, 32, 60)
    speed = {} if context.tiny else {"use_fp16": True, "classifier_use_fp16": True, "use_ddim": True}
    folder = context.out / "made" / "end-to-end"
    sample = write_networks(folder, setting) | speed | {
        "num_samples": count, "batch_size": batch, "timestep_respacing": "3" if context.tiny else "ddim25",
    }  # fmt: skip
    images = write_images(folder / "images", side, classes, max(count, 2 * classes, 2 * batch))
    features = write_networks(folder / "features", setting, noised=False)["classifier_path"]
    train = {key: value for key, value in vars(setting.classifier).items() if key.startswith("classifier_")} | {
        "image_size": side, "classifier_use_fp16": not context.tiny, "data_dir": images, "batch_size": batch,
        "iterations": iterations, "log_interval": 1, "labels": "filename", "log_dir": folder / "train",
    }  # fmt: skip
    programs: list[tuple[str, str, Flags, int]] = [
        ("classifier_sample", "scripts/classifier_sample.py", sample | {"log_dir": folder / "plain"}, count),
        ("classifier_sample --eds", "scripts/classifier_sample.py",
         sample | {"eds": None, "log_dir": folder / "eds"}, count),
        ("classifier_train", "scripts/classifier_train.py", train, batch * iterations),
        ("evaluator --features", "evaluations/evaluator.py",
         [images, folder / "plain", "--features", features, "--batch_size", batch], count),
    ]  # fmt: skip
    for name, program, flags, work in programs:
        context.case(name, context.left() / 1.5, partial(measure, context, name, program, flags, work))
    shutil.rmtree(folder, ignore_errors=True)  # networks of a gigabyte


def measure(context: Context, name: str, program: str, flags: Flags, images: int) -> None:
    """Run one program: wall time, images/s with and without its start, peak memory, the share of time busy."""
    begin = time.perf_counter()
    with watch_gpu(context.device.startswith("cuda")) as seen:
        finish(start(program, flags, context.device))
    seconds = time.perf_counter() - begin
    row = {"wall_s": seconds, "images": images, "images_per_s_with_start": images / seconds}
    if isinstance(flags, dict):
        row |= status(Path(flags["log_dir"]))
    if seen:
        busy, memory = zip(*seen, strict=True)
        row |= {"gpu_busy": sum(busy) / len(busy) / 100, "gpu_gib": max(memory) / 1024}
    context.add(name, **row)


def status(folder: Path) -> dict[str, Any]:
    """Rate without the start, and peak memory, from the program's own status.json."""
    found = json.loads((folder / "status.json").read_text())
    summary = found["summary"]
    row = {f"{found['unit']}_per_s": summary["made"] / summary["seconds"]}
    return row | {f"{key}_gb": summary[key] / 1e9 for key in ("peak_memory", "peak_cuda_memory") if key in summary}


@contextmanager
def watch_gpu(on: bool) -> Iterator[list[tuple[float, float]]]:
    """Look at the GPU every `PERIOD` seconds in a thread: percent of the time busy, and MiB of memory in use."""
    command = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
    seen: list[tuple[float, float]] = []
    end = threading.Event()

    def look() -> None:
        while not end.wait(PERIOD):
            found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
            with suppress(IndexError, ValueError):
                busy, memory = map(float, found.stdout.splitlines()[0].split(","))
                seen.append((busy, memory))

    if on and shutil.which("nvidia-smi"):
        threading.Thread(target=look, daemon=True).start()
    try:
        yield seen
    finally:
        end.set()

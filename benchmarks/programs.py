"""Running the programs of the tree as users do, and reading what they write."""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
Flags = dict[str, Any] | list  # {name: value}, or the arguments themselves


def arguments(flags: Flags) -> list[str]:
    """Command-line arguments of flags: --name value, or the name alone where the value is None."""
    if isinstance(flags, dict):
        flags = [text for name, value in flags.items() for text in (f"--{name}", value) if text is not None]
    return [str(value) for value in flags]


def clean_environment() -> dict[str, str]:
    """This environment without a launcher's variables."""
    return {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


def start(program: str, flags: Flags, device: str, processes: int = 1) -> list[subprocess.Popen]:
    """Start a program of the tree, in several processes as torchrun would."""
    environment = clean_environment()
    if device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    ranks: list[dict[str, str]] = [{}]
    if processes > 1:
        port = random.SystemRandom().randrange(10000, 32768)
        shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    command = [sys.executable, str(ROOT / program), *arguments(flags)]
    return [subprocess.Popen(command, env=environment | rank) for rank in ranks]


def finish(processes: list[subprocess.Popen]) -> None:
    """Wait for all; RuntimeError if one failed. None is left running, however this ends."""
    try:
        statuses = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(statuses):
        ended = [f"{Path(process.args[1]).name} {process.returncode}" for process in processes]
        raise RuntimeError(f"ended with status: {', '.join(ended)}; see the stage's log")


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file, by name."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}

"""Shared by the tests of the programs: running them, tiny folders of images, tiny checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.builders import write_network
from benchmarks.gpu.stage_runner import descendants
from benchmarks.programs import arguments as as_arguments
from benchmarks.programs import read_csv as read_csv
from benchmarks.programs import read_npz as read_npz
from guided_diffusion.config.configs import ClassifierConfig, DiffusionConfig, ModelConfig, SuperResConfig
from guided_diffusion.config.flags import from_values

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
SCRIPT_NAMES = (
    "classifier_sample", "classifier_train", "image_nll", "image_sample", "image_train", "super_res_sample",
    "super_res_train",
)  # fmt: skip
TIMEOUT = 120  # seconds, for a hang; a run takes some seconds

# The smallest networks that have every part: two levels, attention at 4x4 pixels.
DIFFUSION = {"diffusion_steps": 20, "noise_schedule": "cosine"}
CLASSIFIER = {
    "image_size": 8, "classifier_width": 32, "classifier_depth": 1, "classifier_num_head_channels": 32,
    "classifier_attention_resolutions": "4",
}  # fmt: skip
UNET = {"num_channels": 32, "num_res_blocks": 1, "num_heads": 1, "attention_resolutions": "4"}
MODEL = {"image_size": 8, **UNET}
SUPER_RES = {"large_size": 8, "small_size": 4, "learn_sigma": True, **UNET}
LAUNCHER_VARIABLES = (
    "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "PMI", "OMPI_", "MPI_", "SLURM_", "GUIDED_", "TORCHELASTIC",
)  # fmt: skip


def clean_environment(**extra: str) -> dict[str, str]:
    """This environment without any launcher's variables, on one thread a process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith((*LAUNCHER_VARIABLES, "OPENAI_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": path} | extra


@dataclass(frozen=True)
class Run:
    """The exit statuses of a program (one for each process that was started), and its output."""

    statuses: list[int | None]  # None: did not end in time and was killed
    stdout: str
    stderr: str

    @property
    def error_lines(self) -> list[str]:
        return re.findall(r"^error: .*", self.stderr, flags=re.MULTILINE)


class ForkServer:
    """Client of `fork_server.py`."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "support" / "fork_server.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean_environment(),
        )  # fmt: skip

    def run(self, program: Path, argv: list[str], cwd: Path, timeout: float, environments: list[dict]) -> Run:
        with tempfile.TemporaryDirectory() as folder:
            outputs = [[f"{folder}/out{rank}", f"{folder}/err{rank}"] for rank in range(len(environments))]
            request = {
                "program": str(program), "argv": argv, "cwd": str(cwd), "environments": environments,
                "outputs": outputs, "timeout": timeout,
            }  # fmt: skip
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            statuses = json.loads(self._process.stdout.readline())
            texts = ["".join(Path(paths[i]).read_text() for paths in outputs) for i in (0, 1)]
        return Run(statuses, *texts)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=60)  # a busy machine takes its time


class Runner:
    """Runs programs alone or in two processes.

    Launchers: "fork", a process forked from one with PyTorch loaded; "fork2", two of them as torchrun would
    start them, with nobody to end one when the other fails; "python", "mpiexec" and "torchrun", the real
    thing, the latter two with two processes.
    """

    def __init__(self, server: ForkServer, cwd: Path):
        self.server, self.cwd = server, cwd

    def __call__(
        self,
        script: str | Path,
        flags: dict | list[str] | None = None,
        *,
        launcher: str = "fork",
        fails: bool = False,
        timeout: float = TIMEOUT,
        environment: dict[str, str] | None = None,
    ) -> Run:
        """Run a script of ours by name, or any program by path; `fails`: expect that it does.

        :param environment: more variables, for "fork".
        """
        program = SCRIPTS / f"{script}.py" if isinstance(script, str) else script
        argv = as_arguments(flags or {})
        if launcher == "fork":
            run = self.server.run(program, argv, self.cwd, timeout, [clean_environment(**environment or {})])
        elif launcher == "fork2":
            run = self.server.run(program, argv, self.cwd, timeout, two_ranks())
        else:
            run = run_to_end([*launch_prefix(launcher), str(program), *argv], self.cwd, timeout)
        told = f"{program.name} {' '.join(argv)}\n{run.statuses}\n{run.stdout[-3000:]}\n{run.stderr[-5000:]}"
        assert None not in run.statuses, f"still running after {timeout} s: {told}"
        assert (0 not in run.statuses) if fails else not any(run.statuses), told
        return run


def free_port() -> int:
    """A free port, below those that the system assigns by itself."""
    while True:
        port = random.SystemRandom().randrange(10000, 32768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def two_ranks() -> list[dict[str, str]]:
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [clean_environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]


def launch_prefix(launcher: str, ranks: int = 2) -> list[str]:
    if launcher == "mpiexec":
        pytest.importorskip("mpi4py")
        return [executable("mpiexec"), "-n", str(ranks), sys.executable]
    if launcher == "torchrun":
        return [executable("torchrun"), "--standalone", "--nproc_per_node", str(ranks)]
    assert launcher == "python"
    return [sys.executable]


def executable(name: str) -> str:
    found = shutil.which(name, path=clean_environment()["PATH"])
    return found or pytest.skip(f"{name} is not installed")


def run_to_end(command: list[str], cwd: Path, timeout: float) -> Run:
    """Run a command; it and all it started are killed when it does not end in time."""
    process = subprocess.Popen(
        command, cwd=cwd, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_tree(process.pid)
        stdout, stderr = process.communicate()
        return Run([None], stdout, stderr)
    return Run([process.returncode], stdout, stderr)


def kill_tree(pid: int) -> None:
    """kill -9 a process and everything it started (mpiexec puts its ranks into other process groups)."""
    for victim in [pid, *descendants(pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)


def make_images(
    folder: Path,
    classes: int = 4,
    per_class: int = 6,
    size: int = 8,
    channels: int = 3,
    names: Sequence[str] | None = None,
) -> Path:
    """PNG files c<class>_<number>.png, or with the classes' names: noise around a brightness that tells the class."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    names = names or [f"c{label}" for label in range(classes)]
    classes = len(names)
    for label in range(classes):
        for number in range(per_class):
            noise = generator.integers(0, 60, (size, size, channels))
            pixels = (noise + 190 * label // max(1, classes - 1)).astype(np.uint8)
            image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
            image.save(folder / f"{names[label]}_{number}.png")
    return folder


def make_checkpoint(
    folder: Path, kind: str, *, config_json: bool = True, seed: int = 0, notes: dict | None = None, **flags
) -> Path:
    """Random weights of a "classifier", "model" or "super_res" with tiny flags; config.json (+ notes) beside it."""
    base, config_class = {
        "classifier": (CLASSIFIER, ClassifierConfig),
        "model": (MODEL, ModelConfig),
        "super_res": (SUPER_RES, SuperResConfig),
    }[kind]
    chosen = DIFFUSION | {"num_classes": 4} | base | flags
    config, diffusion = from_values(config_class, chosen), from_values(DiffusionConfig, chosen)
    torch.manual_seed(seed)
    path = write_network(folder, config, diffusion, **notes or {})
    if not config_json:
        (folder / "config.json").unlink()
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Contents of all files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

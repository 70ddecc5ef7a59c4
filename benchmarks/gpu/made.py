"""Made networks and images for whole programs, and running these as users do."""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.cases import SETTINGS, SHARED, randomize
from benchmarks.gpu.record import Context
from guided_diffusion.config.configs import ClassifierConfig, DiffusionConfig, ModelConfig, SuperResConfig
from guided_diffusion.config.create import build_classifier, build_model, build_super_res_model
from guided_diffusion.io import checkpoint

ROOT = Path(__file__).resolve().parents[2]
Flags = dict[str, Any] | list  # of a program: {name: value} or words


@dataclasses.dataclass(frozen=True)
class Networks:
    """A pair of networks of the same classes."""

    model: ModelConfig
    classifier: ClassifierConfig


SMALLEST = Networks(
    ModelConfig(
        image_size=8, num_channels=32, num_res_blocks=1, num_heads=1, attention_resolutions="4", class_cond=True,
        num_classes=4,
    ),
    ClassifierConfig(
        image_size=8, classifier_width=32, classifier_depth=1, classifier_num_head_channels=32,
        classifier_attention_resolutions="4", num_classes=4,
    ),
)  # fmt: skip
PUBLISHED_64 = Networks(
    ModelConfig(image_size=64, **SHARED, **SETTINGS["published-64-b1"].model),
    ClassifierConfig(image_size=64, classifier_depth=4),
)


def make_networks(folder: Path, networks: Networks, **notes: Any) -> dict[str, Path]:
    """Checkpoints with random weights, zero-initialised layers too, and config.json beside them."""
    return {
        "model": write_network(folder / "model", networks.model, **notes),
        "classifier": write_network(folder / "classifier", networks.classifier, **notes),
    }


def write_network(folder: Path, config: ModelConfig | SuperResConfig | ClassifierConfig, **notes: Any) -> Path:
    """One of them: folder/model.pt."""
    diffusion = DiffusionConfig(learn_sigma=True)
    if isinstance(config, ClassifierConfig):
        network = build_classifier(config)
    else:
        build = build_model if isinstance(config, ModelConfig) else build_super_res_model
        network = build(config, diffusion)
    randomize(network)
    checkpoint.save(network.state_dict(), folder / "model.pt")
    checkpoint.write_config(folder, dataclasses.asdict(config) | dataclasses.asdict(diffusion) | notes)
    return folder / "model.pt"


def sampling_flags(folder: Path, networks: Networks, num_samples: int, batch_size: int, steps: str) -> dict[str, Any]:
    """Flags of classifier_sample for networks made in a folder."""
    paths = make_networks(folder, networks)
    return {
        "model_path": paths["model"], "classifier_path": paths["classifier"], "num_samples": num_samples,
        "batch_size": batch_size, "timestep_respacing": steps,
    }  # fmt: skip


def make_images(folder: Path, side: int, classes: int, count: int) -> Path:
    """PNG files of noise, labelled by name as upstream does."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for i in range(count):
        pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"c{i % classes}_{i}.png")
    return folder


def run_program(context: Context, program: str, flags: Flags) -> float:
    """Run a program of the tree to its end; wall seconds. RuntimeError if it fails."""
    start = time.perf_counter()
    Running(context, [(program, flags, 1)]).wait()
    return time.perf_counter() - start


class Running:
    """Programs of the tree that run at once, each a (program, flags, number of processes), started as torchrun would.

    Their processes are in the stage's group and end with it; stdout and stderr go to the stage's log.
    """

    def __init__(self, context: Context, runs: list[tuple[str, Flags, int]]):
        environment = clean_environment()
        if context.device == "cpu":
            environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self._log = f"{context.stage}.log"
        self._processes: list[subprocess.Popen] = []
        for program, flags, ranks in runs:
            for launch in launches(ranks):
                command = [sys.executable, str(ROOT / program), *words(flags)]
                self._processes.append(subprocess.Popen(command, env=environment | launch))

    def wait(self) -> None:
        """Wait for all; RuntimeError if one failed. None is left running, however this ends."""
        try:
            statuses = [process.wait() for process in self._processes]
        finally:
            for process in self._processes:
                process.kill()
                process.wait()
        if any(statuses):
            ended = [f"{Path(p.args[1]).name} {p.returncode}" for p in self._processes]
            raise RuntimeError(f"ended with status: {', '.join(ended)}; see {self._log}")


def clean_environment() -> dict[str, str]:
    """This environment without a launcher's variables."""
    return {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


def words(flags: Flags) -> list[str]:
    """A command's arguments; a flag whose value is None stands alone."""
    if isinstance(flags, list):
        return [str(value) for value in flags]
    return [str(text) for name, value in flags.items() for text in (f"--{name}", value) if text is not None]


def launches(ranks: int) -> list[dict[str, str]]:
    """What torchrun would put into the environment of each process; nothing for a process alone."""
    if ranks == 1:
        return [{}]
    port = str(random.SystemRandom().randrange(10000, 32768))
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]

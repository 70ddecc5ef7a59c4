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
from guided_diffusion import checkpoint
from guided_diffusion.configs import ClassifierConfig, DiffusionConfig, ModelConfig
from guided_diffusion.script_util import build_classifier, build_model

ROOT = Path(__file__).resolve().parents[2]


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
    diffusion = DiffusionConfig(learn_sigma=True)
    built = {
        "model": (build_model(networks.model, diffusion), networks.model),
        "classifier": (build_classifier(networks.classifier), networks.classifier),
    }
    paths = {}
    for name, (network, config) in built.items():
        randomize(network)
        paths[name] = folder / name / "model.pt"
        checkpoint.save(network.state_dict(), paths[name])
        values = dataclasses.asdict(config) | dataclasses.asdict(diffusion)
        checkpoint.write_config(paths[name].parent, values | notes)
    return paths


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


def run_program(context: Context, program: str, flags: dict[str, Any] | list, ranks: int = 1) -> float:
    """Run a program of the tree, started as torchrun would; wall seconds. RuntimeError with its last line if it fails.

    Its processes are in the stage's group and end with it; stdout and stderr go to the stage's log.
    """
    if isinstance(flags, dict):
        flags = [str(text) for name, value in flags.items() for text in (f"--{name}", value) if text is not None]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if context.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    if ranks > 1:
        port = str(random.SystemRandom().randrange(10000, 32768))
        environment |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    start = time.perf_counter()
    processes = [
        subprocess.Popen(
            [sys.executable, str(ROOT / program), *map(str, flags)],
            env=environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}),
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        statuses = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(statuses):
        raise RuntimeError(f"{program} ended with {statuses}: see {context.stage}.log")
    return time.perf_counter() - start

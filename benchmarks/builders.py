"""Networks, checkpoints and images for benchmarks and tests: the smallest, for a CPU, and the published ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import nn

from guided_diffusion.config import builders
from guided_diffusion.config.configs import ClassifierConfig, DiffusionConfig, ModelConfig, SuperResConfig
from guided_diffusion.config.create import build_classifier, build_model, build_super_res_model
from guided_diffusion.io import checkpoint

Config = ModelConfig | SuperResConfig | ClassifierConfig
DIFFUSION = DiffusionConfig(learn_sigma=True)  # of the diffusion models: they predict the variance too


@dataclasses.dataclass(frozen=True)
class Setting:
    """A diffusion model and a classifier for the same images and classes, and a batch size."""

    model: ModelConfig
    classifier: ClassifierConfig
    batch_size: int


SMALLEST = Setting(
    ModelConfig(
        image_size=8, num_channels=32, num_res_blocks=1, num_heads=1, attention_resolutions="4", class_cond=True,
        num_classes=4,
    ),
    ClassifierConfig(
        image_size=8, classifier_width=32, classifier_depth=1, classifier_num_head_channels=32,
        classifier_attention_resolutions="4", num_classes=4,
    ),
    batch_size=2,
)  # fmt: skip


def small(side: int, batch_size: int) -> Setting:
    """Networks for CPUs: 64 channels, 2 blocks a level, attention at 16 and 8 pixels."""
    model = ModelConfig(
        image_size=side, num_channels=64, channel_mult="1,2,2,2", attention_resolutions="16,8", num_head_channels=32,
        resblock_updown=True,
    )  # fmt: skip
    classifier = ClassifierConfig(
        image_size=side, classifier_width=64, classifier_channel_mult="1,2,2,2", classifier_num_head_channels=32,
        classifier_attention_resolutions="16,8",
    )  # fmt: skip
    return Setting(model, classifier, batch_size)


def published(side: int, batch_size: int, depth: int = 2, **model: Any) -> Setting:
    """The ImageNet networks at their full size; `depth` is the classifier's."""
    base = {"num_channels": 256, "attention_resolutions": "32,16,8", "class_cond": True, "resblock_updown": True}
    classifier = ClassifierConfig(image_size=side, classifier_depth=depth)
    return Setting(ModelConfig(image_size=side, **base | model), classifier, batch_size)


SETTINGS = {"32x32": small(32, 16), "64x64": small(64, 8)}
for _batch in (1, 8, 32, 64):
    SETTINGS |= {
        f"published-64-b{_batch}": published(
            64, _batch, depth=4, num_channels=192, num_res_blocks=3, num_head_channels=64,
            use_new_attention_order=True,
        ),
        f"published-128-b{_batch}": published(128, _batch, num_heads=4),
        f"published-256-b{_batch}": published(256, _batch, num_head_channels=64),
        f"published-256-uncond-b{_batch}": published(256, _batch, num_head_channels=64, class_cond=False),
    }  # fmt: skip


@torch.no_grad()
def randomize(network: nn.Module, scale: float = 0.02) -> nn.Module:
    """Add noise to all weights, as zero-initialised layers would hide the layers behind them; return the network."""
    for parameter in network.parameters():
        parameter.add_(scale * torch.randn_like(parameter))
    return network


def build_network(config: Config, diffusion: DiffusionConfig = DIFFUSION) -> nn.Module:
    """The freshly initialised network of a config."""
    if isinstance(config, ClassifierConfig):
        return build_classifier(config)
    return (build_model if isinstance(config, ModelConfig) else build_super_res_model)(config, diffusion)


def build_upstream_network(config: Config, upstream: SimpleNamespace, weights: dict, half: bool) -> nn.Module:
    """Upstream's network of a config with the weights of ours, in upstream's half precision if `half`."""
    # The constructors have the same arguments; upstream's functions around them know fewer sizes.
    classes = {name: getattr(upstream.unet, name) for name in ("UNetModel", "EncoderUNetModel")}
    options = dataclasses.asdict(config)
    with mock.patch.multiple(builders, **classes):
        if isinstance(config, ClassifierConfig):
            network = builders.create_classifier(**options | {"classifier_use_fp16": half})
        else:
            network = builders.create_model(**options | {"use_fp16": half, "learn_sigma": DIFFUSION.learn_sigma})
    network.load_state_dict(weights)
    if half:
        network.convert_to_fp16()
    return network


def write_network(folder: Path, config: Config, diffusion: DiffusionConfig = DIFFUSION, **notes: Any) -> Path:
    """Write folder/model.pt with random weights, and config.json (with `notes`) beside it; return the former."""
    checkpoint.save(randomize(build_network(config, diffusion)).state_dict(), folder / "model.pt")
    checkpoint.write_config(folder, dataclasses.asdict(config) | dataclasses.asdict(diffusion) | notes)
    return folder / "model.pt"


def write_networks(folder: Path, setting: Setting, **notes: Any) -> dict[str, Path]:
    """Write both networks of a setting below a folder; return classifier_sample's flags for them."""
    return {
        "model_path": write_network(folder / "model", setting.model, **notes),
        "classifier_path": write_network(folder / "classifier", setting.classifier, **notes),
    }


def random_images(seed: int, count: int, side: int) -> np.ndarray:
    """Noise in colour, uint8 [count, side, side, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def write_images(folder: Path, side: int, classes: int, count: int) -> Path:
    """Write PNG files of noise whose names tell their classes as upstream's do, c<class>_<number>.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(random_images(0, count, side)):
        Image.fromarray(pixels).save(folder / f"c{i % classes}_{i}.png")
    return folder

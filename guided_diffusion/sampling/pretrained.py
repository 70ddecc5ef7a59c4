"""Networks from a checkpoint and the config.json beside it, for use in other programs.

    model = load_model("runs/diffusion/ema_0.9999_100000.pt")
    diffusion = load_diffusion("runs/diffusion/ema_0.9999_100000.pt", timestep_respacing="ddim25")
    classifier = load_classifier("runs/classifier/model149999.pt")
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from guided_diffusion.config.configs import ClassifierConfig, DiffusionConfig, ModelConfig, SuperResConfig
from guided_diffusion.config.create import build_classifier, build_diffusion, build_model, build_super_res_model
from guided_diffusion.config.flags import ParsedFlags, architecture_from
from guided_diffusion.diffusion.respace import SpacedDiffusion
from guided_diffusion.distributed import collectives
from guided_diffusion.errors import InputError
from guided_diffusion.io import checkpoint
from guided_diffusion.io.checkpoint_flags import CLASSIFIER, DIFFUSION_MODEL, SUPER_RES
from guided_diffusion.models.inference import Frozen


class PretrainedModel(Frozen):
    """A diffusion model with its `config`; one that is not class-conditional ignores y."""

    def __init__(self, network: nn.Module, config: ModelConfig | SuperResConfig, dtype: torch.dtype | None = None):
        super().__init__(network, dtype)
        self.config = config

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Map x_t [B, C, H, W], t [B] and labels y [B] to eps, or to eps and variance along C."""
        if self.config.class_cond and y is not None:
            kwargs["y"] = y.to(x.device)
        return super().forward(x, t, **kwargs)


class PretrainedClassifier(Frozen):
    """A noise-aware classifier with its `config`: (x_t, t) -> logits [B, K]."""

    def __init__(self, network: nn.Module, config: ClassifierConfig, dtype: torch.dtype | None = None):
        super().__init__(network, dtype)
        self.config = config


def load_model(
    path: str | os.PathLike,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    **flags: Any,
) -> PretrainedModel:
    """Load the diffusion or super-resolution model of a checkpoint, frozen and in evaluation mode.

    :param device: None: this rank's GPU, or the CPU where there is none.
    :param dtype: torch.float16 or torch.bfloat16 for mixed precision; None: float32.
    :param flags: as on the command line (image_size=256, ...), for a checkpoint without config.json.
    :raises InputError: no such file, it does not fit, or it is a classifier. TypeError: an unknown flag.
    """
    saved = _saved(path, flags, DIFFUSION_MODEL, SUPER_RES)
    kind = SuperResConfig if "large_size" in saved | flags else ModelConfig
    config, diffusion = _configs(path, flags, saved, kind, DiffusionConfig)
    build = build_super_res_model if kind is SuperResConfig else build_model
    network = load_network(lambda: build(config, diffusion), path, device or collectives.dev())
    return PretrainedModel(network, config, dtype)


def load_classifier(
    path: str | os.PathLike,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    **flags: Any,
) -> PretrainedClassifier:
    """Load the classifier of a checkpoint for `ClassifierGuidance`; arguments as those of `load_model`."""
    saved = _saved(path, flags, CLASSIFIER)
    config, _ = _configs(path, flags, saved, ClassifierConfig, DiffusionConfig)
    network = load_network(lambda: build_classifier(config), path, device or collectives.dev())
    return PretrainedClassifier(network, config, dtype)


def load_diffusion(path: str | os.PathLike, **flags: Any) -> SpacedDiffusion:
    """Build the process that a checkpoint was trained on.

    :param flags: as on the command line; timestep_respacing="ddim25" or "250" for fewer steps.
    """
    saved = checkpoint.read_config(path) or {}
    (config,) = _configs(path, flags, saved, DiffusionConfig)
    return build_diffusion(config)


def load_network(build: Callable[[], nn.Module], path: str | os.PathLike, device: str | torch.device) -> nn.Module:
    """Build a network with a checkpoint's weights; InputError for one that does not fit."""
    with torch.device("meta"), _WithoutInit():  # only the file's weights take memory
        network = build()
    checkpoint.load_weights(network, path)
    return network.to(device)


class _WithoutInit(TorchFunctionMode):
    """Skip torch.nn.init: nn.Embedding's, on the meta device, would import PyTorch's compiler, which takes 2 s."""

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"]
        return func(*args, **kwargs or {})


def _saved(path: str | os.PathLike, flags: dict[str, Any], *expected: str) -> dict[str, Any]:
    """Read a checkpoint's config.json. InputError for another kind of network, and without config.json and flags."""
    saved = checkpoint.read_network_config(os.fspath(path), path, *expected)
    if saved is None and not flags:
        raise InputError(f"{path}: no config.json beside it; pass the flags of its training, as image_size=256")
    return saved or {}


def _configs(path: str | os.PathLike, flags: dict[str, Any], saved: dict[str, Any], *kinds: type) -> list[Any]:
    known = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    if unknown := sorted(flags.keys() - known):
        raise TypeError(f"{', '.join(unknown)}: no flag of this network")
    return [architecture_from(ParsedFlags(flags), kind, saved, os.fspath(path)) for kind in kinds]

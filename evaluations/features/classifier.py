"""Features from a classifier of clean images, for data unlike Inception's training set."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluations.features.base import Activations, BatchExtractor, run_batches
from guided_diffusion.config.configs import ClassifierConfig
from guided_diffusion.config.create import build_classifier
from guided_diffusion.config.flags import ParsedFlags, architecture_from
from guided_diffusion.errors import InputError
from guided_diffusion.io.checkpoint import read_network_config
from guided_diffusion.io.checkpoint_flags import CLASSIFIER
from guided_diffusion.sampling.pretrained import load_network

SPATIAL_CHANNELS = 7

log = logging.getLogger(__name__)


class ClassifierExtractor(BatchExtractor):
    """Features from a ``guided_diffusion`` classifier trained with ``--noised False``, run at timestep 0.

    - pooled: for the pools ``adaptive`` and ``attention`` the mean over space of the last feature map after
      the head's norm and SiLU; for ``spatial`` and ``spatial_v2`` the concatenated means that enter the head
    - spatial: the first 7 channels of the last feature map (middle block), channel fastest
    - probabilities: softmax of the logits

    ``checkpoint`` is the weights' file; its architecture comes from the ``config.json`` beside it. The
    network runs in float32 (no TF32) whatever precision it was trained in, on CUDA when there is one.

    Raises ``InputError`` if the configuration or the weights are missing or do not fit.
    """

    uses_stored_statistics = False
    resize = "none"

    def __init__(self, checkpoint: str | os.PathLike, batch_size: int = 64):
        super().__init__(batch_size)
        config, self.class_names = _read_architecture(checkpoint)
        self.config = asdict(config)
        self.name = f"classifier {os.fspath(checkpoint)}"
        self.weights_path = Path(checkpoint)
        self.image_size, self.channels = config.image_size, config.in_channels
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = load_network(lambda: build_classifier(config), checkpoint, self.device)
        self._model.eval().requires_grad_(False)

    def check(self, path: str, shape: tuple[int, ...]) -> None:
        """Raise ``InputError`` unless the images have the size the classifier was built for."""
        if tuple(shape[1:3]) != (self.image_size, self.image_size):
            raise InputError(
                f"{path}: found images of {shape[1]}x{shape[2]} pixels, expected {self.image_size}x"
                f"{self.image_size} as in the config.json of the --features classifier; --resize {self.image_size} "
                "crops and scales them"
            )

    def compute_activations(self, batches: Iterable[np.ndarray]) -> Activations:
        """Run uint8 images [B, H, W, 1 or 3] through the classifier.

        Grey images are repeated for a classifier of 3 channels. Raises ``InputError`` for coloured images
        and a classifier of 1 channel.
        """
        return Activations(*run_batches(self, batches, "classifier"))

    @torch.inference_mode()
    def run_batch(self, images_BHWC: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return pooled features, spatial features and probabilities of one batch."""
        x_BCHW = torch.from_numpy(match_channels(np.asarray(images_BHWC), self.channels)).to(self.device)
        x_BCHW = x_BCHW.permute(0, 3, 1, 2).float() / 127.5 - 1
        return tuple(out.float().cpu().numpy() for out in self._run(x_BCHW))

    def _run(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return pooled features [B, D], spatial features [B, S] and probabilities [B, K]."""
        found: dict[str, Tensor] = {}
        head = self._model.out
        hooks = [
            self._model.middle_block.register_forward_hook(lambda _m, _i, out: found.update(map=out)),
            head.register_forward_pre_hook(lambda _m, inputs: found.update(head=inputs[0])),
        ]
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                logits = self._model(x_BCHW, torch.zeros(len(x_BCHW), dtype=torch.long, device=self.device))
                entering = found["head"]
                pooled = entering if entering.ndim == 2 else F.silu(head[0](entering)).mean(dim=(2, 3))
        finally:
            for hook in hooks:
                hook.remove()
        spatial = found["map"][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        return pooled, spatial, logits.float().softmax(dim=-1)


def match_channels(images_BHWC: np.ndarray, channels: int) -> np.ndarray:
    """Return images with 1 or 3 ``channels``: grey is repeated; RGB becomes grey only if all channels are equal.

    Raises ``InputError`` for coloured images where grey ones are expected.
    """
    if images_BHWC.shape[-1] == channels:
        return images_BHWC.copy()  # torch needs writable memory; batches from files are read-only
    if images_BHWC.shape[-1] == 1:
        return images_BHWC.repeat(channels, axis=-1)
    if (images_BHWC != images_BHWC[..., :1]).any():
        raise InputError("found coloured images, expected grey ones for the 1 channel of the classifier")
    return images_BHWC[..., :1].copy()


def _read_architecture(checkpoint: str | os.PathLike) -> tuple[ClassifierConfig, list[str] | None]:
    """Return the config in ``config.json``, in full precision, and the classes' names if it has some.

    Keys that are not its own are ignored.
    """
    config_path = Path(checkpoint).parent / "config.json"
    config = read_network_config(f"--features {checkpoint}", checkpoint, CLASSIFIER)
    if config is None:
        raise InputError(f"{config_path}: no such file; --features needs the config.json of the training run")
    if config.get("noised") is True:
        log.warning(
            "warning: %s: this classifier was trained on noised images; features are meant to come from one of clean "
            "images (scripts/classifier_train.py --noised False) that did not guide the samples",
            config_path,
        )
    network_config = architecture_from(ParsedFlags({}), ClassifierConfig, config, os.fspath(checkpoint))
    return network_config, config.get("class_names")

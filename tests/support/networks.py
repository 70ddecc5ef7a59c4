"""Small networks whose guidance can be computed by hand or quickly."""

from __future__ import annotations

import torch
from torch import Tensor

from guided_diffusion.unet import EncoderUNetModel, UNetModel

CLASSES = 10

def small_classifier(seed: int = 0) -> EncoderUNetModel:
    torch.manual_seed(seed)
    model = EncoderUNetModel(
        8, 1, 32, CLASSES, 1, (2,), channel_mult=(1, 2), num_head_channels=32, use_scale_shift_norm=True,
        resblock_updown=True, pool="attention",
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():  # the zero-initialised layers too
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def small_unet(width: int = 32) -> UNetModel:
    torch.manual_seed(1)
    model = UNetModel(8, 1, width, 2, 1, (2,), channel_mult=(1, 2), num_heads=2, use_scale_shift_norm=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


LINEAR_CLASSES, LINEAR_SHAPE = 5, (2, 4, 4)

LINEAR_WEIGHT = torch.randn(LINEAR_CLASSES, *LINEAR_SHAPE, generator=torch.Generator().manual_seed(0)) / 4

def linear_classifier(x: Tensor, t: Tensor) -> Tensor:
    """Logits linear in x, without a sum over the batch axis, so that a sample's do not depend on the batch."""
    return (x[:, None] * LINEAR_WEIGHT).flatten(2).sum(dim=2)


def sine_model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return torch.sin(3 * x) + t.reshape(-1, 1, 1, 1) / 1000

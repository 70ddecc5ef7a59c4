"""Classifiers of clean images, as they are published, for guidance at the predicted x_0."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CleanClassifier(nn.Module):
    """classifier(x_0 [B, C, H, W] in [-1, 1], t) -> what a network returns for images as it knows them; t has no say.

    The images are scaled to the network's range, then x <- (x - mean) / std, then resized.

    :param network: any module that takes images; its mode and parameters are left as they are.
    :param low, high: the range of pixels before mean and std: 0 to 1, 0 to 255.
    :param mean, std: of each channel, in that range; none: no change.
    :param size: (height, width) or one number for both; bilinear, antialiased. None: as they come.
    :param softplus: beta of the softplus that takes the place of ReLU (see `with_softplus`); None: no change.
    :raises ValueError: an empty range; as many means as deviations are expected, and all deviations positive.
    """

    def __init__(
        self,
        network: nn.Module,
        low: float = 0.0,
        high: float = 1.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: int | tuple[int, int] | None = None,
        softplus: float | None = None,
    ):
        super().__init__()
        if not low < high:
            raise ValueError(f"low, high: found {low}, {high}, expected low < high")
        mean, std = mean or [0.0], std or [1.0]
        if len(mean) != len(std) and 1 not in (len(mean), len(std)) or not all(value > 0 for value in std):
            raise ValueError(f"mean, std: found {list(mean)} and {list(std)}, expected one of each a channel, std > 0")
        self.network = network if softplus is None else with_softplus(network, softplus)
        self.low, self.high, self.size = low, high, size
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64).reshape(-1, 1, 1))

    def forward(self, x: Tensor, t: Tensor | None = None) -> Any:
        given = max(self.mean.numel(), self.std.numel())
        if given not in (1, x.shape[1]):
            raise ValueError(f"mean, std: found {given} values for {x.shape[1]} channels, expected 1 or {x.shape[1]}")
        pixels = self.low + (x + 1) / 2 * (self.high - self.low)
        pixels = (pixels - self.mean.to(x)) / self.std.to(x)
        if self.size is not None:
            pixels = F.interpolate(pixels, size=self.size, mode="bilinear", antialias=True)
        return self.network(pixels)


class Decoded(nn.Module):
    """scorer(decode(x), t): a scorer of images where the diffusion model makes latents.

    :param scorer: scorer(images, t), such as a `CleanClassifier`; decode: decode(latents [B, ...]) -> images,
        differentiable.
    """

    def __init__(self, scorer: Callable[..., Any], decode: Callable[[Tensor], Tensor]):
        super().__init__()
        self.scorer, self.decode = scorer, decode

    def forward(self, x: Tensor, t: Tensor) -> Any:
        return self.scorer(self.decode(x), t)


class AtZero:
    """classifier(x, 0): a classifier of noised images at the predicted x_0, which has no noise."""

    def __init__(self, classifier: Callable[[Tensor, Tensor], Any]):
        self.classifier = classifier

    def __call__(self, x: Tensor, t: Tensor) -> Any:
        return self.classifier(x, torch.zeros_like(t))


class _SmoothReLU6(nn.Module):
    def __init__(self, beta: float):
        super().__init__()
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x, self.beta) - F.softplus(x - 6, self.beta)


def with_softplus(network: nn.Module, beta: float = 3.0) -> nn.Module:
    """Return a copy of a network with softplus, log(1 + exp(beta x)) / beta, in place of its ReLU modules.

    EluCD (Ma et al., ICLR 2024), for smoother gradients. ReLU6 becomes softplus(x) - softplus(x - 6) (derived here).
    Calls of a relu function cannot be replaced: ValueError where the network has no ReLU module, or for a beta of 0
    or less.
    """
    if not beta > 0:
        raise ValueError(f"softplus: found {beta}, expected a number above 0")
    network = copy.deepcopy(network)
    makers = {nn.ReLU: lambda: nn.Softplus(beta), nn.ReLU6: lambda: _SmoothReLU6(beta)}
    holders = [
        (parent, name, type(child))
        for parent in network.modules()
        for name, child in parent.named_children()
        if type(child) in makers
    ]
    if not holders:
        raise ValueError(f"softplus: found no nn.ReLU or nn.ReLU6 in {type(network).__name__} to put it in place of")
    for parent, name, kind in holders:
        setattr(parent, name, makers[kind]())
    return network

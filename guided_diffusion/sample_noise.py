"""Randomness of a sampling run: sample i draws from a generator of its own, whatever batch it is in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .class_labels import Classes


class PerSampleNoise:
    """Draws for the samples `indices` of a run: labels, starting noise, then one draw a step.

    Sample i's stream depends on (seed, i) and the kind of device alone, not on batch size, order or
    number of processes. Calling the object gives noise like x, as samplers' `noise_fn` wants it.
    """

    def __init__(self, seed: int, indices: Sequence[int], device: torch.device):
        self.device = device
        self.generators = [torch.Generator(device).manual_seed(_stream_seed(seed, i)) for i in indices]

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal float32 [B, *shape]."""
        return torch.stack([torch.randn(tuple(shape), generator=g, device=self.device) for g in self.generators])

    def __call__(self, x: Tensor) -> Tensor:
        return self.normal(x.shape[1:]).to(x.dtype)

    def choose(self, count: int) -> Tensor:
        """One number in 0..count-1 for each sample: int64 [B]."""
        drawn = [torch.randint(count, (), generator=g, device=self.device) for g in self.generators]
        return torch.stack(drawn)


def _stream_seed(seed: int, index: int) -> int:
    """A 63-bit seed in which neighbouring samples have nothing in common."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0] >> np.uint64(1))


class LabelPlan:
    """The class of each sample: drawn from its own generator, or in turn.

    :param classes: --classes, see `Classes.choose`, which says what is raised; known: the network's classes.
    """

    def __init__(self, classes: str, balanced: bool, known: Classes):
        self.classes, self.names = known.choose(classes), known.names
        self.balanced = balanced
        # For run.json: "" stands for all, so that classes that are left out by themselves are on record.
        self.flag = classes or ("" if len(self.classes) == known.count else ",".join(map(str, self.classes)))

    def labels(self, indices: Sequence[int], noise: PerSampleNoise) -> Tensor:
        """int64 [B] on the noise's device."""
        table = torch.tensor(self.classes, device=noise.device)
        # Drawn in either case, so that the images under balanced and random labels share their noise.
        position = noise.choose(len(self.classes))
        if self.balanced:
            position = torch.tensor([i % len(self.classes) for i in indices], device=noise.device)
        return table[position]

"""Random numbers of a sampling run: sample i has its own generator, whatever batch it is in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.config.class_labels import Classes

# On CUDA noise is drawn for several steps at once: a kernel launch per sample and step costs more than the numbers.
_MOST_STEPS, _MOST_NUMBERS = 16, 2**19  # the latter per sample


def generator_of(key: Sequence[int], device: torch.device | str = "cpu") -> torch.Generator:
    """Return the generator of a key, independent of those of neighbouring keys; its seed has 63 bits."""
    word = np.random.SeedSequence(tuple(key)).generate_state(1, np.uint64)[0] >> np.uint64(1)
    return torch.Generator(device).manual_seed(int(word))


class PerSampleNoise:
    """The draws for the samples `indices` of a run: labels, starting noise, then one draw per step.

    Sample i's stream depends only on (seed, i) and the kind of device, not on batch size, order or number of
    processes. Calling the object returns noise like x, as samplers' `noise_fn` must.

    :param ahead: draw the noise of up to 16 steps at once, which is another stream; None: on CUDA only, see `stream`.
    """

    def __init__(self, seed: int, indices: Sequence[int], device: torch.device, ahead: bool | None = None):
        self.device = device
        self.generators = [generator_of((seed, i), device) for i in indices]
        self._ahead = device.type == "cuda" if ahead is None else ahead
        self._drawn: dict[tuple[int, ...], Iterator[Tensor]] = {}  # by shape

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Draw standard normal float32 [B, *shape]."""
        shape = tuple(shape)
        ahead = self._ahead and shape in self._drawn  # not the starting noise: some samplers draw no other
        noise = next(self._drawn.get(shape, iter(())), None)
        if noise is None:
            steps = max(1, min(_MOST_STEPS, _MOST_NUMBERS // max(1, math.prod(shape)))) if ahead else 1
            drawn = [torch.randn((steps, *shape), generator=g, device=self.device) for g in self.generators]
            self._drawn[shape] = iter(torch.stack(drawn, dim=1))
            noise = next(self._drawn[shape])
        return noise

    def __call__(self, x: Tensor) -> Tensor:
        return self.normal(x.shape[1:]).to(x.dtype)

    def choose(self, count: int) -> Tensor:
        """Draw one number in 0..count-1 for each sample: int64 [B]."""
        drawn = [torch.randint(count, (), generator=g, device=self.device) for g in self.generators]
        return torch.stack(drawn)


def stream(device: torch.device) -> dict[str, str]:
    """Return the version of `PerSampleNoise`'s stream for run.json; {} on the CPU. A run never mixes two versions."""
    return {"noise_stream": "cuda 2"} if device.type == "cuda" else {}


class LabelPlan:
    """The class of each sample: drawn from its own generator, or in turn.

    :param classes: --classes, see `Classes.choose` (also for what is raised); known: the network's classes.
    """

    def __init__(self, classes: str, balanced: bool, known: Classes):
        self.classes, self.names = known.choose(classes), known.names
        self.balanced = balanced
        # For run.json: "" stands for all classes; those that are left out by default are recorded.
        self.flag = classes or ("" if len(self.classes) == known.count else ",".join(map(str, self.classes)))

    def labels(self, indices: Sequence[int], noise: PerSampleNoise) -> Tensor:
        """Return the classes, int64 [B] on the noise's device."""
        table = torch.tensor(self.classes, device=noise.device)
        # Drawn in either case, so that images with balanced and with random labels share their noise.
        position = noise.choose(len(self.classes))
        if self.balanced:
            position = torch.tensor([i % len(self.classes) for i in indices], device=noise.device)
        return table[position]

"""Random numbers of a training run: every draw is a function of the seed and its place in the run.

So checkpoints hold no generator state, and resuming from an older one repeats the same draws.
"""

from __future__ import annotations

import random
from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """The use of random numbers; the streams of different purposes are independent."""

    STEP = 1
    ORDER = 2
    AUGMENTATION = 3
    VALIDATION_STEP = 4
    VALIDATION_ORDER = 5
    VALIDATION_AUGMENTATION = 6


def seed_sequence(seed: int, purpose: Purpose, first: int, second: int = 0) -> np.random.SeedSequence:
    """Return the seed of a place: (rank, step) of a step, the epoch of an order, (epoch, item) of an image."""
    return np.random.SeedSequence((purpose, first, second, seed))


def seed_globals(seed: int, purpose: Purpose, rank: int, step: int) -> None:
    """Seed the global generators of Python, NumPy and torch (CPU and CUDA) for one step of one rank."""
    words = seed_sequence(seed, purpose, rank, step).generate_state(4, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(words[1:3].view(np.uint32))
    torch.manual_seed(int(words[3] >> np.uint64(1)))

"""Randomness of a training run: every draw is a function of the seed and of where in the run it is made.

So nothing about random numbers needs to be kept in a checkpoint, and going on from an older one draws the same.
"""

from __future__ import annotations

import random
from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What numbers are drawn for; different purposes have nothing in common."""

    STEP = 1
    ORDER = 2
    AUGMENTATION = 3
    VALIDATION_STEP = 4
    VALIDATION_ORDER = 5
    VALIDATION_AUGMENTATION = 6


def seed_sequence(seed: int, purpose: Purpose, first: int, second: int = 0) -> np.random.SeedSequence:
    """The numbers for a place in the run: (rank, step) of a step, the epoch of an order, (epoch, item) of an image."""
    return np.random.SeedSequence((purpose, first, second, seed))


def seed_globals(seed: int, purpose: Purpose, rank: int, step: int) -> None:
    """Seed the global generators of Python, NumPy and torch (CPU and CUDA) for one step of one rank."""
    words = seed_sequence(seed, purpose, rank, step).generate_state(4, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(words[1:3].view(np.uint32))
    torch.manual_seed(int(words[3] >> np.uint64(1)))

"""Distributions over the timesteps to train on, with importance weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


def create_named_schedule_sampler(name: str, diffusion) -> ScheduleSampler:
    """Return the sampler "uniform" or "loss-second-moment"; NotImplementedError for other names."""
    if name == "uniform":
        return UniformSampler(diffusion)
    if name == "loss-second-moment":
        return LossSecondMomentResampler(diffusion)
    raise NotImplementedError(f"schedule_sampler: found {name!r}, expected 'uniform' or 'loss-second-moment'")


class ScheduleSampler(ABC):
    """A distribution over timesteps; importance weights keep the expected loss equal to that of uniform sampling."""

    @abstractmethod
    def weights(self) -> np.ndarray:
        """Return positive weights [T], not necessarily normalised."""

    def sample(self, batch_size: int, device) -> tuple[Tensor, Tensor]:
        """Draw from NumPy's global generator: int64 timesteps [B], float32 importance weights [B]."""
        weights = self.weights()
        probabilities = weights / np.sum(weights)
        drawn = np.random.choice(len(probabilities), size=(batch_size,), p=probabilities)
        importance = 1 / (len(probabilities) * probabilities[drawn])
        return torch.from_numpy(drawn).long().to(device), torch.from_numpy(importance).float().to(device)

    def state_dict(self) -> dict[str, Any]:
        """Return the learned state as JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - no state by default
        """Restore a `state_dict`."""


class UniformSampler(ScheduleSampler):
    """The uniform distribution."""

    def __init__(self, diffusion):
        self.diffusion = diffusion
        self._weights = np.ones([diffusion.num_timesteps])

    def weights(self) -> np.ndarray:
        return self._weights


class LossAwareSampler(ScheduleSampler):
    """A sampler that learns from the losses."""

    def update_with_local_losses(self, local_ts: Tensor, local_losses: Tensor) -> None:
        """Share this rank's timesteps [B] and losses [B] (B may differ between ranks), then update.

        A collective: every rank calls it, and every rank ends with the same state.
        """
        local = (local_ts.tolist(), local_losses.tolist())
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            gathered = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, local)
        else:
            gathered = [local]
        self.update_with_all_losses([t for ts, _ in gathered for t in ts], [x for _, xs in gathered for x in xs])

    @abstractmethod
    def update_with_all_losses(self, ts: list[int], losses: list[float]) -> None:
        """Update from the losses of all ranks; must be deterministic so that ranks stay equal."""


class LossSecondMomentResampler(LossAwareSampler):
    """Timesteps in proportion to the root mean square of their last losses (Nichol & Dhariwal 2021).

    Uniform until every timestep has been seen `history_per_term` times; afterwards mixed with a uniform
    distribution of weight `uniform_prob`.
    """

    def __init__(self, diffusion, history_per_term: int = 10, uniform_prob: float = 0.001):
        self.diffusion = diffusion
        self.history_per_term = history_per_term
        self.uniform_prob = uniform_prob
        self._recent = [deque(maxlen=history_per_term) for _ in range(diffusion.num_timesteps)]

    def weights(self) -> np.ndarray:
        if any(len(losses) < self.history_per_term for losses in self._recent):
            return np.ones(len(self._recent))
        rms = np.sqrt(np.square(self._recent).mean(axis=1))
        return rms / rms.sum() * (1 - self.uniform_prob) + self.uniform_prob / len(rms)

    def update_with_all_losses(self, ts: list[int], losses: list[float]) -> None:
        for t, loss in zip(ts, losses, strict=True):
            self._recent[t].append(loss)

    def state_dict(self) -> dict[str, Any]:
        return {"recent": [list(losses) for losses in self._recent]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recent = [deque(losses, maxlen=self.history_per_term) for losses in state["recent"]]

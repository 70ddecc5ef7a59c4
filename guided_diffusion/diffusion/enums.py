"""Kinds of prediction, of variance and of training objective."""

from __future__ import annotations

import enum


class ModelMeanType(enum.Enum):
    """Meaning of the network's (first) output."""

    PREVIOUS_X = enum.auto()  # x_{t-1}
    START_X = enum.auto()  # x_0
    EPSILON = enum.auto()  # the noise in x_t


class ModelVarType(enum.Enum):
    """Variance of p(x_{t-1} | x_t); the learned kinds double the network's output channels."""

    LEARNED = enum.auto()  # the second output is the log-variance
    FIXED_SMALL = enum.auto()  # variance of the true posterior q(x_{t-1} | x_t, x_0)
    FIXED_LARGE = enum.auto()  # beta_t
    LEARNED_RANGE = enum.auto()  # the second output, in [-1, 1], interpolates between the two in log space


class LossType(enum.Enum):
    """Training objective."""

    MSE = enum.auto()  # squared error of the prediction (plus the bound, where the variance is learned)
    RESCALED_MSE = enum.auto()  # the same with the bound multiplied by T / 1000
    KL = enum.auto()  # the variational bound
    RESCALED_KL = enum.auto()  # T times the bound: an estimate of the whole sum over timesteps

    def is_vb(self) -> bool:
        """Whether the objective is the variational bound alone."""
        return self in (LossType.KL, LossType.RESCALED_KL)

"""Guidance over the steps: each sample's gradient, averaged or normalised by those of the steps before.

A stabilizer sees the gradient without its scale and is scaled afterwards: Adam's step does not change when all
gradients are multiplied by a constant, so a scale before it would be lost. No network evaluations beyond those of the
guidance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ed_dpm_patches.guidance import LARGEST_GUIDANCE, one_per_sample
from guided_diffusion.diffusion.process import per_sample

from .run_state import RunState
from .wrapped import Wrapped


class Stabilizer(ABC):
    """A function of gradients that remembers those of the run's earlier steps, for each sample by itself."""

    def __init__(self):
        self.state = RunState()

    def __call__(self, gradient: Tensor, t: Tensor, active: Tensor | None = None) -> Tensor:
        """Return the stabilized gradient, shaped and typed like the gradient [B, ...].

        :param t: [B]; a sample's run begins where it is above that of the call before (see `RunState`).
        :param active: [B], bool: the samples that have a gradient; others keep their memory. None: all.
        """
        g = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        active_B = torch.ones(len(g), dtype=torch.bool, device=g.device) if active is None else active
        self.state.begin_step(g, t)
        steps_B = self.state.get("steps", torch.zeros(len(g), dtype=torch.float64, device=g.device)) + 1
        result = self.step(g, steps_B, active_B)
        self.state.keep(active_B, steps=steps_B)
        return result.to(gradient.dtype)

    @abstractmethod
    def step(self, gradient: Tensor, steps: Tensor, active: Tensor) -> Tensor:
        """Return the step for a gradient [B, ...], float32 or float64; `steps` [B] counts from 1."""


class Adam(Stabilizer):
    """m_hat / (sqrt(v_hat) + 1e-8), m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, elementwise.

    m_hat = m / (1 - b1^n) and v_hat = v / (1 - b2^n) at a sample's n-th step. The step of Adam (Kingma & Ba 2015) as
    guidance: AdamCG, ICLR 2026. Its elements are of order 1 wherever |g| is well above 1e-8, however weak g is.
    ValueError unless 0 <= beta < 1.
    """

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8):
        super().__init__()
        self.beta1, self.beta2, self.epsilon = _share("beta1", beta1), _share("beta2", beta2), epsilon

    def step(self, gradient: Tensor, steps: Tensor, active: Tensor) -> Tensor:
        m = self.beta1 * self.state.get("m", gradient) + (1 - self.beta1) * gradient
        v = self.beta2 * self.state.get("v", gradient) + (1 - self.beta2) * gradient**2
        self.state.keep(active, m=m, v=v)
        m_hat, v_hat = (value / _bias(beta, steps, value) for value, beta in ((m, self.beta1), (v, self.beta2)))
        return m_hat / (v_hat.sqrt() + self.epsilon)


class Ema(Stabilizer):
    """m / (1 - b^n), m = b m + (1 - b) g: the running mean of the gradients, unbiased from a sample's first step on.

    ValueError unless 0 <= beta < 1.
    """

    def __init__(self, beta: float = 0.9):
        super().__init__()
        self.beta = _share("beta", beta)

    def step(self, gradient: Tensor, steps: Tensor, active: Tensor) -> Tensor:
        m = self.beta * self.state.get("m", gradient) + (1 - self.beta) * gradient
        self.state.keep(active, m=m)
        return m / _bias(self.beta, steps, m)


class Stabilized(Wrapped):
    """A guidance whose gradient passes through a stabilizer, before the guidance's scale.

    :param guidance: a `ClassifierGuidance`, which says its `scale`, EDS's factor in it; for any other guidance, what
        it returns counts as the gradient and the scale is 1. A cap bounds the scale as it would without a stabilizer.
    :param stabilizer: `Adam()`, `Ema()`, or another `Stabilizer`; this object's own.

    Samples that are not guided in a step (an interval, a scale of 0) get 0, and keep their memory. The scale counts up
    to 1e12.
    """

    def __init__(self, guidance: Callable[..., Tensor], stabilizer: Stabilizer):
        super().__init__(guidance)
        self.stabilizer = stabilizer

    def __call__(self, x: Tensor, t: Tensor, **kwargs: object) -> Tensor:
        """Return the guidance, shaped and typed like x [B, ...]; other arguments are the inner guidance's."""
        guidance = self.guidance(x, t, **kwargs)
        scale_B = getattr(self.guidance, "scale", torch.ones(len(x), dtype=torch.float64, device=x.device))
        if scale_B is None:  # there was nothing to stabilize
            return guidance
        active_B = scale_B != 0
        # Within float32 in both directions; beyond it the guidance itself is cut off (LARGEST_GUIDANCE).
        size_B = scale_B.abs().clamp(1 / LARGEST_GUIDANCE, LARGEST_GUIDANCE)
        scale_B = torch.where(active_B, scale_B.sign() * size_B, 1.0)
        scale = per_sample(scale_B, x).to(torch.promote_types(guidance.dtype, torch.float32))
        step = self.stabilizer(guidance / scale, one_per_sample(t, x), active_B)
        acts = per_sample(active_B, x)
        return torch.where(acts, step * scale, 0.0).to(guidance.dtype)

    def reset(self) -> None:
        """Forget the batch: the next call is the first of another one."""
        super().reset()
        self.stabilizer.state.reset()


# What --stabilizer offers.
STABILIZERS: dict[str, type[Stabilizer]] = {"adam": Adam, "ema": Ema}


def _share(name: str, beta: float) -> float:
    if not 0 <= beta < 1:
        raise ValueError(f"{name}: found {beta}, expected a number from 0 to below 1")
    return beta


def _bias(beta: float, steps: Tensor, like: Tensor) -> Tensor:
    return per_sample((1 - beta**steps).to(like.dtype), like)

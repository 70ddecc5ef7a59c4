"""Samplers for few steps: DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095), UniPC-2 (Zhao et al. 2023, 2302.04867).

Both follow the same deterministic path as DDIM, and like it evaluate network and guidance once a step. What they
add is memory: x_0 as predicted (and guided) at earlier points gives its slope over lambda = log(alpha / sigma), the
half log of the signal-to-noise ratio, with alpha^2 = abar and sigma^2 = 1 - abar. With h = lambda' - lambda the way
from x at lambda to x' at lambda' is

    x' = sigma'/sigma x + alpha' * integral over u in [0, 1] of h exp(h (u - 1)) x_0(lambda + u h)   (Prop. 4.1)

The points are those of the (respaced) process from t = T - 1 to 0, then the clean image. Three steps are of first
order, as DDIM's are. The first has no past. The last has no slope to follow: sigma is 0 at the image and lambda
infinite; it returns the predicted x_0. And the step into t = 0, where the papers' grid ends and where they advise
lower order below 15 steps, at any number of steps: timesteps at equal distances make it up to 5 times as wide in
lambda as the one before, and a slope followed so far beyond where it was measured costs more than it gains.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from guided_diffusion.diffusion import samplers
from guided_diffusion.diffusion.grid import Solver
from guided_diffusion.diffusion.process import DiffusionProcess


class DPMSolverPP2M(Solver):
    """The step function of DPM-Solver++(2M); one object is one run."""

    def __init__(self, diffusion: DiffusionProcess):
        super().__init__(diffusion)
        self._past: Tensor | None = None  # x_0 as predicted a step ago

    def step(
        self, diffusion: DiffusionProcess, model: Callable, x: Tensor, t: Tensor, **options
    ) -> dict[str, Tensor]:
        x_start = samplers.guided_prediction(diffusion, model, x, t, **options)["pred_xstart"]
        sample = self._predict(self._correct(x, x_start), x_start)
        self._past = x_start
        return {"sample": sample, "pred_xstart": x_start}

    def _correct(self, x: Tensor, x_start: Tensor) -> Tensor:
        return x

    def _predict(self, x: Tensor, x_start: Tensor) -> Tensor:
        keep, level, slope = self.grid.prediction(self.done)
        sample = keep * x + level * x_start
        return sample if self._past is None else sample + slope * (x_start - self._past)


class UniPC2(DPMSolverPP2M):
    """The step function of UniPC of order 2, B(h) = exp(h) - 1 ("bh2"); one object is one run.

    Its predictor is then that of DPM-Solver++(2M). Once x_0 is predicted at the new point, the step that led there
    is taken again with it, at no evaluation more: third order. The image is not corrected, as nothing is evaluated
    there; "sample" is the point before its correction.
    """

    def __init__(self, diffusion: DiffusionProcess):
        super().__init__(diffusion)
        self._from: Tensor | None = None  # the corrected x of the step before
        self._older: Tensor | None = None  # x_0 as predicted two steps ago

    def _correct(self, x: Tensor, x_start: Tensor) -> Tensor:
        if self._past is not None:
            keep, level, past, new = self.grid.correction(self.done - 1)
            x = keep * self._from + level * self._past + new * (x_start - self._past)
            if self._older is not None:
                x = x + past * (self._older - self._past)
        self._from, self._older = x, self._past
        return x

"""Heun's method in sigma space: Karras et al. 2022, arXiv 2206.00364, Alg. 1, without noise."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from guided_diffusion.diffusion import samplers
from guided_diffusion.diffusion.grid import Solver
from guided_diffusion.diffusion.process import DiffusionProcess


class Heun(Solver):
    """The step function of Heun's method; one object is one run.

    With r = sigma / alpha and z = x / alpha, the deterministic path is dz/dr = eps, the noise as predicted (and
    guided) at x. DDIM's step is Euler's, z' = z + (r' - r) eps. Network and guidance then look at x', too, and the
    step is taken again with the mean of both:

        z' = z + (r' - r) (eps + eps') / 2

    Second order, at two evaluations a step of both. The last step, to r = 0, where nothing can be evaluated, is
    Euler's: 2 T - 1 evaluations in all. "pred_xstart" is the first evaluation's.

    The mean of both ends counts in r: in terms of x_0 the second look replaces r / (2 r') of what the first one adds
    by its own, half of it in short steps, but far more where r falls far: from t = 999 under the cosine schedule, and
    into t = 0. This helps with an exact network and multiplies the errors of a learned one. DPM-Solver++ and UniPC,
    which count in log r, are not troubled.
    """

    def step(
        self, diffusion: DiffusionProcess, model: Callable, x: Tensor, t: Tensor, **options
    ) -> dict[str, Tensor]:
        grid, n = self.grid, self.done
        x_start = samplers.guided_prediction(diffusion, model, x, t, **options)["pred_xstart"]
        eps = diffusion.predict_eps(x, t, x_start)
        level, noise = float(grid.alpha[n + 1]), float(grid.sigma[n + 1])
        sample = level * x_start + noise * eps
        if n + 1 < grid.steps:
            again = samplers.guided_prediction(diffusion, model, sample, t - 1, **options)["pred_xstart"]
            change = diffusion.predict_eps(sample, t - 1, again) - eps
            sample = sample + 0.5 * level * float(grid.ratio[n + 1] - grid.ratio[n]) * change
        return {"sample": sample, "pred_xstart": x_start}

"""Strang splitting of model and guidance: after Wizadwongsa & Suwajanakorn 2023, arXiv 2301.11558.

With r = sigma / alpha and z = x / alpha, the guided path is dz/dr = A + B, with A = eps, the noise as the network
predicts it, and B = -sigma G, G being the guidance. High orders suit A and not B, whose slope grows with the scale of
the guidance. Splitting solves the two in turns: A by DPM-Solver++(2M), B by Euler's method ("kicks"). Strang's order is
half a kick, the step of A, half a kick; the second half and the first of the next step are at the same r, and here they
are one kick by one G. At point n, where x has been kicked up to the middle between points n - 1 and n:

    x_half = x      + alpha sigma (r_past - r) / 2 G,  G = G(x, t)      up to point n: the network looks here
    x_full = x_half + alpha sigma (r - r') / 2 G                        up to the middle between n and n + 1
    x'     = keep x_full + level m + slope (m - m_past),  m = x_0 predicted at x_half, without guidance

with DPM-Solver++'s weights (`grid.Grid.prediction`). One evaluation each of network and guidance a step, as DDIM.

Why the network looks at x_half: the past m, too, are along the guided path, so the slope contains what half a kick
does to m. With m taken at x_full this would count twice; as it is, the terms of second order in A, and of A with B,
are right (derived by Taylor's theorem, with h = r' - r). What is left is h^2 / 2 B'B a step: first order in how G
depends on x within a kick, second order where it does not.

The first kick has no half behind it. In the last step the image is the guided x_0, as DDIM's. The paper's own schemes
have PLMS for A, and look at the classifier twice a step (STSP) or after A's step (LTSP).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from guided_diffusion.diffusion.multistep import DPMSolverPP2M
from guided_diffusion.diffusion.process import WANTS, DiffusionProcess


class Strang(DPMSolverPP2M):
    """The step function of the splitting; one object is one run. Without guidance it is DPM-Solver++(2M)'s.

    A guidance that wants x_0 or the variance at x (`WANTS`) costs an evaluation of the network more, there. Clamp and
    `denoised_fn` act on m; "pred_xstart" is m shifted by the guidance.
    """

    def step(
        self,
        diffusion: DiffusionProcess,
        model: Callable,
        x: Tensor,
        t: Tensor,
        cond_fn: Callable | None = None,
        model_kwargs: dict | None = None,
        **refining,
    ) -> dict[str, Tensor]:
        options = {"model_kwargs": model_kwargs, **refining}
        if cond_fn is None:
            return super().step(diffusion, model, x, t, **options)
        wants = any(getattr(cond_fn, attribute, False) for attribute in WANTS.values())
        at_x = diffusion.p_mean_variance(model, x, t, **options) if wants else {}
        guidance = diffusion.guidance(cond_fn, at_x, x, t, model_kwargs)

        behind, ahead = self._kicks(self.done)
        x = x + behind * guidance
        x_start = diffusion.p_mean_variance(model, x, t, **options)["pred_xstart"]
        guided = x_start + float(self.grid.ratio[self.done] * self.grid.sigma[self.done]) * guidance
        is_last = self.done == self.grid.steps - 1
        sample = guided if is_last else self._predict(x + ahead * guidance, x_start)
        self._past = x_start
        return {"sample": sample, "pred_xstart": guided}

    def _kicks(self, n: int) -> tuple[float, float]:
        """Return what G is multiplied by, from the middle behind point n and to the one ahead."""
        ratio, size = self.grid.ratio, 0.5 * self.grid.alpha[n] * self.grid.sigma[n]
        behind = ratio[n - 1] - ratio[n] if n else 0.0
        return float(size * behind), float(size * (ratio[n] - ratio[n + 1]))

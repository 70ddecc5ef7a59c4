"""The samplers that `--sampler` offers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor

from guided_diffusion.diffusion import samplers
from guided_diffusion.diffusion.grid import Solver
from guided_diffusion.diffusion.heun import Heun
from guided_diffusion.diffusion.multistep import DPMSolverPP2M, UniPC2
from guided_diffusion.diffusion.process import DiffusionProcess
from guided_diffusion.diffusion.splitting import Strang
from guided_diffusion.errors import InputError


class Sampler(NamedTuple):
    """A sampler: its name in reports, and its loop for a process, with the arguments of `sample_progressively`.

    evaluations: how often a run of so many steps evaluates the network.
    """

    title: str
    loop: Callable[[DiffusionProcess], Callable[..., Tensor]]
    evaluations: Callable[[int], int] = int


def _solve(solver: type[Solver], diffusion: DiffusionProcess, model: Callable, shape, **options) -> Tensor:
    steps = samplers.sample_progressively(diffusion, solver(diffusion), model, shape, **options)
    return samplers.last(steps)["sample"]


# Samplers by their names in --sampler and in reports.
SAMPLERS = {
    "ddpm": Sampler("DDPM", lambda diffusion: diffusion.p_sample_loop),
    "ddim": Sampler("DDIM", lambda diffusion: diffusion.ddim_sample_loop),
    "dpmpp2m": Sampler("DPM-Solver++(2M)", lambda diffusion: partial(_solve, DPMSolverPP2M, diffusion)),
    "unipc": Sampler("UniPC", lambda diffusion: partial(_solve, UniPC2, diffusion)),
    "heun": Sampler("Heun", lambda diffusion: partial(_solve, Heun, diffusion), lambda steps: 2 * steps - 1),
    "strang": Sampler("Strang splitting", lambda diffusion: partial(_solve, Strang, diffusion)),
}


def sampling_loop(diffusion: DiffusionProcess, sampler: str = "", use_ddim: bool = False) -> Callable[..., Tensor]:
    """Return the loop that the flags ask for: (model, shape, noise, noise_fn, clip_denoised, cond_fn, ...) -> samples.

    :param sampler: a name in SAMPLERS; "": ddim with `use_ddim`, else ddpm, as upstream.
    InputError when the two contradict each other.
    """
    if use_ddim and sampler not in ("", "ddim"):
        raise InputError(f"--sampler: found {sampler} together with --use_ddim, expected ddim or no --use_ddim")
    return SAMPLERS[sampler or ("ddim" if use_ddim else "ddpm")].loop(diffusion)

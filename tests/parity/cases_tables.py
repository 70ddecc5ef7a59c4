"""Beta schedules, respacing and the float64 tables: everything here is required bitwise."""

from __future__ import annotations

import math

import numpy as np

from guided_diffusion import gaussian_diffusion, respace, script_util
from tests.parity.compare import Cases, outcome_of

CASES = Cases()
BITWISE = 0.0

TABLES = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "alphas_cumprod_next", "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped",
    "posterior_mean_coef1", "posterior_mean_coef2",
)  # fmt: skip

STEPS = (1, 2, 3, 7, 10, 17, 50, 100, 250, 300, 999, 1000, 4000)
SECTIONS = (
    "1", "2", "3", "10", "17", "25", "50", "100", "250", "999", "1000", "4000", "0", "-1",
    "5,3", "1,1,1", "10,15,20", "10,10,15,15", "0,5", "5,0,2", "333,333,334", "2,900", "900,2",
    "ddim1", "ddim2", "ddim5", "ddim10", "ddim25", "ddim50", "ddim60", "ddim100", "ddim250", "ddim333",
    "ddim500", "ddim1000", "ddim0", "ddim", "ddim-5", "ddimx", "", "x", "5,", ",5", " 5, 3 ", "5;3", "2.5",
)  # fmt: skip
SECTION_LISTS = ([1], [4], [7, 3], [10, 15, 20], [0], [], [1000], (5, 3), [2, 2, 2, 2, 2])
RESPACINGS = ("", "250", "10", "5,3", "10,15,20", "0,4", "2", "ddim5", "ddim25", "ddim50", "ddim250")


@CASES.add("named beta schedules", BITWISE)
def named_schedules(peer):
    for name in ("linear", "cosine", "quadratic", ""):
        for steps in (*STEPS, 0):
            yield (
                f"{name}, {steps} steps",
                outcome_of(gaussian_diffusion.get_named_beta_schedule, name, steps),
                outcome_of(peer.gaussian_diffusion.get_named_beta_schedule, name, steps),
            )


@CASES.add("betas_for_alpha_bar with own curves and caps", BITWISE)
def own_schedules(peer):
    curves = {
        "sine": lambda t: 1 - 0.99 * math.sin(t * math.pi / 2),
        "exponential": lambda t: math.exp(-8 * t),
        "linear": lambda t: 1 - 0.9999 * t,
    }
    for name, curve in curves.items():
        for steps in STEPS:
            for caps in ((), (0.5,), (0.02,)):
                yield (
                    f"{name}, {steps} steps, cap {caps}",
                    gaussian_diffusion.betas_for_alpha_bar(steps, curve, *caps),
                    peer.gaussian_diffusion.betas_for_alpha_bar(steps, curve, *caps),
                )


@CASES.add("space_timesteps: strings, lists and what is refused", BITWISE)
def spaced_steps(peer):
    for steps in STEPS:
        for sections in (*SECTIONS, *SECTION_LISTS):
            ours = outcome_of(respace.space_timesteps, steps, sections)
            theirs = outcome_of(peer.respace.space_timesteps, steps, sections)
            yield f"{steps} steps, {sections!r}", ours, theirs


@CASES.add("timestep maps of SpacedDiffusion", BITWISE)
def timestep_maps(peer):
    for steps, schedule, sections in settings():
        ours = script_util.create_gaussian_diffusion(
            steps=steps, noise_schedule=schedule, timestep_respacing=sections
        )
        theirs = peer.script_util.create_gaussian_diffusion(
            steps=steps, noise_schedule=schedule, timestep_respacing=sections
        )
        for name in ("timestep_map", "use_timesteps", "original_num_steps", "num_timesteps"):
            yield f"{steps}, {schedule}, {sections!r}, {name}", getattr(ours, name), getattr(theirs, name)


@CASES.add("float64 tables of SpacedDiffusion", BITWISE)
def spaced_tables(peer):
    for steps, schedule, sections in settings():
        ours = script_util.create_gaussian_diffusion(
            steps=steps, noise_schedule=schedule, timestep_respacing=sections
        )
        theirs = peer.script_util.create_gaussian_diffusion(
            steps=steps, noise_schedule=schedule, timestep_respacing=sections
        )
        for table in TABLES:
            label = f"{steps}, {schedule}, {sections!r}, {table}"
            yield label, getattr(ours, table), getattr(theirs, table)


@CASES.add("float64 tables of GaussianDiffusion, betas as list, float32 and float64", BITWISE)
def plain_tables(peer):
    betas = np.linspace(1e-3, 0.3, 40)
    for given in (betas, betas.astype(np.float32), betas.tolist(), np.array([0.1, 1.0])):
        ours, theirs = (
            plain_diffusion(module, given) for module in (gaussian_diffusion, peer.gaussian_diffusion)
        )
        for table in (*TABLES, "num_timesteps"):
            yield table, getattr(ours, table), getattr(theirs, table)


@CASES.add("betas that are refused", BITWISE)
def refused_betas(peer):
    for betas in ([0.0, 0.1], [0.1, 1.5], [-0.1, 0.1], [[0.1, 0.2]]):
        sides = (
            outcome_of(plain_diffusion, module, betas)
            for module in (gaussian_diffusion, peer.gaussian_diffusion)
        )
        yield f"{betas}", *sides


def plain_diffusion(module, betas):
    return module.GaussianDiffusion(
        betas=betas,
        model_mean_type=module.ModelMeanType.EPSILON,
        model_var_type=module.ModelVarType.FIXED_LARGE,
        loss_type=module.LossType.MSE,
    )


def settings():
    for schedule in ("linear", "cosine"):
        for sections in RESPACINGS:
            yield 1000, schedule, sections
        yield 4000, schedule, "27"
        yield 100, schedule, "ddim10"

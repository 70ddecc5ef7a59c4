"""Upstream's losses: the code is in diffusion/likelihoods.py."""

from guided_diffusion.diffusion import likelihoods
from guided_diffusion.diffusion.likelihoods import (  # noqa: F401
    approx_standard_normal_cdf,
    discretized_gaussian_log_likelihood,
    normal_kl,
)
from guided_diffusion.moved import forward_assignments

forward_assignments(__name__, likelihoods)

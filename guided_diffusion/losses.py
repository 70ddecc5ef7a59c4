"""Upstream's losses: the code is in diffusion/likelihoods.py."""

from guided_diffusion.diffusion.likelihoods import *  # noqa: F403
from guided_diffusion.moved import forward_assignments

forward_assignments(__name__)

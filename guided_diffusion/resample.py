"""Upstream's resample: the code is in training/timestep_samplers.py."""

from guided_diffusion.moved import forward_assignments
from guided_diffusion.training.timestep_samplers import *  # noqa: F403

forward_assignments(__name__)

"""Upstream's nn: the code is in models/layers.py."""

from guided_diffusion.models.layers import *  # noqa: F403
from guided_diffusion.moved import forward_assignments

forward_assignments(__name__)

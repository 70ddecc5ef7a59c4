"""Upstream's fp16_util: the code is in models/fp16.py."""

from guided_diffusion.models.fp16 import *  # noqa: F403
from guided_diffusion.moved import forward_assignments

forward_assignments(__name__)

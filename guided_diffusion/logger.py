"""Upstream's logger: the code is in runs/logger.py and runs/log_formats.py."""

from guided_diffusion.moved import forward_assignments
from guided_diffusion.runs.log_formats import *  # noqa: F403
from guided_diffusion.runs.logger import *  # noqa: F403

forward_assignments(__name__)

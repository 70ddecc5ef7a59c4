"""Upstream's image_datasets: the code is in data/datasets.py."""

from guided_diffusion.data.datasets import *  # noqa: F403
from guided_diffusion.data.datasets import _list_image_files_recursively  # noqa: F401
from guided_diffusion.moved import forward_assignments

forward_assignments(__name__)

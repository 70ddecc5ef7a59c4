"""`python -m ed_dpm_patches.reproduce` is `ed-dpm`."""

from .cli import run

run()

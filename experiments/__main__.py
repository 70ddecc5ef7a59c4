"""`python -m experiments` is `ed-dpm`."""

from experiments.cli import run

run()

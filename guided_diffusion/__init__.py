"""Guided diffusion: models, diffusion process, data, logging and multi-process training."""

__version__ = "0.1.0"

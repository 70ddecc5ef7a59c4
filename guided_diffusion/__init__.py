"""Guided diffusion: models, diffusion process, data, logging and multi-process training."""

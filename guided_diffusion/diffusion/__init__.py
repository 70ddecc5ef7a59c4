"""The diffusion process: schedules, q and p, samplers, losses."""

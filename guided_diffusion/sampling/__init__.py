"""Sampling runs: networks from checkpoints, noise, shards, files."""

"""Guidance where the truth is known: a Gaussian mixture with exact score, posterior mean and class probabilities."""

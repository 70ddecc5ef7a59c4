"""Judging samples: feature networks, metrics, and the evaluator program that joins them."""

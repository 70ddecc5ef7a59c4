"""Speed beside upstream: `python -m benchmarks.run`. No test asserts a time, as machines are noisy."""

"""Speed beside the peer: `python -m benchmarks.run`. Never part of the tests: machines are noisy."""

"""Comparison of `guided_diffusion` with upstream, in one process on the same inputs.

`python -m tests.parity` prints the table; `tests/parity/test_cases.py` checks the same cases under pytest.
"""

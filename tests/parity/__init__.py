"""Side-by-side comparison of `guided_diffusion` with the peer, in one process on the same inputs.

`python -m tests.parity` prints the table; `tests/parity/test_cases.py` checks the same cases under pytest.
"""

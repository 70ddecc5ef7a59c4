"""Faults injected into real runs; `python -m tests.faults` prints whether anything was lost."""

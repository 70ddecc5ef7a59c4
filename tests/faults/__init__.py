"""What can happen to a run, done to real runs on purpose; `python -m tests.faults` prints what was lost: nothing."""

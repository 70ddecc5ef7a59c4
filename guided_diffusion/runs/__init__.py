"""What a run keeps beside its results: log, status, settings, checkpoints, failures."""

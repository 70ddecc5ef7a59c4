"""Files of a run beside its results: log, status, manifest, checkpoints, failures."""

"""Several processes: rendezvous, collectives, signals, shutdown, progress."""

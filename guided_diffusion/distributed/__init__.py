"""Several processes: rendezvous, collectives, signals, shutdown, watchdog, progress."""

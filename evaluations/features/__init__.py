"""Feature extractors: the networks whose features the metrics compare."""

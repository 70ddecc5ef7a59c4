"""The machine and the launcher: processes, ranks, memory, streams."""

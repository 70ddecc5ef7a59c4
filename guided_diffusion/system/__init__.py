"""What the machine and its launcher tell: processes, memory, streams."""

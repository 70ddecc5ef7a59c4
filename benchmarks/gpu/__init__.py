"""``python -m benchmarks.gpu``: every figure of a GPU in a few minutes, whatever fails on the way."""

"""The metrics as functions of activations: NumPy and SciPy only, one file each."""

"""`python -m ablation` is `python -m experiments.cifar10`."""

import runpy
import warnings

if __name__ == "__main__":
    warnings.warn("ablation is now experiments.cifar10", DeprecationWarning, stacklevel=1)
    runpy.run_module("experiments.cifar10", run_name="__main__", alter_sys=True)

"""The demo under its old name, for one version: it is experiments/digits/run.py."""

import warnings

from experiments.digits.run import main
from guided_diffusion.distributed.shutdown import run_main

if __name__ == "__main__":
    warnings.warn("demo/run.py is now experiments/digits/run.py", DeprecationWarning, stacklevel=1)
    run_main(main)

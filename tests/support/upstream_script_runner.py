"""python upstream_script_runner.py SCRIPT [flags of SCRIPT]: run an unmodified upstream script.

Two things that a script's own command line cannot do:

* upstream's classifier_train hands `device_ids=[device]` to DistributedDataParallel, and torch refuses
  that for a CPU device ("device_ids ... only ... GPU"), on upstream's package as on ours. Here the CPU
  ids are dropped before torch sees them; with CUDA nothing changes.
* upstream's sampling scripts have no seed flag: the environment variable UPSTREAM_SCRIPT_SEED sets it.
"""

import os
import random
import runpy
import sys

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel


def drop_cpu_device_ids() -> None:
    original = DistributedDataParallel.__init__

    def init(self, module, device_ids=None, output_device=None, **keywords):
        if device_ids and all(torch.device(device).type == "cpu" for device in device_ids):
            device_ids = output_device = None
        original(self, module, device_ids=device_ids, output_device=output_device, **keywords)

    DistributedDataParallel.__init__ = init


def main() -> None:
    drop_cpu_device_ids()
    seed = os.environ.get("UPSTREAM_SCRIPT_SEED")
    if seed:
        random.seed(int(seed))
        np.random.seed(int(seed))
        torch.manual_seed(int(seed))
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()

"""python interrupted_program.py SCRIPT MOMENT SIGNAL RANK ARGUMENTS...: a script that gets a signal at a fixed moment.

MOMENT is step:N, before the optimizer's N-th step in this process, or file:N, before it writes its N-th checkpoint
file, or part:N, before a sampler writes its N-th batch, or bound:N, before the bound of the N-th batch of images. RANK
is the rank that gets the signal, or "all".
"""

import os
import runpy
import signal
import sys

from guided_diffusion import dist_util
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.io import checkpoint
from guided_diffusion.models.mixed_precision import OptimizerStepper
from guided_diffusion.sampling.shards import ShardStore


def interrupt(owner: object, name: str, count: int, number: signal.Signals, rank: str) -> None:
    """Send this process a signal when a function is called for the count-th time."""
    function, calls = getattr(owner, name), []

    def counting(*args, **kwargs):
        calls.append(name)
        if len(calls) == count and rank in ("all", str(dist_util.get_rank())):
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    setattr(owner, name, counting)


script, moment, name, rank, *arguments = sys.argv[1:]
kind, _, count = moment.partition(":")
moments = {
    "step": (OptimizerStepper, "optimize"),
    "file": (checkpoint, "save"),
    "part": (ShardStore, "write"),
    "bound": (GaussianDiffusion, "calc_bpd_loop"),
}
owner, function = moments[kind]
interrupt(owner, function, int(count), signal.Signals[name], rank)
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")

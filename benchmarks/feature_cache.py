"""What the feature cache saves: sampling with and without it, interleaved, beside the share of the work.

    OMP_NUM_THREADS=1 python -m benchmarks.feature_cache --threads 1

The network has the structure of the published 256x256 model at a quarter of its sides and widths, and random weights.
Prints a Markdown table of ratios; above 1 the cache is faster.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.builders import DIFFUSION, build_network
from benchmarks.measure import count_flops, seconds
from guided_diffusion.config.configs import ModelConfig
from guided_diffusion.config.create import create_gaussian_diffusion
from guided_diffusion.models.feature_cache import FeatureCache
from guided_diffusion.models.inference import Frozen
from guided_diffusion.system.malloc import keep_freed_memory

MODEL = ModelConfig(
    image_size=64, num_channels=64, channel_mult="1,1,2,2,4,4", attention_resolutions="8,4,2", num_head_channels=64,
    resblock_updown=True,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, nargs="+", default=[2, 3, 5], help="N (default 2 3 5)")
    parser.add_argument("--depth", type=int, nargs="+", default=[1, MODEL.num_res_blocks + 1], help="D (default 1 3)")
    parser.add_argument("--steps", type=int, default=10, help="DDIM steps (default 10)")
    parser.add_argument("--batch_size", type=int, default=4, help="images (default 4)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each, at least 2 (default 5)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 (default): torch's choice")
    args = parser.parse_args()
    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    network = Frozen(build_network(MODEL).to(device))
    process = create_gaussian_diffusion(learn_sigma=DIFFUSION.learn_sigma, timestep_respacing=f"ddim{args.steps}")
    noise = torch.randn(args.batch_size, 3, MODEL.image_size, MODEL.image_size, device=device)

    settings = [(every, depth) for depth in args.depth for every in args.every]
    caches = [FeatureCache(network, args.steps, every, depth) for every, depth in settings]

    def sample(model: Callable[..., Tensor], x: Tensor = noise) -> Tensor:
        return process.ddim_sample_loop(model, x.shape, noise=x, device=device)

    runs = [partial(sample, model) for model in (network, *caches)]
    runs[0]()  # the first call is slower
    rounds = [[seconds(run, device) for run in runs] for _ in range(args.rounds)]
    whole, *work = (count_flops(partial(run, noise[:1])) for run in runs)
    print("| N | D | by work | measured | 10-90 % |\n| --- | --- | --- | --- | --- |")
    for number, (every, depth) in enumerate(settings):
        ratios = [times[0] / times[number + 1] for times in rounds]
        low, *_, high = statistics.quantiles(ratios, n=10, method="inclusive")
        by_work, measured = whole / work[number], statistics.median(ratios)
        print(f"| {every} | {depth} | {by_work:.2f} | {measured:.2f} | {low:.2f}-{high:.2f} |")


if __name__ == "__main__":
    main()

"""Time that the feature cache saves: guided DDIM runs without and with it, interleaved, the same weights and noise.

    OMP_NUM_THREADS=1 python -m benchmarks.feature_cache --config 64x64
    python -m benchmarks.feature_cache --config published-256-b8 --device cuda --half --steps 25

Prints a table and writes it to benchmarks/results/<device>-feature-cache-<config>-<date>.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.builders import SETTINGS, Setting
from benchmarks.implementations import Implementation
from benchmarks.machine import save_result
from benchmarks.measure import compare, relative_difference, seconds
from benchmarks.run import machine
from ed_dpm_patches import ClassifierGuidance, ConstantRule
from experiments.frontier.work import count_flops
from guided_diffusion.config.create import create_gaussian_diffusion
from guided_diffusion.models.feature_cache import FeatureCache
from guided_diffusion.models.inference import Frozen
from guided_diffusion.system.malloc import keep_freed_memory

EVERY = (2, 3, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="64x64", choices=sorted(SETTINGS))
    parser.add_argument("--steps", type=int, default=6, help="of a run; one evaluation in N is whole")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of timed runs, at least 2 (default 5)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--half", action="store_true", help="float16, on a CPU bfloat16")
    args = parser.parse_args()
    keep_freed_memory()
    device, setting = torch.device(args.device), SETTINGS[args.config]
    timed = partial(seconds, device=device)
    run, unet = runner(setting, device, args.half, args.steps)
    whole, work = run(unet), count_flops(partial(run, unet))
    report = {"config": args.config, "steps": args.steps, "half": args.half, **machine(device), "rows": []}
    for depth in (1, setting.model.num_res_blocks + 1):
        for every in EVERY:
            cached = FeatureCache(unet, args.steps, every, depth)
            row = {"every": every, "depth": depth, "difference": relative_difference(run(cached), whole)}
            row["work_ratio"] = work / count_flops(partial(run, cached))
            row |= compare(partial(timed, partial(run, cached)), partial(timed, partial(run, unet)), args.rounds, 1)
            report["rows"].append(row)
            spread = f"{row['ratio_p10']:.2f}-{row['ratio_p90']:.2f}"
            print(
                f"N {every} D {depth}: {row['ratio']:.2f} ({spread}) times as fast, work {row['work_ratio']:.2f} times "
                f"less, difference {row['difference']:.1e}", flush=True,
            )  # fmt: skip
    save_result(report["device"], f"feature-cache-{args.config}", report)


def runner(
    setting: Setting, device: torch.device, half: bool, steps: int
) -> tuple[Callable[[nn.Module], Tensor], nn.Module]:
    """A function that makes the images of a model by guided DDIM, the classifier at every step; the whole model."""
    parts = Implementation(setting, device, half)
    unet, classifier = (Frozen(network.eval(), parts.dtype) for network in (parts.model, parts.classifier))
    guidance = ClassifierGuidance(classifier, ConstantRule(1.0))
    process = create_gaussian_diffusion(learn_sigma=True, timestep_respacing=f"ddim{steps}")

    def run(model: nn.Module) -> Tensor:
        return process.ddim_sample_loop(
            lambda x, t, y=None: model(x, t, **parts.labels), parts.x_t.shape, noise=parts.x_t, cond_fn=guidance,
            model_kwargs={"y": parts.y}, device=device,
        )  # fmt: skip

    return run, unet


if __name__ == "__main__":
    main()

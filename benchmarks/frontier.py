"""Time of the frontier's settings: whole runs of a batch, beside upstream's DDIM 25 on the same networks and noise.

    OMP_NUM_THREADS=1 python -m benchmarks.frontier
    python -m benchmarks.frontier --device cuda --batch_size 500

Times DDIM 25 and the cheapest settings of a committed study that are not worse, with and without EDS, interleaved with
upstream's DDIM 25. Prints a table and writes it to benchmarks/results/<device>-frontier-<study>-<date>.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.builders import Config, build_network, build_upstream_network
from benchmarks.implementations import upstream_guidance
from benchmarks.machine import save_result
from benchmarks.measure import compare, relative_difference, seconds
from benchmarks.run import machine
from benchmarks.upstream import load_upstream
from experiments.commands import Commands
from experiments.frontier.__main__ import RECIPES
from experiments.frontier.known import RESULTS, TABLE, read_settings
from experiments.frontier.report import cheapest
from experiments.frontier.settings import references
from experiments.frontier.work import sampling_of
from experiments.spec import Run, Spec
from experiments.spec_files import load
from guidance_methods.config import SAMPLING_CONFIGS
from guided_diffusion.config.configs import ClassifierConfig, DiffusionConfig, ModelConfig
from guided_diffusion.config.flags import Parser, flags_from
from guided_diffusion.models.inference import Frozen
from guided_diffusion.sampling.pretrained import load_network
from guided_diffusion.system.malloc import keep_freed_memory

Sampling = Callable[[Tensor, Tensor], Tensor]  # (x_T [B, C, H, W], y [B]) -> x_0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="cifar10", help="the folder's name in results/frontier (cifar10)")
    parser.add_argument("--batch_size", type=int, default=50, help="images of a run (50)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of timed runs, at least 2 (5)")
    args = parser.parse_args()
    keep_freed_memory()
    device, spec = torch.device(args.device), load(RECIPES / args.study)
    unit = references(spec)[0]
    height, width, channels = spec.image_shape(unit)
    torch.manual_seed(0)
    noise = torch.randn(args.batch_size, channels, height, width).to(device)
    y = torch.arange(args.batch_size, device=device) % spec.network_flags(unit)["num_classes"]
    theirs = partial(upstream_sampling(spec, unit, device), noise, y)
    report = {"study": args.study, "batch_size": args.batch_size, **machine(device), "rows": []}
    for setting in chosen(args.study, unit):
        flags = Parser("", *SAMPLING_CONFIGS).parse(setting["flags"].split()).values
        ours = partial(sampling_of(spec, replace(unit, flags=flags), partial(make, spec, device)), noise, y)
        row = {"setting": setting["setting"], "work": setting["work"]}
        if setting["setting"] == unit.name:
            row["difference"] = relative_difference(ours(), theirs())
        row |= compare(partial(seconds, ours, device), partial(seconds, theirs, device), args.rounds, 1)
        report["rows"].append(row)
        print(
            f"{row['setting']}: {row['ratio']:.2f} ({row['ratio_p10']:.2f}-{row['ratio_p90']:.2f}) times as fast as "
            f"upstream's {unit.name}, work {1 / row['work']:.2f} times less", flush=True,
        )  # fmt: skip
    save_result(report["device"], f"frontier-{args.study}", report)


def chosen(study: str, unit: Run) -> list[dict]:
    """The unit, and for each rule the setting of the least work that is not worse."""
    known = read_settings(RESULTS / study / TABLE)
    others = [row for row in known if row["setting"] != unit.name]
    best = [cheapest(others, "ddim25", eds) for eds in (False, True)]
    return [*(row for row in known if row["setting"] == unit.name), *filter(None, best)]


def path_of(spec: Spec, name: str) -> str:
    """The checkpoint of a network of the recipes."""
    return Commands(spec, processes=1).checkpoint(spec.networks[name])


def make(spec: Spec, device: torch.device, build: Callable[[], nn.Module], name: str) -> nn.Module:
    """A network of the recipes with its weights, as the sampling script has it."""
    return Frozen(load_network(build, path_of(spec, name), device))


def upstream_sampling(spec: Spec, run: Run, device: torch.device) -> Sampling:
    """A run with a constant scale by upstream's loop, as upstream's script calls it."""
    upstream, parsed = load_upstream(), flags_from(spec.network_flags(run) | run.flags, *SAMPLING_CONFIGS)
    diffusion = parsed.make(DiffusionConfig)

    def network(config: Config, name: str) -> nn.Module:
        ours = load_network(partial(build_network, config, diffusion), path_of(spec, name), "cpu")
        return build_upstream_network(config, upstream, ours.state_dict(), half=False).eval().to(device)

    model = network(parsed.make(ModelConfig), run.model)
    classifier = network(parsed.make(ClassifierConfig), run.classifier)
    process = upstream.script_util.create_gaussian_diffusion(
        steps=diffusion.diffusion_steps, learn_sigma=diffusion.learn_sigma, noise_schedule=diffusion.noise_schedule,
        timestep_respacing=diffusion.timestep_respacing,
    )  # fmt: skip
    scale = run.flags["classifier_scale"]

    def gradient(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return upstream_guidance(classifier, x, t, y) * scale

    def sample(noise: Tensor, y: Tensor) -> Tensor:
        return process.ddim_sample_loop(
            lambda x, t, y=None: model(x, t), tuple(noise.shape), noise=noise, clip_denoised=True, cond_fn=gradient,
            model_kwargs={"y": y}, device=device,
        )  # fmt: skip

    return sample


if __name__ == "__main__":
    main()

"""Evaluate a diffusion model's variational bound on a folder of images, in bits per dimension.

    mpiexec -n 8 python scripts/image_nll.py --data_dir images/ --model_path ema_0.9999_300000.pt

Writes vb_terms.npz, mse_terms.npz and xstart_mse_terms.npz: means over the images for every timestep, in
the order of evaluation (the noisiest first).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch.distributed as dist

from guided_diffusion.config.class_labels import Classes
from guided_diffusion.config.configs import DataConfig, DiffusionConfig, ModelConfig, RunConfig
from guided_diffusion.config.create import build_diffusion, build_model
from guided_diffusion.config.flags import Parser, flag
from guided_diffusion.data.datasets import find_images, load_data
from guided_diffusion.data.image_labels import read_labels
from guided_diffusion.distributed import collectives, shutdown
from guided_diffusion.distributed.progress import Progress
from guided_diffusion.distributed.stop_signals import terminating
from guided_diffusion.errors import InputError, counted
from guided_diffusion.io.atomic import write_atomically
from guided_diffusion.runs import logger
from guided_diffusion.sampling import setup

TERMS = ("vb", "mse", "xstart_mse")


@dataclass(frozen=True)
class NllConfig:
    """Evaluation."""

    clip_denoised: bool = flag(True, "clamp the model's guess of x_0 to [-1, 1]")
    num_samples: int = flag(1000, "number of images to evaluate, over all processes", minimum=1)
    batch_size: int = flag(1, "images per batch in each process", minimum=1)
    model_path: str = flag("", "checkpoint of the diffusion model, .pt or .safetensors, or its training's folder")


def main() -> None:
    parsed = Parser(__doc__, DataConfig, NllConfig, ModelConfig, DiffusionConfig, RunConfig).parse()
    run, data_config = parsed.make(RunConfig), parsed.make(DataConfig)
    directory = setup.begin(run)
    parsed = setup.choose_files(parsed, "model_path")
    nll = parsed.make(NllConfig)
    config, diffusion_config = setup.model_configs(parsed, nll.model_path, ModelConfig)
    build = partial(build_model, config, diffusion_config)
    model = setup.load_frozen(build, nll.model_path, config.use_fp16, run)
    files, labels, names = find_images(data_config.data_dir), None, None
    setup.warn_of_unused_labels(parsed, config.class_cond)
    if config.class_cond:
        names = Classes.of_checkpoint(nll.model_path, config.num_classes).names or None
        labels = read_labels(files, data_config.labels, names)
        names = names or labels.names
        if len(names) > config.num_classes:
            raise InputError(
                f"--data_dir {data_config.data_dir}: found {counted(len(names), 'classes')}, expected at most the "
                f"{config.num_classes} of --model_path {nll.model_path}"
            )
    data = load_data(
        data_dir=data_config.data_dir,
        batch_size=nll.batch_size,
        image_size=config.image_size,
        class_cond=config.class_cond,
        deterministic=True,
        random_flip=data_config.random_flip,
        channels=config.in_channels,
        class_names=names,
        labels=labels,
        files=files,
        reading=data_config.reading,
    )
    evaluate(model, build_diffusion(diffusion_config), data, nll, directory)


def evaluate(model, diffusion, data: Iterator, nll: NllConfig, directory: Path) -> float:
    """Return the mean bits per dimension over the images; rank 0 writes the terms."""
    world_size = collectives.get_world_size()
    per_round = nll.batch_size * world_size
    sums, rounds = dict.fromkeys((*TERMS, "total_bpd"), 0.0), 0
    lost = "nothing is written before all images are evaluated: the same command starts again"
    with Progress(nll.num_samples, "images", directory=directory) as progress, terminating(lost):
        while rounds * per_round < nll.num_samples:
            images, condition = next(data)
            condition = {name: value.to(collectives.dev()) for name, value in condition.items()}
            terms = diffusion.calc_bpd_loop(model, images.to(collectives.dev()), nll.clip_denoised, condition)
            for name in sums:
                mean = terms[name].mean(dim=0) / world_size
                if world_size > 1:
                    dist.all_reduce(mean)
                sums[name] = sums[name] + mean.double().cpu().numpy()
            rounds += 1
            bpd = float(sums["total_bpd"]) / rounds
            progress.update(min(per_round, nll.num_samples - progress.n))
            logger.log(f"done {rounds * per_round} samples: bpd={bpd:.6g}")
    if collectives.get_rank() == 0:
        for name in TERMS:
            path = directory / f"{name}_terms.npz"
            with write_atomically(path) as file:
                np.savez(file, (sums[name] / rounds).astype(np.float32))
            logger.log(f"saved {path}")
    collectives.barrier()
    progress.finish()
    return bpd


if __name__ == "__main__":
    shutdown.run_main(main)

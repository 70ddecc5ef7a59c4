"""A classifier whose certainty is right on average: its logits divided by one temperature.

    python experiments/cifar10/calibrate.py CHECKPOINT IMAGES.npz NEW_CHECKPOINT
    python experiments/cifar10/calibrate.py --temperature 0.25 CHECKPOINT IMAGES.npz NEW_CHECKPOINT      # too certain

Unless it is given, the temperature is the one that gives the labels of the images, noised at random timesteps, the
largest likelihood. It goes into the weights of the last layer, so that sampling needs to know nothing of it.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from guided_diffusion.config.configs import ClassifierConfig, DiffusionConfig
from guided_diffusion.config.create import build_classifier, build_diffusion
from guided_diffusion.config.flags import from_values
from guided_diffusion.distributed import collectives, shutdown
from guided_diffusion.errors import InputError
from guided_diffusion.io import checkpoint

SEED = 0
BATCH = 250
_LARGEST = math.log(20.0)  # of the logarithm of the temperature, either way


def noised_logits(path: Path, config: dict, images: np.ndarray) -> Tensor:
    """Logits [N, K], float64, of uint8 images [N, S, S, C], each at one random timestep."""
    model = build_classifier(from_values(ClassifierConfig, config | {"classifier_use_fp16": False}))
    checkpoint.load_weights(model, path)
    model.to(collectives.dev()).eval().requires_grad_(False)
    diffusion = build_diffusion(from_values(DiffusionConfig, config))
    generator = torch.Generator().manual_seed(SEED)
    found = []
    for begin in range(0, len(images), BATCH):
        x_start = torch.from_numpy(images[begin : begin + BATCH]).permute(0, 3, 1, 2).float() / 127.5 - 1
        t = torch.randint(diffusion.num_timesteps, (len(x_start),), generator=generator)
        x_t = diffusion.q_sample(x_start, t, noise=torch.randn(x_start.shape, generator=generator))
        found.append(model(x_t.to(collectives.dev()), t.to(collectives.dev())).cpu().double())
    return torch.cat(found)


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that minimises the cross entropy of logits [N, K] / temperature and labels [N].

    The cross entropy is convex in 1 / temperature, which is sought from 1/20 to 20.
    """

    def loss(log_inverse: float) -> float:
        return float(F.cross_entropy(logits * math.exp(log_inverse), labels))

    found = minimize_scalar(loss, bounds=(-_LARGEST, _LARGEST), method="bounded", options={"xatol": 1e-8})
    return math.exp(-found.x)


def divide_logits(weights: dict[str, Tensor], config: dict, temperature: float) -> dict[str, Tensor]:
    """The same weights with those of the last layer divided. KeyError if they are not those of the config."""
    with torch.device("meta"):
        names = list(build_classifier(from_values(ClassifierConfig, config)).state_dict())
    last = names[-1].rpartition(".")[0]
    weights = {name: weights[name] for name in names}  # a file may have them in any order
    return {name: w / temperature if name.rpartition(".")[0] == last else w for name, w in weights.items()}


def main() -> None:
    """Read, measure, write. InputError for files that are missing or do not fit each other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--temperature", type=float, metavar="T", help="divide by this one instead, without a search")
    for name in ("checkpoint", "images", "new_checkpoint"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    config = checkpoint.read_config(args.checkpoint)
    if config is None:
        raise InputError(f"{args.checkpoint}: no config.json beside it, expected that of its training")
    temperature = args.temperature
    if temperature is None:
        with np.load(args.images, allow_pickle=False) as file:
            images, labels = file["arr_0"], torch.from_numpy(file["arr_1"])
        temperature = best_temperature(noised_logits(args.checkpoint, config, images), labels)
    elif not 0 < temperature < math.inf:
        raise InputError(f"--temperature: found {temperature}, expected more than 0")
    args.new_checkpoint.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_config(args.new_checkpoint.parent, config | {"temperature": temperature})
    weights = divide_logits(checkpoint.read_state_dict(args.checkpoint), config, temperature)
    checkpoint.save(weights, args.new_checkpoint)
    print(f"temperature {temperature:.4f}: {args.new_checkpoint.absolute()}", flush=True)


if __name__ == "__main__":
    shutdown.run_main(main)

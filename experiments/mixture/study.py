"""The cells of the study, and what is measured in one."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.mixture import networks
from experiments.mixture.distances import Truth
from experiments.mixture.distribution import Mixture, make_mixture
from experiments.mixture.methods import UNCONDITIONAL, WEAK, Method
from guided_diffusion.config.create import create_gaussian_diffusion
from guided_diffusion.diffusion.schedules import get_named_beta_schedule
from guided_diffusion.diffusion.solvers import SAMPLERS

SPEC = Path(__file__).with_name("mixture.toml")
PROCESS_STEPS = 1000
METRICS = ("within", "marginal", "frechet", "right", "lost")  # of `Truth.measure`
CHOSEN_BY = ("within", "frechet")  # each gives a cell a scale of its own


@dataclass(frozen=True)
class Cell:
    """One combination, tuned over the classifier scale.

    :param method: by its name in `[methods]`, see `Method`.
    :param clip: bound of the predicted x_0 in every coordinate, in units of `Mixture.reach`; 0: none.
    """

    data: str
    classifier: str
    denoiser: str
    method: str
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
        self.methods = {name: Method(**values) for name, values in spec["methods"].items()}
        self._made: dict[tuple, Any] = {}

    def mixture(self, data: str) -> Mixture:
        """Return the mixture of that name under the linear schedule."""
        return self._once(("mixture", data), lambda: make_mixture(**self.spec["data"][data], alphas_cumprod=_ABAR))

    def classifier(self, data: str, name: str) -> networks.Network:
        """Return a classifier: exact, sharpF, softF, ectETA, learned, learned-sharpF or learned-ectETA.

        ValueError for another.
        """
        mixture, (kind, number) = self.mixture(data), _split(name)
        if kind == "exact":
            return networks.sharpened(mixture, 1.0)
        if kind in ("sharp", "soft"):
            return networks.sharpened(mixture, number if kind == "sharp" else 1 / number)
        if kind == "ect":
            return networks.entropy_constrained(mixture, number)
        if kind == "learned-sharp":
            learned = self.classifier(data, "learned")
            return lambda x, t: number * learned(x, t)
        if kind in ("learned", "learned-ect"):
            steps = self.spec["training_steps"]
            return self._once((data, name), lambda: networks.train_classifier(mixture, number, steps))
        raise ValueError(f"classifier: found {name}")

    def denoiser(self, data: str, name: str, kind: str = UNCONDITIONAL) -> networks.Network:
        """Return a noise predictor: exact, blurredS or learned. ValueError for another.

        :param kind: UNCONDITIONAL; LABELLED, which is told y, too; or WEAK, a LABELLED one that is blurred (more), or
            trained for fewer steps.
        """
        mixture, (error, number) = self.mixture(data), _split(name)
        weak = self.spec["weak"] if kind == WEAK else {"blur": 0.0, "training": 1.0}
        if error in ("exact", "blurred"):  # one function for both, without labels and with them
            blur = (number**2 + weak["blur"] ** 2) ** 0.5
            return networks.exact_noise(mixture, (mixture.deviation**2 + blur**2) ** 0.5)
        if error == "learned":
            steps, labelled = int(self.spec["training_steps"] * weak["training"]), kind != UNCONDITIONAL
            return self._once((data, "denoiser", kind), lambda: networks.train_denoiser(mixture, steps, labelled))
        raise ValueError(f"denoiser: found {name}")

    def _once(self, key: tuple, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def truth(self, data: str, seed: int) -> Truth:
        """Return the draws of a seed, of as many samples of each class."""

        def make() -> Truth:
            mixture = self.mixture(data)
            y = torch.arange(self.spec["samples"]) % mixture.num_classes
            return Truth(mixture, y, mixture.draw(y, torch.Generator().manual_seed(seed)), self.spec["box"])

        return self._once(("truth", data, seed), make)

    def run(self, cell: Cell, scale: float, seed: int) -> dict[str, float]:
        """Sample at a scale and return the distances of `Truth.measure`; noise and draws are those of the seed."""
        truth, method = self.truth(cell.data, seed), self.methods[cell.method]
        generator = torch.Generator().manual_seed(seed + 1_000_000)  # not the draws' own
        x_T = torch.randn(truth.reference_ND.shape, generator=generator)
        diffusion = create_gaussian_diffusion(steps=PROCESS_STEPS, timestep_respacing=f"ddim{cell.steps}")
        denoiser = partial(self.denoiser, cell.data, cell.denoiser)
        cond_fn = None
        if not method.pair:
            classifier = self.classifier(cell.data, cell.classifier)
            cond_fn = method.guidance(scale, classifier, denoiser(UNCONDITIONAL), diffusion)
        bound = cell.clip * truth.mixture.reach
        samples = SAMPLERS[cell.sampler].loop(diffusion)(
            method.model(scale, denoiser),
            x_T.shape,
            noise=x_T,
            noise_fn=lambda x: torch.randn(x.shape, generator=generator),
            clip_denoised=False,
            denoised_fn=(lambda x_0: x_0.clamp(-bound, bound)) if bound else None,
            cond_fn=cond_fn,
            model_kwargs={"y": truth.y_N},
            device="cpu",
        )
        return truth.measure(samples)


def _split(name: str) -> tuple[str, float]:
    """Return the letters and the number behind them, 0 where there is none: ("sharp", 4.0) from "sharp4"."""
    kind = name.rstrip("0123456789.")
    return kind, float(name[len(kind) :] or 0)


_ABAR = (1.0 - get_named_beta_schedule("linear", PROCESS_STEPS)).cumprod()


def tune(scales: Iterable[float], smallest: float, largest: float, value: Callable[[float], float]) -> float:
    """Return the scale with the lowest value.

    Beside the scales, half and twice the best are tried until the best is between these; then those a factor of
    sqrt(2) from it.
    """
    values = {scale: value(scale) for scale in scales}

    def beside(factor: float) -> list[float]:
        best = min(values, key=values.__getitem__)
        around = (float(f"{scale:.7g}") for scale in (best / factor, best * factor))  # as they are written
        return [scale for scale in around if scale not in values and smallest <= scale <= largest]

    while new := beside(2.0):
        values |= {scale: value(scale) for scale in new}
    values |= {scale: value(scale) for scale in beside(2**0.5)}
    return min(values, key=values.__getitem__)

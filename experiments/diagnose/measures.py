"""One pass over labelled images: how much guidance would improve their denoising, and how certain a classifier is.

For x_t = sqrt(abar) x_0 + sigma eps, sigma = sqrt(1 - abar), a model's noise eps_u and a guidance G at gamma = 1, the
guided denoising loss is, in units of the score (Chao et al., ICLR 2022: its minimum is the true gradient),

    L(gamma) / sigma^2 = |eps - (eps_u - sigma gamma G)|^2 / sigma^2 = |e|^2 - (2 gamma <e, G> - gamma^2 <G, G>)

with e = (eps_u - eps) / sigma, sums over the pixels. So three numbers for an image, level and rule give L at every
gamma: |e|^2, <e, G> ("along") and <G, G> ("square").
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ed_dpm_patches.guidance import LARGEST_GUIDANCE, ClassifierGuidance
from ed_dpm_patches.rules import ConstantRule, Direction, GuidanceRule, unit_direction
from ed_dpm_patches.softmax import Softmax
from guided_diffusion.diffusion.enums import ModelMeanType
from guided_diffusion.diffusion.process import DiffusionProcess
from guided_diffusion.errors import InputError, InputValueError
from guided_diffusion.sampling.noise import generator_of

Arrays = dict[str, np.ndarray]
# Those at which the cross entropy is kept; the one in the middle is 1.
TEMPERATURES = np.geomspace(1 / 16, 16, 65)


@dataclass(frozen=True)
class _UnitRule(ConstantRule):
    """The direction of plain guidance with an L1 norm of 1, which does not vanish where the classifier is certain."""

    def direction(self, p: Softmax, y: Tensor) -> Direction:
        return unit_direction(p.residual(y))[1]


class Measurement:
    """The networks and rules that are measured; `measure` takes a batch of images.

    :param model: model(x_t, t) -> eps (or x_0, as the process says), perhaps with a variance in further channels; None:
        without it there is no loss, and only the classifiers are measured.
    :param classifiers: by name, each classifier(x_t, t) -> logits [B, K].
    :param diffusion: process of the model, whose t the classifiers get as in sampling.
    :param rules: by name, each with a gamma of 1.
    :param cond_model: cond_model(x_t, t, y=...) -> as model: its difference to `model` is another guidance.
    :param levels: number of noise levels, in the middles of as many equal parts of the process.
    :raises InputValueError: more levels than timesteps, a gamma other than 1, a name with "/", a model of x_{t-1}.
    """

    def __init__(
        self, model: Callable[..., Tensor] | None, classifiers: Mapping[str, Callable[..., Any]],
        diffusion: DiffusionProcess, rules: Mapping[str, GuidanceRule], cond_model: Callable[..., Tensor] | None = None,
        levels: int = 20, seed: int = 0,
    ):  # fmt: skip
        self.model, self.cond_model, self.diffusion, self.rules, self.seed = model, cond_model, diffusion, rules, seed
        if not 1 <= levels <= diffusion.num_timesteps:
            raise InputValueError(f"levels: found {levels}, expected 1 to {diffusion.num_timesteps} timesteps")
        if wrong := [name for name, rule in rules.items() if rule.gamma != 1]:
            raise InputValueError(f"rules: {wrong[0]} has gamma {rules[wrong[0]].gamma}, expected 1: it is fitted")
        if slashed := [name for name in classifiers if "/" in name]:
            raise InputValueError(f"classifiers: found the name {slashed[0]}, expected one without /")
        if diffusion.model_mean_type is ModelMeanType.PREVIOUS_X:
            raise InputValueError("diffusion: found a model of x_{t-1}, expected one of eps or x_0")
        self.steps = [int((i + 0.5) * diffusion.num_timesteps / levels) for i in range(levels)]
        self.times = [int(diffusion.model_timesteps.timesteps[step]) for step in self.steps]
        self.names, self.num_classes = list(classifiers), 0  # the latter is known after the first batch
        self._plain = {name: ClassifierGuidance(network, _UnitRule()) for name, network in classifiers.items()}
        self._others: dict[str, dict[str, ClassifierGuidance]] = {name: {} for name in classifiers}
        for name, plain in self._plain.items():
            for rule in () if model is None else rules:
                if type(rules[rule]).direction is not GuidanceRule.direction:
                    guidance = self._others[name][rule] = ClassifierGuidance(classifiers[name], rules[rule])
                    guidance.classifier = plain.classifier  # which warns once

    def measure(self, images: Tensor, labels: Tensor, numbers: Sequence[int]) -> Arrays:
        """Return float64 arrays [B, levels, ...], which do not depend on other images of the batch but by rounding.

        unguided is |e|^2; pair_along, pair_square are those of the two models' difference. For every classifier:
        NAME/right, top5, cross_entropy (at TEMPERATURES), confidence, entropy (H / log K), gradient (norm of the
        gradient of log p_y), cosine (with the pair), along and square (by rule).

        :param images: x_0 [B, ...], any floating dtype. labels: int64 [B].
        :param numbers: of the images; the noise depends on the seed, the number and t alone.
        :raises InputError: an output that is not finite. ValueError: a label that is no class.
        """
        columns = defaultdict(list)
        for step, t in zip(self.steps, self.times, strict=True):
            draws = [_noise(images.shape[1:], self.seed, number, t) for number in numbers]
            eps = torch.stack(draws).to(images)
            for name, values in self._at_level(step, images, labels, eps).items():
                if not bool(values.isfinite().all()):
                    raise InputError(f"{name}: not finite at t = {t}, expected finite outputs of the networks")
                columns[name].append(values.double())
        return {name: torch.stack(values, dim=1).cpu().numpy() for name, values in columns.items()}

    def _at_level(self, step: int, images: Tensor, labels: Tensor, eps: Tensor) -> dict[str, Tensor]:
        abar = float(self.diffusion.alphas_cumprod[step])
        x = abar**0.5 * images + (1 - abar) ** 0.5 * eps
        t_B = torch.full((len(x),), step, device=x.device)
        found: dict[str, Tensor] = {}
        error = pair = None
        if self.model is not None:
            eps_u = self._eps(self.model, x, t_B, abar, {})
            error = (eps_u - eps.double()) / (1 - abar) ** 0.5
            found["unguided"] = _dot(error, error)
            if self.cond_model is not None:
                pair = (eps_u - self._eps(self.cond_model, x, t_B, abar, {"y": labels})) / (1 - abar) ** 0.5
                found |= {"pair_along": _dot(error, pair), "pair_square": _dot(pair, pair)}
        for name in self._plain:
            values = self._of_classifier(name, x, t_B, labels, error, pair)
            found |= {f"{name}/{key}": value for key, value in values.items()}
        return found

    def _eps(self, model: Callable[..., Tensor], x: Tensor, t_B: Tensor, abar: float, kwargs: dict) -> Tensor:
        """Return the predicted noise, float64."""
        with torch.no_grad():
            output = self.diffusion.call(model, x, t_B, kwargs)[:, : x.shape[1]].double()
        if self.diffusion.model_mean_type is ModelMeanType.START_X:
            return (x.double() - abar**0.5 * output) / (1 - abar) ** 0.5
        return output

    def _of_classifier(
        self, name: str, x: Tensor, t_B: Tensor, y_B: Tensor, error: Tensor | None, pair: Tensor | None
    ) -> dict[str, Tensor]:
        plain = self._plain[name]
        unit = self.diffusion.call(plain, x, t_B, {"y": y_B}).double()
        z_BK = plain.logits.double()
        if not bool(z_BK.isfinite().all()):
            raise InputError(f"{name}: its logits are not finite at t = {int(t_B[0])}, expected finite ones")
        self.num_classes, p = z_BK.shape[1], Softmax.of(z_BK)
        log_norm_B, square_B = unit_direction(p.residual(y_B))[0], _dot(unit, unit)
        gradient_B = log_norm_B.exp() * square_B.sqrt()
        z_y_B1 = z_BK.gather(1, y_B[:, None])
        temperature_S1 = torch.as_tensor(TEMPERATURES, device=x.device)[:, None]
        log_p_BSK = (z_BK[:, None] / temperature_S1).log_softmax(dim=2)
        found = {
            "right": p.top_B == y_B,
            "top5": (z_BK > z_y_B1).sum(dim=1) < 5,
            "cross_entropy": -log_p_BSK.gather(2, y_B[:, None, None].expand(-1, len(TEMPERATURES), 1))[..., 0],
            "confidence": 1 / (1 + p.log_r_B.exp()),
            "entropy": p.entropy_ratio,
            "gradient": gradient_B,
        }
        if pair is not None:
            lengths_B = (square_B * _dot(pair, pair)).sqrt()
            found["cosine"] = torch.where(lengths_B > 0, _dot(unit, pair) / lengths_B, 0.0)
        if error is None or not self.rules:
            return found
        along, square = [], []
        largest_B = math.log(LARGEST_GUIDANCE) - unit.flatten(1).abs().amax(dim=1).clamp(min=1e-25).log()
        t_network_B = self.diffusion.model_timesteps(t_B)
        for rule_name, rule in self.rules.items():
            if other := self._others[name].get(rule_name):
                guidance = self.diffusion.call(other, x, t_B, {"y": y_B}).double()
                along.append(_dot(error, guidance))
                square.append(_dot(guidance, guidance))
            else:  # the plain direction times a factor: products in logarithms, as in `ClassifierGuidance`
                log_scale_B = rule.log_scale(p, t_network_B, gradient_B if rule.needs_grad_norm else None)
                size_B = torch.minimum(log_scale_B + log_norm_B, largest_B).exp()
                along.append(size_B * _dot(error, unit))
                square.append(size_B**2 * square_B)
        return found | {"along": torch.stack(along, dim=1), "square": torch.stack(square, dim=1)}


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(dim=1)


def _noise(shape: Sequence[int], seed: int, number: int, t: int) -> Tensor:
    return torch.randn(tuple(shape), generator=generator_of((seed, number, t)))

"""The ways to guide that the study compares, each with one scale: what a line of `[methods]` stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ed_dpm_patches.guidance import ClassifierGuidance
from ed_dpm_patches.rules import RULES
from experiments.mixture.networks import Network
from guidance_methods import (
    STABILIZERS,
    AtDenoised,
    Denoiser,
    GuidanceEvery,
    Pair,
    Stabilized,
    Through,
    entropy_guidance,
    without_labels,
)
from guided_diffusion.diffusion.process import DiffusionProcess

NOISY, DENOISED, THROUGH = "noisy", "denoised", "through"
UNCONDITIONAL, LABELLED, WEAK = "unconditional", "labelled", "weak"


@dataclass(frozen=True)
class Method:
    """A way to guide.

    :param title: its name in reports.
    :param rule: of `RULES`, with its arguments besides gamma, which is the scale; eds: times log K / H(p).
    :param cap: see `ClassifierGuidance`.
    :param place: where the classifier looks: at x_t; at the predicted x_0, at t = 0; there, through the denoiser.
    :param stabilizer: of `STABILIZERS`, "": none; every: the classifier is asked at every so many steps.
    :param pair: guidance without a classifier, by the labelled denoiser and this one: unconditional or weak.
    :param scales: to begin the search with, in place of the study's.
    """

    title: str
    rule: str = "constant"
    arguments: Mapping[str, float] = field(default_factory=dict)
    eds: bool = False
    cap: float | None = None
    place: str = NOISY
    stabilizer: str = ""
    every: int = 1
    pair: str = ""
    scales: tuple[float, ...] = ()

    def guidance(
        self, scale: float, classifier: Network, denoiser: Network, diffusion: DiffusionProcess
    ) -> Callable[..., Tensor]:
        """Return the guidance at a scale, as samplers of the process call it."""
        make = partial(RULES[self.rule], **self.arguments)
        scorer = classifier if self.place == NOISY else lambda x, t: classifier(x, torch.zeros_like(t))
        guidance: Callable[..., Tensor]
        if self.eds:
            guidance = entropy_guidance(scorer, make(), gamma=scale, cap=self.cap)
        else:
            guidance = ClassifierGuidance(scorer, make(gamma=scale), cap=self.cap)
        if self.place == DENOISED:
            guidance = AtDenoised(guidance)
        elif self.place == THROUGH:
            guidance = Through(guidance, Denoiser.of(diffusion, without_labels(denoiser), clip=False))
        if self.stabilizer:
            guidance = Stabilized(guidance, STABILIZERS[self.stabilizer]())
        return GuidanceEvery(guidance, self.every) if self.every > 1 else guidance

    def model(self, scale: float, denoiser: Callable[[str], Network]) -> Callable[..., Tensor]:
        """Return the diffusion model to sample with, model(x_t, t, y).

        :param denoiser: denoiser(kind) -> a noise predictor: UNCONDITIONAL, LABELLED or WEAK, the last two with y.
        """
        unconditional = without_labels(denoiser(UNCONDITIONAL))
        if not self.pair:
            return unconditional
        other = unconditional if self.pair == UNCONDITIONAL else denoiser(WEAK)
        return Pair(denoiser(LABELLED), other, scale)

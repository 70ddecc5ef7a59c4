"""The paper's factor log K / H(p) (EDS) on any rule's direction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ed_dpm_patches import ClassifierGuidance
from ed_dpm_patches.rules import ConstantRule, Direction, EntropyRule, GuidanceRule
from ed_dpm_patches.softmax import Softmax
from guided_diffusion.errors import InputValueError


@dataclass(frozen=True)
class EntropyScaled(GuidanceRule):
    """A rule's direction and factor, times gamma log K / H(p): Eq. 9-10 of the EDS paper, on any direction.

    :param rule: the rule, whose own gamma is 1 (ValueError otherwise). With `ConstantRule` this is `EntropyRule`.

    Where the direction does not vanish at certainty (`vanishes_at_certainty` is False) the product has no bound:
    build the guidance with `entropy_guidance`, which asks for a cap.
    """

    rule: GuidanceRule = field(default_factory=ConstantRule)

    def __post_init__(self):
        super().__post_init__()
        if self.rule.gamma != 1:
            raise ValueError(f"rule: found a gamma of {self.rule.gamma}, expected 1: EntropyScaled has the scale")

    @property
    def needs_grad_norm(self) -> bool:
        """Whether the rule reads the gradient's norm."""
        return self.rule.needs_grad_norm

    @property
    def vanishes_at_certainty(self) -> bool:
        """Whether the rule's direction vanishes as p_y goes to 1, at least as H(p) does."""
        return getattr(self.rule, "vanishes_at_certainty", True)

    def direction(self, p: Softmax, y: Tensor) -> Direction:
        return self.rule.direction(p, y)

    def log_scale(self, p: Softmax, t: Tensor, grad_norm: Tensor | None) -> Tensor:
        return self.rule.log_scale(p, t, grad_norm) + EntropyRule().log_scale(p, t, None)


def check_cap(rule: GuidanceRule, cap: float | None) -> None:
    """Raise InputValueError where EDS's factor on this rule has no bound and there is no cap."""
    if cap is None and not getattr(rule, "vanishes_at_certainty", True):
        raise InputValueError(
            f"--eds_cap: found none with the entropy factor on {type(rule).__name__}, expected a number such as 10: "
            "its direction does not vanish where the classifier is certain, while log K / H(p) grows without bound"
        )


def entropy_guidance(
    classifier: Callable[..., Any], rule: GuidanceRule, *, gamma: float = 1.0, cap: float | None = None, **options
) -> ClassifierGuidance:
    """Return a `ClassifierGuidance` by `EntropyScaled(gamma, rule)`; `options` are its other arguments.

    :param cap: see `ClassifierGuidance`; InputValueError (a ValueError) where it is missing and nothing else bounds
        the guidance.
    """
    check_cap(rule, cap)
    return ClassifierGuidance(classifier, EntropyScaled(gamma, rule), cap=cap, **options)

"""Flags of guidance beyond the paper, and the rule and guidance that they ask for."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ed_dpm_patches import config as paper
from ed_dpm_patches.rules import RULES, GuidanceRule
from guided_diffusion.config.flags import ParsedFlags, flag
from guided_diffusion.errors import InputError

from .entropy_scaled import EntropyScaled, check_cap
from .every import REUSE, SKIPPED, GuidanceEvery
from .places import AtDenoised
from .stabilizers import STABILIZERS, Stabilized

NOISY, DENOISED = PLACES = ("noisy", "denoised")

# The flag of each argument that a rule beyond the paper may have.
FLAGS = {
    "t1": "guidance_t1", "t2": "guidance_t2", "smoothing": "guidance_smoothing", "classes": "guidance_classes",
}  # fmt: skip


# With these values of the flags a trace tells what the guidance did; with others it could not.
TRACEABLE = {"guidance_at": NOISY, "stabilizer": "", "guidance_every": 1}


def is_traceable(flags: Mapping[str, Any]) -> bool:
    """Return whether --trace goes together with the other flags of a run."""
    return all(flags.get(name, value) == value for name, value in TRACEABLE.items())


def parse_classes(text: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return (classes, weights) from "CLASS:WEIGHT,CLASS,...", a weight of 1 where there is none; else ValueError."""
    pairs = [part.partition(":")[::2] for part in text.split(",")] if text else []
    return tuple(int(number) for number, _ in pairs), tuple(float(weight or 1) for _, weight in pairs)


def classes(text: str) -> str:
    """Return the text of --guidance_classes as it is; argparse.ArgumentTypeError if it is no list of classes."""
    try:
        parse_classes(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected classes such as 3,7 or 3:1,7:0.5") from None
    return text


@dataclass(frozen=True)
class MethodsConfig:
    """Guidance beyond the paper: docs/guidance.md."""

    guidance_t1: float = flag(1.0, "rule elucd: factor of the label's logit", minimum=0.0)
    guidance_t2: float = flag(0.5, "rule elucd: factor of all logits in the sum over the classes", minimum=0.0)
    guidance_smoothing: float = flag(
        0.1, "rules kl, reverse-kl and js: e of their target (1 - e) onehot(y) + e / K", minimum=1e-9, maximum=0.999999
    )
    guidance_classes: str = flag(
        "",
        "rule multi: CLASS:WEIGHT,... besides the label, whose weight is 1; rule negative: CLASS,... to stay away from",
        type=classes,
    )
    guidance_at: str = flag(
        NOISY, "where the classifier looks: at x_t, or at the x_0 predicted from it (EluCD)", choices=PLACES
    )
    stabilizer: str = flag(
        "", "the gradient over the steps, before its scale: Adam's step or a mean", choices=STABILIZERS
    )
    guidance_every: int = flag(1, "evaluate the classifier at every K-th step only", minimum=1)
    guidance_skipped: str = flag(
        REUSE, "what the steps between get: the guidance of the last evaluation, or none", choices=SKIPPED
    )


def guidance_rule(
    parsed: ParsedFlags, guide: paper.GuidanceConfig, methods: MethodsConfig, num_timesteps: int, num_classes: int
) -> GuidanceRule:
    """Return the rule that the flags ask for, the paper's or another, with --eds times log K / H(p).

    InputError for flags of another rule, classes that the classifier does not have, and where EDS's factor has no
    bound.
    """
    arguments = inspect.signature(RULES[guide.guidance]).parameters
    for argument, option in FLAGS.items():
        if option in parsed.values and argument not in arguments:
            rules = [name for name, make in RULES.items() if argument in inspect.signature(make).parameters]
            raise InputError(f"--{option}: found with --guidance {guide.guidance}, expected {' or '.join(rules)}")
    if not FLAGS.keys() & arguments.keys():
        return paper.guidance_rule(parsed, guide, num_timesteps)
    values = {argument: getattr(methods, option) for argument, option in FLAGS.items()}
    values["classes"], values["weights"] = _known_classes(guide, methods, num_classes)
    rule = RULES[guide.guidance](**{name: values[name] for name in arguments if name in values})
    if guide.eds:
        check_cap(rule, guide.eds_cap)
        return EntropyScaled(guide.classifier_scale, rule)
    return dataclasses.replace(rule, gamma=guide.classifier_scale)


def with_methods(
    guidance: Callable[..., Tensor], guide: paper.GuidanceConfig, methods: MethodsConfig
) -> Callable[..., Tensor]:
    """Return a guidance at the place and over the steps that the flags ask for; by default it is the same object.

    InputError together with --trace where a trace could not tell what the guidance did.
    """
    if methods.guidance_at == DENOISED:
        _without_trace(guide, "--guidance_at denoised")
        guidance = AtDenoised(guidance)
    if methods.stabilizer:
        _without_trace(guide, f"--stabilizer {methods.stabilizer}")
        guidance = Stabilized(guidance, STABILIZERS[methods.stabilizer]())
    if methods.guidance_every > 1:
        _without_trace(guide, f"--guidance_every {methods.guidance_every}")
        guidance = GuidanceEvery(guidance, methods.guidance_every, methods.guidance_skipped)
    return guidance


def _without_trace(guide: paper.GuidanceConfig, option: str) -> None:
    if guide.trace:
        raise InputError(
            f"--trace: found together with {option}, expected one of them: a trace records what the classifier's "
            "gradient at x_t does in every step"
        )


def _known_classes(
    guide: paper.GuidanceConfig, methods: MethodsConfig, num_classes: int
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    numbers, weights = parse_classes(methods.guidance_classes)
    if guide.guidance == "negative" and not numbers:
        raise InputError("--guidance_classes: found none with --guidance negative, expected classes such as 3,7")
    wrong = [number for number in numbers if not 0 <= number < num_classes]
    if wrong:
        raise InputError(f"--guidance_classes: found {wrong[0]}, the classifier's classes are 0 to {num_classes - 1}")
    if guide.guidance == "negative" and len(set(numbers)) == num_classes:
        raise InputError(f"--guidance_classes: found all {num_classes} classes, expected one that is left")
    return numbers, weights

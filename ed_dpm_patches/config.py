"""The paper's flags: how samples are guided, and how a classifier is trained."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from guided_diffusion.config.flags import ParsedFlags, flag, text_for
from guided_diffusion.errors import InputError

from .rules import RULES, ConstantRule, GuidanceRule

# The flag of each argument that a rule may have.
FLAGS = {
    "gamma": "classifier_scale", "factor": "guidance_factor", "until": "guidance_until", "bound": "guidance_norm",
}  # fmt: skip


def parse_interval(text: str) -> tuple[float, float]:
    """Return (lowest, highest) from "LO,HI"; ValueError for anything else."""
    lowest, highest = (float(part) for part in text.split(","))
    if not lowest <= highest:
        raise ValueError(text)
    return lowest, highest


interval = text_for(
    lambda text: parse_interval(text) if text else None, "two numbers LO,HI, the lower first, such as 0,700"
)


@dataclass(frozen=True)
class GuidanceConfig:
    """Guidance."""

    classifier_path: str = flag(
        "", "checkpoint of the classifier, which sees images in [-1, 1] with noise, or its training's folder"
    )
    classifier_scale: float = flag(1.0, "factor gamma on the classifier's gradient; 0: no guidance", minimum=0.0)
    eds: bool = flag(
        False,
        "multiply it by log K / H(p), per sample and step (entropy-driven sampling)",
        aliases=("use_entropy_scale",),
    )
    guidance: str = flag(
        "constant",
        "how the scale varies: the rules of the paper's Table 4, then others (docs/guidance.md); entropy is --eds",
        choices=RULES,
    )
    guidance_factor: float = flag(
        1.0, "C of the rules range, timestep and gradnorm, on top of the classifier scale", minimum=1e-12
    )
    guidance_until: int = flag(700, "rule range: C acts for timesteps t up to this one", minimum=0)
    guidance_norm: float = flag(0.2, "rule gradnorm: C acts where the gradient's L2 norm is below this", minimum=0.0)
    eds_cap: float = flag(
        None,
        "largest L1 norm of the guidance on the logits, in units of gamma * log K; none is the paper's formula",
        type=float, minimum=1e-6,
    )  # fmt: skip
    guidance_interval: str = flag(
        "",
        'timesteps LO,HI of the original process at which there is guidance, ends included; "": at all of them',
        type=interval,
    )
    trace: str = flag("", "npz file for entropy, p_y, gradient norm, scale and relative guidance over time")
    trace_samples: int = flag(
        4, "of how many samples, the first of the run, the trace keeps x_t, predicted x_0 and guidance", minimum=0
    )
    trace_maps: int = flag(8, "at how many steps, evenly spaced, it keeps them; more than there are: all", minimum=1)


@dataclass(frozen=True)
class EctConfig:
    """Entropy-constraint training."""

    ect: bool = flag(False, "add the entropy constraint to the cross entropy; implied by --ect_weight")
    ect_weight: float = flag(
        0.2,
        "weight eta of the constraint log K - H(p); the paper says 0.2, the authors' checkpoint used 0.1",
        minimum=0.0,
        aliases=("entropy_constraint_loss_weight",),
    )


def guidance_rule(given: ParsedFlags, guide: GuidanceConfig, num_timesteps: int) -> GuidanceRule:
    """Return the rule that the flags ask for; InputError when --eds and --guidance contradict each other."""
    named = given.values.get("guidance")
    if guide.eds and named not in (None, "entropy"):
        raise InputError(f"--guidance: found {named} together with --eds, expected entropy or no --guidance")
    make = RULES["entropy" if guide.eds else guide.guidance]
    values = {argument: getattr(guide, option) for argument, option in FLAGS.items()} | {"num_timesteps": num_timesteps}
    return make(**{name: values[name] for name in inspect.signature(make).parameters if name in values})


def rule_flags(rule: str) -> list[str]:
    """Return the flags that set a rule's arguments; the scale alone for a name that is not in RULES."""
    arguments = inspect.signature(RULES.get(rule, ConstantRule)).parameters
    return [option for argument, option in FLAGS.items() if argument in arguments]


def with_rule_named(flags: dict[str, Any]) -> dict[str, Any]:
    """Return a run's flags with --eds and --guidance naming the same rule, whichever of them was given."""
    named = flags.get("guidance") or "constant"
    entropy = named == "entropy" or (flags.get("eds") and named == "constant")
    return flags | {"eds": True, "guidance": "entropy"} if entropy else flags


def ect_weight(given: ParsedFlags) -> float:
    """Return the constraint's weight, 0 when it is off. The release's flag alone turns it on, as there."""
    config = given.make(EctConfig)
    asked = config.ect or ("ect" not in given.values and "ect_weight" in given.values)
    return config.ect_weight if asked else 0.0

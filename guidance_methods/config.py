"""Flags of guidance beyond the paper, and the rule that they ask for. `terms` and `second_model` build the rest."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ed_dpm_patches import config as paper
from ed_dpm_patches.rules import RULES, GuidanceRule
from guided_diffusion.config.configs import (
    CacheConfig,
    ClassifierConfig,
    DiffusionConfig,
    LabelConfig,
    ModelConfig,
    RunConfig,
    SamplingConfig,
)
from guided_diffusion.config.flags import ParsedFlags, flag, text_for
from guided_diffusion.errors import InputError, counted
from guided_diffusion.runs import logger

from .entropy_scaled import EntropyScaled, check_cap
from .every import REUSE, SKIPPED
from .stabilizers import STABILIZERS

NOISY, DENOISED, THROUGH = PLACES = ("noisy", "denoised", "through")
LOGITS, LABELS, SCORE, PROBABILITY = OUTPUTS = ("logits", "labels", "score", "probability")

# The flag of each argument that a rule beyond the paper may have.
FLAGS = {
    "t1": "guidance_t1", "t2": "guidance_t2", "smoothing": "guidance_smoothing", "classes": "guidance_classes",
}  # fmt: skip
# Those and the paper's, without the scale that all rules have.
RULE_FLAGS = [option for option in (paper.FLAGS | FLAGS).values() if option != "classifier_scale"]
# The flag of each second diffusion model's file, and that of its w.
SECOND_MODELS = {"uncond_model_path": "cfg_scale", "weak_model_path": "autoguidance_scale"}
# With these values of the flags a trace tells what the guidance did; with others it could not.
TRACEABLE = {"guidance_at": NOISY, "guidance_sine": 0.0, "stabilizer": "", "guidance_every": 1}


def untraceable(flags: Mapping[str, Any]) -> list[str]:
    """Return the flags of a run, with their values, with which --trace does not go."""
    return [f"--{name} {flags[name]}" for name, value in TRACEABLE.items() if flags.get(name, value) != value]


def parse_classes(text: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return (classes, weights) from "CLASS:WEIGHT,CLASS,...", a weight of 1 where there is none; else ValueError."""
    pairs = [part.partition(":")[::2] for part in text.split(",")] if text else []
    numbers, weights = tuple(int(number) for number, _ in pairs), tuple(float(weight or 1) for _, weight in pairs)
    if not all(map(math.isfinite, weights)):
        raise ValueError(text)
    return numbers, weights


def parse_clean_input(text: str) -> dict[str, Any]:
    """Return the arguments of `CleanClassifier` from "range=LO,HI mean=X,... std=X,... size=H[,W]"; else ValueError."""
    found: dict[str, Any] = {}
    for part in text.split():
        name, _, numbers = part.partition("=")
        values = [float(number) for number in numbers.split(",")]
        if not all(map(math.isfinite, values)) or {name, "low" if name == "range" else name} & found.keys():
            raise ValueError(part)
        if name == "range" and len(values) == 2:
            found["low"], found["high"] = values
        elif name in ("mean", "std"):
            found[name] = values
        elif name == "size" and len(values) <= 2 and all(value == int(value) > 0 for value in values):
            found["size"] = (int(values[0]), int(values[-1]))
        else:
            raise ValueError(part)
    return found


classes = text_for(parse_classes, "classes such as 3,7 or 3:1,7:0.5")
clean_input = text_for(parse_clean_input, "range=LO,HI mean=X,... std=X,... size=H[,W], any of them")


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
        NOISY,
        "where the classifier looks: at x_t; at the x_0 predicted from it (EluCD); there, with the chain rule through "
        "the diffusion model, at two or three times its cost (DPS)",
        choices=PLACES,
    )
    guidance_sine: float = flag(
        0.0, "EluCD's larger shift of the mean: this share of the largest variance, times sin(pi t / T); EluCD has 0.3",
        minimum=0.0,
    )  # fmt: skip
    stabilizer: str = flag(
        "", "the gradient over the steps, before its scale: Adam's step or a mean", choices=STABILIZERS
    )
    guidance_every: int = flag(1, "evaluate the classifier at every K-th step only", minimum=1)
    guidance_skipped: str = flag(
        REUSE, "what the steps between get: the guidance of the last evaluation, or none", choices=SKIPPED
    )
    guidance_file: str = flag("", "TOML file of further guidance, which is added: docs/guidance.md#sums-and-pairs")


@dataclass(frozen=True)
class CleanConfig:
    """Scorer of clean images, in place of --classifier_path."""

    clean_classifier: str = flag(
        "", "package.module:function that returns a network of images without noise; needs --guidance_at"
    )
    clean_input: str = flag(
        "",
        'what the network wants: "range=0,1 mean=0.5 std=0.5 size=224", a value or one a channel; "": pixels of 0 to 1',
        type=clean_input,
    )
    clean_output: str = flag(
        LOGITS,
        "what it returns: logits of classes that exclude each other; of labels that do not; a log-score an image; "
        "a probability, taken as log d / (1 - d)",
        choices=OUTPUTS,
    )
    clean_softplus: float = flag(0.0, "softplus of this beta in place of its ReLUs (EluCD has 3); 0: none", minimum=0.0)
    decoder: str = flag("", "package.module:function that returns what decodes the diffusion model's latents")


@dataclass(frozen=True)
class PairConfig:
    """Second diffusion model."""

    uncond_model_path: str = flag(
        "", "classifier-free guidance: checkpoint of an unconditional model, or its training's folder"
    )
    cfg_scale: float = flag(1.0, "w in uncond + w (cond - uncond); 1: the conditional model alone", minimum=0.0)
    weak_model_path: str = flag(
        "", "autoguidance: checkpoint of a smaller or less trained model with the same labels, or its training's folder"
    )
    autoguidance_scale: float = flag(1.0, "w in weak + w (model - weak); 1: the model alone", minimum=0.0)
    pair_interval: str = flag(
        "", 'timesteps LO,HI at which the second model guides, ends included; "": at all of them', type=paper.interval
    )
    apg_eta: float = flag(
        1.0, "adaptive projected guidance: share of the part along x_0; 1: whole, 0: APG's", minimum=0.0
    )
    apg_norm: float = flag(0.0, "APG: bound of the difference's L2 norm; 0: none", minimum=0.0)
    apg_momentum: float = flag(0.0, "APG: momentum of the difference, negative in APG", minimum=-0.999, maximum=0.999)


# Of classifier_sample, in the order of its --help.
SAMPLING_CONFIGS = (
    SamplingConfig, CacheConfig, paper.GuidanceConfig, MethodsConfig, CleanConfig, PairConfig, LabelConfig,
    ModelConfig, ClassifierConfig, DiffusionConfig, RunConfig,
)  # fmt: skip


def is_rescaled(diffusion: DiffusionConfig) -> bool:
    """Return whether models and guidance are told t * 1000 / T, another number than t."""
    return diffusion.rescale_timesteps and diffusion.diffusion_steps != 1000


def check_not_rescaled(diffusion: DiffusionConfig, asked: str) -> None:
    """Raise InputError where the timesteps are rescaled, while what is asked for counts in t."""
    if is_rescaled(diffusion):
        raise InputError(
            f"{asked}: found with --rescale_timesteps and --diffusion_steps {diffusion.diffusion_steps}, "
            "expected 1000 steps, or timesteps that are not rescaled"
        )


def within(interval: str, timesteps: Sequence[int]) -> list[int]:
    """Return those of a run's timesteps that lie in an interval "LO,HI"; "": all of them."""
    low, high = paper.parse_interval(interval) if interval else (-math.inf, math.inf)
    return [t for t in timesteps if low <= t <= high]


def warn_of_empty_interval(name: str, interval: str, timesteps: Sequence[int]) -> None:
    """Warn where no timestep of a run lies in the interval of a flag, "--name", so that nothing guides."""
    if not within(interval, timesteps):
        logger.warning(
            f"{name} {interval}: found none of the run's {counted(len(timesteps), 'timesteps')} in it, "
            f"{min(timesteps)} to {max(timesteps)}: there is no such guidance; expected an interval with some"
        )


def guidance_rule(
    parsed: ParsedFlags, guide: paper.GuidanceConfig, methods: MethodsConfig, num_timesteps: int, num_classes: int
) -> GuidanceRule:
    """Return the rule that the flags ask for, the paper's or another, with --eds times log K / H(p).

    InputError for flags of another rule, classes that the classifier does not have, and where EDS's factor has no
    bound.
    """
    arguments = inspect.signature(RULES[guide.guidance]).parameters
    beyond = FLAGS.keys() & arguments.keys()
    for argument, option in (paper.FLAGS | FLAGS).items():
        if option in parsed.values and argument not in arguments:
            rules = [name for name, make in RULES.items() if argument in inspect.signature(make).parameters]
            found = "--eds" if guide.eds and not beyond else f"--guidance {guide.guidance}"
            line = f"--{option}: found with {found}, expected {' or '.join(rules)}"
            if beyond or argument in FLAGS:
                raise InputError(line)
            logger.warning(f"{line}; it changes nothing")  # the release's scripts give them all
    if not beyond:
        return paper.guidance_rule(parsed, guide, num_timesteps)
    values = {argument: getattr(methods, option) for argument, option in FLAGS.items()}
    values["classes"], values["weights"] = _known_classes(guide, methods, num_classes)
    rule = RULES[guide.guidance](**{name: values[name] for name in arguments if name in values})
    if guide.eds:
        check_cap(rule, guide.eds_cap)
        return EntropyScaled(guide.classifier_scale, rule)
    return dataclasses.replace(rule, gamma=guide.classifier_scale)


def _known_classes(
    guide: paper.GuidanceConfig, methods: MethodsConfig, num_classes: int
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    numbers, weights = parse_classes(methods.guidance_classes)
    if guide.guidance in ("multi", "negative") and not numbers:
        expected = "classes such as 3,7" if guide.guidance == "negative" else "classes such as 3:1,7:0.5"
        raise InputError(f"--guidance_classes: found none with --guidance {guide.guidance}, expected {expected}")
    if guide.guidance == "negative" and ":" in methods.guidance_classes:
        raise InputError(
            f"--guidance_classes: found {methods.guidance_classes} with --guidance negative, expected classes without "
            "weights such as 3,7"
        )
    wrong = [number for number in numbers if not 0 <= number < num_classes]
    if wrong:
        raise InputError(f"--guidance_classes: found {wrong[0]}, the classifier's classes are 0 to {num_classes - 1}")
    if guide.guidance == "negative" and len(set(numbers)) == num_classes:
        raise InputError(f"--guidance_classes: found all {num_classes} classes, expected one that is left")
    return numbers, weights

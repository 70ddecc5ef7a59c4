"""The guidance that flags ask for: a classifier's or another scorer's, and the terms of a --guidance_file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ed_dpm_patches.config import GuidanceConfig, parse_interval
from ed_dpm_patches.guidance import ClassifierGuidance
from ed_dpm_patches.rules import GuidanceRule
from ed_dpm_patches.scale_stats import ScaleReport
from guided_diffusion.config.class_labels import Classes
from guided_diffusion.config.configs import ClassifierConfig, DiffusionConfig, ModelConfig, RunConfig
from guided_diffusion.config.create import build_classifier
from guided_diffusion.config.flags import ParsedFlags, architecture_from, flags_from
from guided_diffusion.diffusion.process import DiffusionProcess
from guided_diffusion.distributed import collectives
from guided_diffusion.errors import InputError
from guided_diffusion.io.checkpoint_flags import CLASSIFIER
from guided_diffusion.io.reading import hash_file
from guided_diffusion.runs import logger
from guided_diffusion.sampling import setup

from .clean import AtZero
from .clean_flags import clean_network, count_outputs, digest
from .config import (
    DENOISED,
    LABELS,
    LOGITS,
    NOISY,
    PROBABILITY,
    RULE_FLAGS,
    THROUGH,
    CleanConfig,
    MethodsConfig,
    check_not_rescaled,
    guidance_rule,
    is_rescaled,
    untraceable,
    warn_of_empty_interval,
    within,
)
from .denoiser import Denoiser
from .every import GuidanceEvery
from .guidance_file import Points, checked_weight, read_file, schedule
from .places import AtDenoised, SineVariance, Through
from .scorers import ScoreGuidance, discriminator_score, multi_label_score
from .stabilizers import STABILIZERS, Stabilized
from .sums import Sum

Guidance = Callable[..., Tensor]
CONFIGS = (GuidanceConfig, MethodsConfig, CleanConfig, ClassifierConfig)


@dataclass(frozen=True)
class Term:
    """One guidance by its flags, checked; `build` loads its classifier.

    :param parsed: the flags given; guide, methods, clean: their values.
    :param classifier: architecture of the checkpoint's; network: a scorer of clean images. One of them is None.
    :param classes: what a scorer tells apart; None for a log-score.
    :param rule: None for a scorer that has no logits.
    :param weight: in the sum of all terms, a number or points (t, weight).
    :param in_file: whether it is of --guidance_file.
    """

    parsed: ParsedFlags
    guide: GuidanceConfig
    methods: MethodsConfig
    clean: CleanConfig
    classifier: ClassifierConfig | None
    network: nn.Module | None
    classes: Classes | None
    rule: GuidanceRule | None
    weight: float | Points = 1.0
    in_file: bool = False

    @property
    def source(self) -> str:
        """The flag that names the scorer, with its value."""
        name = "classifier_path" if self.network is None else "clean_classifier"
        return f"--{name} {self.parsed.values[name]}"

    @property
    def guides(self) -> bool:
        """False with a scale of 0."""
        return self.guide.classifier_scale > 0

    def guided_at(self, timesteps: Sequence[int]) -> list[int]:
        """Return those of a run's timesteps at which there is guidance: with a scale, a weight, in the interval."""
        if not self.guides:
            return []
        weight = schedule(self.weight)
        inside = within(self.guide.guidance_interval, timesteps)
        return [t for t in inside if (weight(torch.tensor([t])).item() if callable(weight) else weight)]

    def warn_of_idle_flags(self, timesteps: Sequence[int], evaluations: Callable[[int], int]) -> None:
        """Warn where flags leave no guidance in a run over some timesteps, or a single evaluation of the classifier.

        :param evaluations: by the sampler, in a number of steps.
        """
        guided, every = self.guided_at(timesteps), self.methods.guidance_every
        source = f"{self.source}: " if self.in_file else ""
        if self.guides:
            warn_of_empty_interval(f"{source}--guidance_interval", self.guide.guidance_interval, timesteps)
        if guided and every >= (count := evaluations(len(guided))) > 1:
            logger.warning(
                f"{source}--guidance_every {every}: found for {count} evaluations: the classifier sees the first alone"
            )

    def identity(self) -> dict[str, Any]:
        """Return all that the samples depend on: flags that are not defaults, the content of files and networks."""
        configs = [config for config in (self.guide, self.methods, self.clean, self.classifier) if config is not None]
        flags = {name: value for config in configs for name, value in asdict(config).items()}
        del flags["classifier_path"]
        flags = {name: value for name, value in flags.items() if value != self.parsed.defaults[name]}
        return flags | {"weight": self.weight, "network": self.digest()}

    def digest(self) -> str:
        """Return the SHA-256 of the checkpoint, or of the clean network's weights (of what it computes, not how)."""
        return hash_file(self.guide.classifier_path) if self.network is None else digest(self.network)

    def build(
        self, run: RunConfig, compile: bool, diffusion: DiffusionProcess, model: Guidance, clip: bool,
        report: ScaleReport, observer: Callable | None = None,
    ) -> Guidance:  # fmt: skip
        """Load the scorer and return the guidance. The other arguments are those of `around`."""
        if self.network is None:
            build, half = partial(build_classifier, self.classifier), self.classifier.classifier_use_fp16
            scorer = setup.load_frozen(build, self.guide.classifier_path, half, run, compile)
        else:
            scorer = self.network.to(collectives.dev())
        return self.around(scorer, diffusion, model, clip, report, observer)

    def around(
        self, scorer: nn.Module, diffusion: DiffusionProcess, model: Guidance, clip: bool, report: ScaleReport,
        observer: Callable | None = None,
    ) -> Guidance:  # fmt: skip
        """Return the guidance by a scorer that is loaded.

        :param model: model(x_t, t, y=...), for the chain rule through it; clip: whether the sampler clamps x_0.
        :param report, observer: of `ClassifierGuidance`.
        """
        guide, clean = self.guide, self.clean
        interval = parse_interval(guide.guidance_interval) if guide.guidance_interval else None
        if self.network is None and self.methods.guidance_at != NOISY:
            scorer = AtZero(scorer)
        if self.rule is not None:
            guidance = ClassifierGuidance(scorer, self.rule, cap=guide.eds_cap, interval=interval, observer=observer)
            guidance.report = report
        else:
            score, takes = _flat(scorer), ()
            if clean.clean_output == LABELS:
                score, takes = _own_label(scorer, self.classes.count), ("y",)
            elif clean.clean_output == PROBABILITY:
                score = discriminator_score(scorer)
            guidance = ScoreGuidance(score, guide.classifier_scale, takes, interval)
        guidance = with_methods(guidance, self.methods, diffusion, model, clip)
        # A skipped step outside the interval must not get the guidance of one inside.
        skips = interval is not None and self.methods.guidance_every > 1
        return Sum([(guidance, 1.0, interval)]) if skips else guidance


def with_methods(
    guidance: Guidance, methods: MethodsConfig, diffusion: DiffusionProcess, model: Guidance, clip: bool
) -> Guidance:
    """Return a guidance at the place and over the steps that the flags ask for; by default it is the same object."""
    if methods.guidance_at != NOISY:
        through = partial(Through, denoiser=Denoiser.of(diffusion, model, clip))
        guidance = (AtDenoised if methods.guidance_at == DENOISED else through)(guidance)
    if methods.stabilizer:
        guidance = Stabilized(guidance, STABILIZERS[methods.stabilizer]())
    if methods.guidance_every > 1:
        guidance = GuidanceEvery(guidance, methods.guidance_every, methods.guidance_skipped)
    if methods.guidance_sine:
        # Of the t that guidance is told.
        steps = 1000 if diffusion.rescale_timesteps else diffusion.model_timesteps.original_num_steps
        guidance = SineVariance(guidance, diffusion.betas.max(), steps, methods.guidance_sine)
    return guidance


def read_terms(
    parsed: ParsedFlags, model: ModelConfig, model_path: str, diffusion: DiffusionConfig, needed: bool
) -> list[Term]:
    """Return the guidance of the command line, then the terms of --guidance_file.

    :param model: of the diffusion model in model_path, whose images the classifiers must fit.
    :param needed: whether a command line without a classifier is an error.
    :raises InputError: flags that contradict each other, a checkpoint that does not fit, a wrong file.
    """
    methods = parsed.make(MethodsConfig)
    named = [name for name in ("classifier_path", "clean_classifier") if parsed.values.get(name)]
    terms = []
    if named or (needed and not methods.guidance_file):
        terms.append(_read_term(parsed, model, model_path, diffusion))
    else:
        own = {name for config in CONFIGS[:3] for name in config.__dataclass_fields__} - {"guidance_file"}
        own |= set(_NETWORK_FLAGS)
        if lone := sorted(own & parsed.values.keys()):
            raise InputError(f"--{lone[0]}: found without a classifier, expected --classifier_path")
    for number, values in enumerate(read_file(methods.guidance_file)):
        with _naming(f"--guidance_file {methods.guidance_file}: terms[{number}]"):
            weight = checked_weight(values.pop("weight", 1.0))
            if isinstance(weight, list):
                check_not_rescaled(diffusion, f"weight {weight}")
            if outside := values.keys() & {"guidance_file", "trace", "trace_samples", "trace_maps"}:
                raise InputError(f"{min(outside)}: found in a term, expected on the command line")
            term = _read_term(flags_from(values, *CONFIGS), model, model_path, diffusion)
            terms.append(replace(term, weight=weight, in_file=True))
    if terms:
        _check_trace(terms)
    return terms


def shared_classes(known: list[tuple[str, Classes]]) -> Classes | None:
    """Return the classes that all networks know; None where there are no networks.

    :param known: a network's flag, with its value, and its classes; a conditional diffusion model's first.
    :raises InputError: their classes differ.
    """
    if not known:
        return None
    (first, shared), *others = known
    wanted = "expected a classifier of the same classes in the same order"
    for source, classes in others:
        if classes.count != shared.count:
            raise InputError(
                f"--num_classes: {first} has {shared.describe()}, but {source} has {classes.describe()}; {wanted}"
            )
        if clash := classes.clash(shared):
            raise InputError(f"{source}: {clash} for {first}; {wanted}")
        both = [seen for seen in (classes.seen, shared.seen) if seen is not None]
        seen = tuple(sorted(set(both[0]).intersection(*both))) if both else None
        shared = Classes(classes.count, max(classes.names, shared.names, key=len), seen or None)
    return shared


def recorded(terms: list[Term]) -> dict[str, Any]:
    """Return what run.json keeps of the terms besides the command line's flags."""
    found: dict[str, Any] = {"guidance_terms": [term.identity() for term in terms if term.in_file]}
    for term in terms:
        if term.network is not None and not term.in_file:
            found["clean_classifier_weights"] = term.digest()
    return {name: value for name, value in found.items() if value}


def total(terms: list[Term], guidances: list[Guidance]) -> Guidance:
    """Return the sum of the guidances with the weights of their terms; of one with weight 1, itself."""
    if len(terms) == 1 and terms[0].weight == 1:
        return guidances[0]
    return Sum([(guidance, schedule(term.weight)) for term, guidance in zip(terms, guidances, strict=True)])


def _read_term(parsed: ParsedFlags, model: ModelConfig, model_path: str, diffusion: DiffusionConfig) -> Term:
    guide, methods, clean = (parsed.make(config) for config in CONFIGS[:3])
    _check_flags(parsed, guide, methods, clean, diffusion)
    network = saved = classifier = None
    if clean.clean_classifier:
        network = clean_network(clean)
        outputs = count_outputs(network, clean, (model.in_channels, model.image_size, model.image_size))
        classes = Classes(outputs) if clean.clean_output in (LOGITS, LABELS) else None
    else:
        path = setup.trained_file("classifier_path", guide.classifier_path)
        parsed = ParsedFlags(parsed.values | {"classifier_path": path}, parsed.defaults)
        guide = parsed.make(GuidanceConfig)
        saved = setup.checkpoint_config("classifier_path", path, CLASSIFIER) or {}
        classifier = architecture_from(parsed, ClassifierConfig, saved, path)
        setup.check_same(setup.IMAGE_FLAGS, asdict(model), model_path, asdict(classifier), path)
        warn_of_training(diffusion, saved, path, methods.guidance_at == NOISY)
        classes = Classes.of_checkpoint(path, classifier.num_classes)
    rule = None
    if clean.clean_output == LOGITS:
        rule = guidance_rule(parsed, guide, methods, diffusion.diffusion_steps, classes.count)
    return Term(parsed, guide, methods, clean, classifier, network, classes, rule)


def warn_of_training(diffusion: DiffusionConfig, saved: dict, path: str, noisy: bool) -> None:
    """Warn where a classifier was trained on other noise levels than it will see. :param noisy: it looks at x_t."""
    if saved.get("noised", True) is False and noisy:
        logger.warning(
            f"--classifier_path {path}: trained on clean images, its gradient on noisy ones means little; "
            "expected a classifier trained with --noised True, or --guidance_at denoised"
        )
    for name in ("noise_schedule", "diffusion_steps") if noisy else ():
        used = getattr(diffusion, name)
        trained_on = saved.get(name, used)
        if trained_on != used:
            logger.warning(
                f"--{name}: the classifier was trained with {trained_on}, sampling uses {used}: it sees noise "
                f"levels other than it was told; expected a classifier trained with --{name} {used}"
            )
    if is_rescaled(diffusion) and noisy:
        logger.warning(
            "--rescale_timesteps: the classifier sees t * 1000 / T as the model does, but its training showed it t; "
            "they agree where --diffusion_steps is 1000"
        )


def _check_flags(
    parsed: ParsedFlags, guide: GuidanceConfig, methods: MethodsConfig, clean: CleanConfig, diffusion: DiffusionConfig
) -> None:
    """Raise InputError where flags contradict each other."""
    if clean.clean_classifier and guide.classifier_path:
        raise InputError("--clean_classifier: found together with --classifier_path, expected one; see --guidance_file")
    for name in _NETWORK_FLAGS if clean.clean_classifier else ():
        if name in parsed.values:
            raise InputError(f"--{name}: found with --clean_classifier, expected a --classifier_path of such a network")
    if "guidance_skipped" in parsed.values and methods.guidance_every == 1:
        raise InputError("--guidance_skipped: found without --guidance_every above 1, expected both")
    for name in ("clean_input", "clean_output", "clean_softplus", "decoder"):
        if name in parsed.values and not clean.clean_classifier:
            raise InputError(f"--{name}: found without --clean_classifier, expected both")
    if clean.clean_classifier and methods.guidance_at == NOISY:
        raise InputError(
            f"--clean_classifier {clean.clean_classifier}: found with --guidance_at noisy, expected denoised or "
            "through: it knows no noise"
        )
    if clean.clean_output != LOGITS:
        for name in ("eds", "guidance", "eds_cap", *RULE_FLAGS):
            if name in parsed.values and parsed.values[name] is not False:
                raise InputError(f"--{name}: found with --clean_output {clean.clean_output}, expected logits: a rule")
    if methods.guidance_at == THROUGH:
        check_not_rescaled(diffusion, "--guidance_at through")
    if guide.guidance_interval:
        check_not_rescaled(diffusion, f"--guidance_interval {guide.guidance_interval}")
    if guide.guidance in ("range", "timestep"):
        check_not_rescaled(diffusion, f"--guidance {guide.guidance}")


_NETWORK_FLAGS = [name for name in ClassifierConfig.__dataclass_fields__ if name.startswith("classifier_")]


def _check_trace(terms: list[Term]) -> None:
    """Raise InputError together with --trace where a trace could not tell what the guidance did."""
    first = terms[0]
    if not first.guide.trace:
        return
    odd = untraceable(asdict(first.methods))
    odd += [f"--clean_output {first.clean.clean_output}"] * (first.rule is None)
    odd += [f"--guidance_file {first.methods.guidance_file}"] * (len(terms) > 1)
    if odd:
        raise InputError(
            f"--trace: found together with {odd[0]}, expected one of them: a trace records what the classifier's "
            "gradient at x_t does in every step"
        )


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Begin the line of an InputError with the place that it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def _own_label(network: Guidance, count: int) -> Guidance:
    """Return the scorer log p(label y holds), y [B], for logits [B, count] of labels that do not exclude each other."""
    score = multi_label_score(network)
    # 1 for the label itself; -1, no say, for the others.
    return lambda x, t, y: score(x, t, 2 * F.one_hot(y, count) - 1)


def _flat(network: Guidance) -> Guidance:
    return lambda x, t: network(x, t).flatten()

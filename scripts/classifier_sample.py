"""Sample images guided by a noise-aware classifier, with --eds by entropy-driven sampling (Eq. 9-10).

    mpiexec -n 8 python scripts/classifier_sample.py --eds --classifier_scale 6.0 --use_ddim \\
        --timestep_respacing ddim25 --model_path uncond.pt --classifier_path classifier.pt --log_dir runs/eds

After an interruption the same command with the same --log_dir resumes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from ed_dpm_patches import ClassifierGuidance
from ed_dpm_patches.config import GuidanceConfig, parse_interval, with_rule_named
from ed_dpm_patches.scale_stats import summary_line
from ed_dpm_patches.trace import Trace
from guidance_methods.config import MethodsConfig, guidance_rule, with_methods
from guidance_methods.wrapped import reset
from guided_diffusion.config.class_labels import Classes
from guided_diffusion.config.configs import (
    ClassifierConfig,
    DiffusionConfig,
    LabelConfig,
    ModelConfig,
    RunConfig,
    SamplingConfig,
)
from guided_diffusion.config.create import build_classifier, build_diffusion, build_model
from guided_diffusion.config.flags import ParsedFlags, Parser, architecture_from
from guided_diffusion.diffusion.samplers import StepOutput
from guided_diffusion.diffusion.solvers import sampling_loop
from guided_diffusion.distributed import shutdown
from guided_diffusion.errors import InputError
from guided_diffusion.io.checkpoint import OtherNetwork
from guided_diffusion.io.checkpoint_flags import CLASSIFIER, SUPER_RES
from guided_diffusion.runs import logger
from guided_diffusion.sampling import setup, tallies
from guided_diffusion.sampling.run import Batch, SampleRun


def main() -> None:
    parsed = Parser(
        __doc__, SamplingConfig, GuidanceConfig, MethodsConfig, LabelConfig, ModelConfig, ClassifierConfig,
        DiffusionConfig, RunConfig,
    ).parse()  # fmt: skip
    run = parsed.make(RunConfig)
    directory = setup.begin(run)
    parsed = setup.choose_files(parsed, "model_path", "classifier_path")
    sampling, guide = parsed.make(SamplingConfig), parsed.make(GuidanceConfig)
    trace_path = setup.output_file("trace", guide.trace)
    with asking_whether_swapped():
        configs = resolve(parsed, sampling.model_path, guide.classifier_path)
    model_config, classifier_config, diffusion_config = configs
    classes = shared_classes(model_config, sampling.model_path, classifier_config, guide.classifier_path)
    labels = setup.plan_labels(parsed.make(LabelConfig), classes)
    methods = parsed.make(MethodsConfig)
    rule = guidance_rule(parsed, guide, methods, diffusion_config.diffusion_steps, classifier_config.num_classes)

    diffusion = build_diffusion(diffusion_config)
    loop = sampling_loop(diffusion, sampling.sampler, sampling.use_ddim)
    compile = setup.wants_compiling(sampling, diffusion.num_timesteps)
    with asking_whether_swapped():
        build = partial(build_model, model_config, diffusion_config)
        model = setup.load_frozen(build, sampling.model_path, model_config.use_fp16, run, compile)
        build, half = partial(build_classifier, classifier_config), classifier_config.classifier_use_fp16
        classifier = setup.load_frozen(build, guide.classifier_path, half, run, compile)

    trace = Trace(diffusion, guide.trace_samples, guide.trace_maps) if guide.trace else None
    guidance = ClassifierGuidance(
        classifier,
        rule,
        cap=guide.eds_cap,
        interval=parse_interval(guide.guidance_interval) if guide.guidance_interval else None,
        observer=trace.observe if trace is not None else None,
    )
    guidance = with_methods(guidance, guide, methods)
    shape = (model_config.in_channels, model_config.image_size, model_config.image_size)
    guides = guide.classifier_scale > 0

    def draw(batch: Batch):
        def observe_unguided(step: int, t: int, output: StepOutput) -> None:
            steps_B = torch.full((len(output.x_t),), t, device=output.x_t.device)
            diffusion.call(guidance, output.x_t, steps_B, {"y": batch.labels})

        callbacks = []
        if trace is not None:
            trace.begin(batch.indices[0])
            # Without a scale the trace observes the classifier, but not as cond_fn: even a guidance of 0 would change
            # DDIM's rounding.
            callbacks = [trace.step] if guides else [observe_unguided, trace.step]
        reset(guidance)
        return loop(
            model if model_config.class_cond else lambda x, t, y: model(x, t),
            **batch.loop_arguments(shape, *callbacks),
            clip_denoised=sampling.clip_denoised,
            cond_fn=guidance if guides else None,
            model_kwargs={"y": batch.labels},
        )

    plan = SampleRun.from_flags(
        with_rule_named(parsed.resolve(sampling, guide, methods, LabelConfig, run, *configs))
        | {"classes": labels.flag},
        shape=shape,
        directory=directory,
        defaults=parsed.defaults,
        labels=labels,
        extras_path=trace_path,
        extras_flags=("trace", "trace_samples", "trace_maps"),
        tally=guidance.report if guides or trace is not None else None,
        updated=with_rule_named,
    )
    output = plan.generate(draw, extras=trace.take if trace is not None else dict)
    summary = tallies.read_sum(plan.tally, output) if plan.tally is not None else None
    if summary is not None:  # over all ranks, and all commands that have worked on the run
        logger.log(summary_line(summary))


@contextmanager
def asking_whether_swapped() -> Iterator[None]:
    """Add the probable cause to the error about a network of another kind."""
    try:
        yield
    except OtherNetwork as error:
        if SUPER_RES in str(error):
            raise
        raise InputError(f"{error}; were --model_path and --classifier_path swapped?") from error


def resolve(parsed: ParsedFlags, model_path: str, classifier_path: str):
    """Return the configs of model, classifier and process from flags and checkpoints. InputError if they disagree."""
    model, diffusion = setup.model_configs(parsed, model_path, ModelConfig)
    classifier_saved = setup.checkpoint_config("classifier_path", classifier_path, CLASSIFIER)
    classifier = architecture_from(parsed, ClassifierConfig, classifier_saved, classifier_path)
    for name in ("image_size", "in_channels"):
        ours, theirs = getattr(model, name), getattr(classifier, name)
        if ours != theirs:
            raise InputError(f"--{name}: {model_path} has {ours}, but {classifier_path} has {theirs}")
    check_guide(diffusion, classifier_saved or {}, classifier_path)
    return model, classifier, diffusion


def check_guide(diffusion: DiffusionConfig, classifier_saved: dict, classifier_path: str) -> None:
    """Warn where a classifier was trained on other noise levels than it will see."""
    if classifier_saved.get("noised", True) is False:
        logger.warning(
            f"--classifier_path {classifier_path}: trained on clean images, its gradient on noisy ones means little; "
            "expected a classifier trained with --noised True"
        )
    for name in ("noise_schedule", "diffusion_steps"):
        used = getattr(diffusion, name)
        trained_on = classifier_saved.get(name, used)
        if trained_on != used:
            logger.warning(
                f"--{name}: the classifier was trained with {trained_on}, sampling uses {used}: it sees noise "
                f"levels other than it was told; expected a classifier trained with --{name} {used}"
            )
    if diffusion.rescale_timesteps and diffusion.diffusion_steps != 1000:
        logger.warning(
            "--rescale_timesteps: the classifier sees t * 1000 / T as the model does, but its training showed it t; "
            "they agree where --diffusion_steps is 1000"
        )


def shared_classes(
    model: ModelConfig, model_path: str, classifier: ClassifierConfig, classifier_path: str
) -> Classes:
    """Return the classifier's classes, seen by a conditional model too. InputError where their classes differ."""
    classes = Classes.of_checkpoint(classifier_path, classifier.num_classes)
    if not model.class_cond:
        return classes
    models = Classes.of_checkpoint(model_path, model.num_classes)
    wanted = "expected a classifier of the same classes in the same order"
    if classes.count != models.count:
        raise InputError(
            f"--num_classes: --model_path {model_path} has {models.describe()}, but --classifier_path "
            f"{classifier_path} has {classes.describe()}; {wanted}"
        )
    if clash := classes.clash(models):
        raise InputError(f"--classifier_path {classifier_path}: {clash} for --model_path {model_path}; {wanted}")
    both = [seen for seen in (classes.seen, models.seen) if seen is not None]
    seen = tuple(sorted(set(both[0]).intersection(*both))) if both else None
    return Classes(classes.count, max(classes.names, models.names, key=len), seen or None)


if __name__ == "__main__":
    shutdown.run_main(main)

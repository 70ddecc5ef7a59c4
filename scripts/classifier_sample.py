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

from ed_dpm_patches.config import GuidanceConfig, with_rule_named
from ed_dpm_patches.scale_stats import ScaleReport, summary_line
from ed_dpm_patches.trace import Trace
from guidance_methods.config import SAMPLING_CONFIGS, SECOND_MODELS, CleanConfig, MethodsConfig, PairConfig
from guidance_methods.pairs import without_labels
from guidance_methods.second_model import read_second_model
from guidance_methods.terms import read_terms, recorded, shared_classes, total
from guidance_methods.wrapped import reset
from guided_diffusion.config.class_labels import Classes
from guided_diffusion.config.configs import (
    LabelConfig,
    ModelConfig,
    RunConfig,
    SamplingConfig,
)
from guided_diffusion.config.create import build_diffusion, build_model
from guided_diffusion.config.flags import Parser
from guided_diffusion.diffusion.samplers import StepOutput
from guided_diffusion.diffusion.solvers import sampling_loop
from guided_diffusion.distributed import collectives, shutdown
from guided_diffusion.errors import InputError
from guided_diffusion.io.checkpoint import OtherNetwork
from guided_diffusion.io.checkpoint_flags import SUPER_RES
from guided_diffusion.runs import logger
from guided_diffusion.sampling import setup, tallies
from guided_diffusion.sampling.run import Batch, SampleRun


def main() -> None:
    parsed = Parser(__doc__, *SAMPLING_CONFIGS).parse()
    run = parsed.make(RunConfig)
    directory = setup.begin(run)
    parsed = setup.choose_files(parsed, "model_path", "classifier_path", "uncond_model_path", "weak_model_path")
    sampling, guide, cache = parsed.make(SamplingConfig), parsed.make(GuidanceConfig), setup.read_cache(parsed)
    trace_path = setup.output_file("trace", guide.trace)
    with asking_whether_swapped():
        model_config, diffusion_config = setup.model_configs(parsed, sampling.model_path, ModelConfig)
        second = read_second_model(parsed, model_config, sampling.model_path, diffusion_config)
        terms = read_terms(parsed, model_config, sampling.model_path, diffusion_config, needed=second is None)
    known = [(term.source, term.classes) for term in terms if term.classes is not None]
    if model_config.class_cond:
        models = Classes.of_checkpoint(sampling.model_path, model_config.num_classes)
        known = [(f"--model_path {sampling.model_path}", models), *known]
    labels = setup.plan_labels(parsed.make(LabelConfig), shared_classes(known))

    diffusion = build_diffusion(diffusion_config)
    loop = sampling_loop(diffusion, sampling.sampler, sampling.use_ddim)
    compile = setup.wants_compiling(sampling, diffusion.num_timesteps)
    trace = Trace(diffusion, guide.trace_samples, guide.trace_maps) if guide.trace else None
    observer, report = trace.observe if trace is not None else None, ScaleReport()
    with asking_whether_swapped():
        build = partial(build_model, model_config, diffusion_config)
        model = setup.load_frozen(build, sampling.model_path, model_config.use_fp16, run, compile)
        model = setup.with_cache(model, cache, diffusion.num_timesteps)
        model = model if model_config.class_cond else without_labels(model)
        if second is not None:
            model = second.build(model, run, compile, diffusion, cache)
        built = [term.build(run, compile, diffusion, model, sampling.clip_denoised, report, observer) for term in terms]
    for term in terms:
        term.warn_of_idle_flags(diffusion.timestep_map, sampling.evaluations)
    half = [term.classifier.classifier_use_fp16 for term in terms if term.classifier is not None]
    setup.warn_of_unused_amp(parsed, model_config.use_fp16, *half)
    guided = [t for term in terms for t in term.guided_at(diffusion.timestep_map)]
    setup.warn_of_noisy_start(sampling, diffusion, guided)
    guides = any(term.guides for term in terms)
    guidance = total(terms, built) if terms else None
    shape = (model_config.in_channels, model_config.image_size, model_config.image_size)

    def draw(batch: Batch):
        def observe_unguided(step: int, t: int, output: StepOutput) -> None:
            steps_B = torch.full((len(output.x_t),), t, device=output.x_t.device)
            diffusion.call(guidance, output.x_t, steps_B, kwargs)

        kwargs = {} if batch.labels is None else {"y": batch.labels}
        callbacks = []
        if trace is not None:
            trace.begin(batch.indices[0])
            # Without a scale the trace observes the classifier, but not as cond_fn: even a guidance of 0 would change
            # DDIM's rounding.
            callbacks = [trace.step] if guides else [observe_unguided, trace.step]
        reset(guidance)
        reset(model)
        return loop(
            model,
            **batch.loop_arguments(shape, *callbacks),
            **sampling.refining,
            cond_fn=guidance if guides else None,
            model_kwargs=kwargs,
        )

    classifiers = [term.classifier for term in terms if term.classifier is not None and not term.in_file]
    flags = parsed.resolve(
        sampling, cache, guide, MethodsConfig, CleanConfig, PairConfig, LabelConfig, run, model_config, *classifiers,
        diffusion_config,
    )  # fmt: skip
    del flags["guidance_file"]  # its content counts, which `recorded` has
    flags |= collectives.from_rank_0(lambda: recorded(terms)) | ({} if labels is None else {"classes": labels.flag})
    plan = SampleRun.from_flags(
        with_rule_named(flags),
        shape=shape,
        directory=directory,
        defaults=parsed.defaults,
        labels=labels,
        extras_path=trace_path,
        extras_flags=("trace", "trace_samples", "trace_maps"),
        tally=report if any(term.rule is not None for term in terms) and (guides or trace is not None) else None,
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
        if SUPER_RES in str(error) or any(f"--{flag}" in str(error) for flag in SECOND_MODELS):
            raise
        raise InputError(f"{error}; were --model_path and --classifier_path swapped?") from error


if __name__ == "__main__":
    shutdown.run_main(main)

"""Sample images from a diffusion model, without a classifier.

    mpiexec -n 8 python scripts/image_sample.py --model_path ema_0.9999_300000.pt --num_samples 50000 \\
        --timestep_respacing 250 --log_dir runs/samples

After an interruption the same command with the same --log_dir resumes.
"""

from __future__ import annotations

from functools import partial

from guided_diffusion.config.class_labels import Classes
from guided_diffusion.config.configs import (
    CacheConfig,
    DiffusionConfig,
    LabelConfig,
    ModelConfig,
    RunConfig,
    SamplingConfig,
)
from guided_diffusion.config.create import build_diffusion, build_model
from guided_diffusion.config.flags import Parser
from guided_diffusion.diffusion.solvers import sampling_loop
from guided_diffusion.distributed import shutdown
from guided_diffusion.errors import InputError
from guided_diffusion.sampling import setup
from guided_diffusion.sampling.run import Batch, SampleRun


def main() -> None:
    configs = SamplingConfig, CacheConfig, LabelConfig, ModelConfig, DiffusionConfig, RunConfig
    parsed = Parser(__doc__, *configs).parse()
    run, label_config = parsed.make(RunConfig), parsed.make(LabelConfig)
    directory = setup.begin(run)
    parsed = setup.choose_files(parsed, "model_path")
    sampling, cache = parsed.make(SamplingConfig), setup.read_cache(parsed)
    config, diffusion_config = setup.model_configs(parsed, sampling.model_path, ModelConfig)
    if not config.class_cond and (label_config.classes or label_config.balanced):
        raise InputError("--classes, --balanced: this model takes no labels, expected one trained with --class_cond")
    setup.warn_of_unused_amp(parsed, config.use_fp16)
    labels = None
    if config.class_cond:
        labels = setup.plan_labels(label_config, Classes.of_checkpoint(sampling.model_path, config.num_classes))

    diffusion = build_diffusion(diffusion_config)
    loop = sampling_loop(diffusion, sampling.sampler, sampling.use_ddim)
    compile = setup.wants_compiling(sampling, diffusion.num_timesteps)
    build = partial(build_model, config, diffusion_config)
    model = setup.load_frozen(build, sampling.model_path, config.use_fp16, run, compile)
    model = setup.with_cache(model, cache, diffusion.num_timesteps)
    shape = (config.in_channels, config.image_size, config.image_size)

    def draw(batch: Batch):
        return loop(
            model,
            **batch.loop_arguments(shape),
            **sampling.refining,
            model_kwargs={"y": batch.labels} if config.class_cond else {},
        )

    flags = parsed.resolve(sampling, cache, label_config, run, config, diffusion_config)
    SampleRun.from_flags(
        flags | ({"classes": labels.flag} if labels is not None else {}),
        shape=shape,
        directory=directory,
        defaults=parsed.defaults,
        labels=labels,
    ).generate(draw)


if __name__ == "__main__":
    shutdown.run_main(main)

"""Upsample a batch of images with a super-resolution diffusion model.

    mpiexec -n 8 python scripts/super_res_sample.py --base_samples samples_10000x64x64x3.npz \\
        --model_path 64_256_upsampler.pt --timestep_respacing 250 --log_dir runs/upsampled

Sample i is made from image i of the npz or folder (repeating them when there are fewer). After an interruption the same
command with the same --log_dir resumes.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.config.class_labels import Classes
from guided_diffusion.config.configs import (
    CacheConfig,
    DiffusionConfig,
    ReadingConfig,
    RunConfig,
    SamplingConfig,
    SuperResConfig,
)
from guided_diffusion.config.create import build_diffusion, build_super_res_model
from guided_diffusion.config.flags import Parser, flag
from guided_diffusion.data.datasets import warn_of_labels
from guided_diffusion.data.image_files import EXPECTED, ImageFiles, is_image_archive, list_images
from guided_diffusion.data.image_labels import read_labels, read_sample_labels
from guided_diffusion.data.image_oddities import warn_of_oddities
from guided_diffusion.diffusion.solvers import sampling_loop
from guided_diffusion.distributed import collectives, shutdown
from guided_diffusion.errors import InputError
from guided_diffusion.io.images import Reading, read_image
from guided_diffusion.io.reading import check_readable, decoding, open_regular
from guided_diffusion.runs import logger
from guided_diffusion.sampling import setup
from guided_diffusion.sampling.result_folders import find_npz
from guided_diffusion.sampling.run import Batch, SampleRun


@dataclass(frozen=True)
class BaseConfig:
    """Images to upsample."""

    base_samples: str = flag(
        "",
        "npz with arr_0, uint8 [N, H, W, C], and arr_1, labels, with --class_cond; or a run's folder, or a folder, "
        "zip or tar of images",
    )
    labels: str = flag("", "source of a folder's labels as in training: auto (as \"\"), folder, filename or a FILE.csv")


def main() -> None:
    configs = SamplingConfig, CacheConfig, BaseConfig, ReadingConfig, SuperResConfig, DiffusionConfig, RunConfig
    parsed = Parser(__doc__, *configs).parse()
    run = parsed.make(RunConfig)
    directory = setup.begin(run)
    parsed = setup.choose_files(parsed, "model_path")
    sampling, cache = parsed.make(SamplingConfig), setup.read_cache(parsed)
    config, diffusion_config = setup.model_configs(parsed, sampling.model_path, SuperResConfig)
    base_config = parsed.make(BaseConfig)
    classes = Classes.of_checkpoint(sampling.model_path, config.num_classes)
    setup.warn_of_unused_labels(parsed, config.class_cond)
    setup.warn_of_unused_amp(parsed, config.use_fp16)
    reading = parsed.make(ReadingConfig).reading
    base = BaseImages(base_config.base_samples, config, base_config.labels or "auto", classes.names or None, reading)
    if base.labels is not None and (unseen := classes.unseen(np.unique(base.labels).tolist())):
        logger.warning(f"--base_samples: it has labels that training never saw: {classes.listed(unseen)}")

    diffusion = build_diffusion(diffusion_config)
    if sampling.use_ddim and not sampling.sampler:
        logger.warning("--use_ddim: not used, upstream's upsampler ignores it; --sampler ddim samples with DDIM")
    loop = sampling_loop(diffusion, sampling.sampler, sampling.use_ddim and sampling.sampler != "")
    compile = setup.wants_compiling(sampling, diffusion.num_timesteps)
    build = partial(build_super_res_model, config, diffusion_config)
    model = setup.load_frozen(build, sampling.model_path, config.use_fp16, run, compile)
    model = setup.with_cache(model, cache, diffusion.num_timesteps)
    shape = (config.in_channels, config.large_size, config.large_size)

    def draw(batch: Batch):
        return loop(
            model,
            **batch.loop_arguments(shape),
            **sampling.refining,
            model_kwargs=base.condition(batch.indices),
        )

    SampleRun.from_flags(
        parsed.resolve(sampling, cache, base_config, run, config, diffusion_config) | base.facts,
        shape=shape,
        directory=directory,
        defaults=parsed.defaults,
    ).generate(draw)


class BaseImages:
    """The low-resolution images of an npz, a run's folder, a folder or an archive. InputError if they do not fit.

    Files called LABEL_INDEX carry the number of their class and, in a folder, their order. Other files' labels are read
    as in training, by `rule`, and numbered by the model's class names.
    """

    def __init__(self, path: str, config: SuperResConfig, rule: str, names: Sequence[str] | None, reading: Reading):
        if not path:
            raise InputError("--base_samples: missing, expected an npz file or a folder of images")
        name, self.facts = f"--base_samples {path}", {}
        if os.path.isdir(path):
            npz = find_npz(Path(path), lambda: list_images(path))
        else:
            check_readable(name, path)
            npz = None if is_image_archive(path) else Path(path)
        if npz:
            if rule != "auto":
                logger.warning(f"--labels {rule}: not read, {npz} has its labels in arr_1")
            self._read_npz(os.fspath(npz), name, config.class_cond)
        else:
            self._read_files(list_images(path, name), config, rule, names, reading)
        if npz != Path(path):  # of a named npz file run.json has the digest
            self.facts = {"base_images": f"of SHA-256 {hashlib.sha256(self.images).hexdigest()[:12]}"}
        side, channels = config.small_size, config.in_channels
        well_shaped = self.images.ndim == 4 and self.images.shape[1:] == (side, side, channels) and len(self.images) > 0
        if not well_shaped or self.images.dtype != np.uint8:
            found = f"{self.images.dtype} {list(self.images.shape)}"
            raise InputError(f"--base_samples {path}: found {found}, expected uint8 [N, {side}, {side}, {channels}]")
        if self.labels is not None:
            self._check_labels(path, config.num_classes)

    def _read_npz(self, path: str, name: str, class_cond: bool) -> None:
        with decoding(name, "not a readable npz with the arrays needed"), open_regular(path) as file:
            if not zipfile.is_zipfile(file):
                raise ValueError("no npz archive, or a truncated one")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                self.images = arrays["arr_0"]
                self.labels = arrays["arr_1"] if class_cond else None

    def _read_files(
        self, files: ImageFiles, config: SuperResConfig, rule: str, names: Sequence[str] | None, reading: Reading
    ) -> None:
        if skipped := files.describe_skipped():
            logger.warning(skipped)
        if not files.names:
            raise InputError(f"{files.title}: found no images, expected some of {EXPECTED}")
        if files.random_access:
            warn_of_oddities(files, reading, logger.warning)
        numbers, self.labels = read_sample_labels(files) if rule == "auto" else None, None
        if config.class_cond and numbers:
            self.labels = np.array(numbers, dtype=np.int64)
        elif config.class_cond:
            found = read_labels(files, rule, names)
            logger.log(f"{files.title}: {found.describe()}")
            warn_of_labels(found)
            self.labels = np.array(found.number(files, names), dtype=np.int64)
        mode, side = "L" if config.in_channels == 1 else "RGB", config.small_size
        self.images = np.empty((len(files), side, side, config.in_channels), dtype=np.uint8)
        for i, (name, file) in enumerate(files.stream()):
            image = read_image(f"{files.title}: {name}", file, mode, reading)
            if image.size != (side, side):
                raise InputError(
                    f"{files.title}: {name}: found {image.height}x{image.width} pixels, expected {side}x{side}"
                )
            self.images[i] = np.asarray(image).reshape(self.images.shape[1:])

    def _check_labels(self, path: str, num_classes: int) -> None:
        if self.labels.shape != (len(self.images),) or not np.issubdtype(self.labels.dtype, np.integer):
            found = f"{self.labels.dtype} {list(self.labels.shape)}"
            raise InputError(f"--base_samples {path}: arr_1 is {found}, expected whole numbers [{len(self.images)}]")
        unknown = self.labels[(self.labels < 0) | (self.labels >= num_classes)]
        if unknown.size:
            raise InputError(f"--base_samples {path}: arr_1 has label {unknown[0]}, expected 0 to {num_classes - 1}")

    def condition(self, indices: range) -> dict[str, Tensor]:
        """Return low_res in [-1, 1], and labels for a class-conditional model."""
        rows = [i % len(self.images) for i in indices]
        images = torch.from_numpy(self.images[rows]).to(collectives.dev()).float() / 127.5 - 1.0
        condition = {"low_res": images.permute(0, 3, 1, 2)}
        if self.labels is not None:
            condition["y"] = torch.from_numpy(self.labels[rows]).to(collectives.dev(), torch.long)
        return condition


if __name__ == "__main__":
    shutdown.run_main(main)

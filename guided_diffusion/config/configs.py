"""Typed configs with upstream's flags and ours, from which create.py builds networks and process."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from guided_diffusion.config.flags import flag
from guided_diffusion.data import image_labels
from guided_diffusion.diffusion import nonfinite
from guided_diffusion.diffusion.solvers import SAMPLERS
from guided_diffusion.diffusion.thresholding import DynamicThreshold
from guided_diffusion.distributed import collectives, meeting
from guided_diffusion.errors import InputError
from guided_diffusion.io.images import Reading
from guided_diffusion.models.feature_cache import SCHEDULES, UNIFORM
from guided_diffusion.models.mixed_precision import AMP_DTYPES, fastest_amp

NUM_CLASSES = 1000  # upstream's constant: the default of --num_classes, nowhere assumed


@dataclass(frozen=True)
class DiffusionConfig:
    """Diffusion process."""

    learn_sigma: bool = flag(False, "the model also predicts the variance", architecture=True)
    diffusion_steps: int = flag(1000, "timesteps T", minimum=1, maximum=1_000_000, architecture=True)
    noise_schedule: str = flag("linear", "betas over time", choices=("linear", "cosine"), architecture=True)
    timestep_respacing: str = flag(
        "", 'timesteps to use: a count such as "250", counts per section "10,15,20", "ddim25", or "" for all'
    )
    use_kl: bool = flag(False, "train on the variational bound alone")
    predict_xstart: bool = flag(False, "the model predicts x_0 instead of the noise", architecture=True)
    rescale_timesteps: bool = flag(False, "the model sees t * 1000 / T", architecture=True)
    rescale_learned_sigmas: bool = flag(False, "weigh the bound by T / 1000 in training")


@dataclass(frozen=True)
class _UNetConfig:
    """The flags that both UNets share."""

    num_channels: int = flag(128, "width of the first level, a multiple of 32", minimum=32, architecture=True)
    num_res_blocks: int = flag(2, "residual blocks per level", minimum=1, architecture=True)
    num_heads: int = flag(4, "attention heads, where --num_head_channels is -1", minimum=1, architecture=True)
    num_heads_upsample: int = flag(-1, "heads in the expanding half; -1: as --num_heads", architecture=True)
    num_head_channels: int = flag(-1, "channels per attention head; -1: use --num_heads", architecture=True)
    attention_resolutions: str = flag("16,8", "image sides, pixels, at which attention is used", architecture=True)
    channel_mult: str = flag("", 'width of each level over --num_channels, "1,2,0.5"; "": by size', architecture=True)
    dropout: float = flag(0.0, "probability of dropping an activation in training", minimum=0.0, maximum=1.0)
    class_cond: bool = flag(False, "condition the model on the class label", architecture=True)
    use_checkpoint: bool = flag(False, "recompute activations in the backward pass: less memory, more time")
    use_scale_shift_norm: bool = flag(True, "the embedding scales and shifts the norms", architecture=True)
    resblock_updown: bool = flag(False, "resample inside residual blocks", architecture=True)
    use_fp16: bool = flag(False, "mixed precision for the diffusion model, see --amp_dtype")
    num_classes: int = flag(NUM_CLASSES, "classes of the data", minimum=1, architecture=True)
    in_channels: int = flag(3, "channels of the images, grey or colour", choices=(1, 3), architecture=True)


@dataclass(frozen=True)
class ModelConfig(_UNetConfig):
    """Diffusion model (UNet)."""

    image_size: int = flag(64, "side of the images, pixels", minimum=1, architecture=True)
    use_new_attention_order: bool = flag(False, "channel order of newer attention checkpoints", architecture=True)


@dataclass(frozen=True)
class SuperResConfig(_UNetConfig):
    """Super-resolution model (UNet)."""

    large_size: int = flag(256, "side of the upsampled images, pixels", minimum=1, architecture=True)
    small_size: int = flag(64, "side of the low-resolution images, pixels", minimum=1, architecture=True)


@dataclass(frozen=True)
class ClassifierConfig:
    """Noise-aware classifier."""

    image_size: int = flag(64, "side of the images, pixels", minimum=1, architecture=True)
    classifier_use_fp16: bool = flag(False, "mixed precision for the classifier, see --amp_dtype")
    classifier_width: int = flag(128, "width of the first level, a multiple of 32", minimum=32, architecture=True)
    classifier_depth: int = flag(2, "residual blocks per level", minimum=1, architecture=True)
    classifier_attention_resolutions: str = flag("32,16,8", "image sides with attention, pixels", architecture=True)
    classifier_use_scale_shift_norm: bool = flag(True, "the embedding scales and shifts the norms", architecture=True)
    classifier_resblock_updown: bool = flag(True, "resample inside residual blocks", architecture=True)
    classifier_pool: str = flag(
        "attention",
        "how the last feature map becomes logits",
        choices=("adaptive", "attention", "spatial", "spatial_v2"),
        architecture=True,
    )
    num_classes: int = flag(NUM_CLASSES, "classes of the data", minimum=1, architecture=True)
    in_channels: int = flag(3, "channels of the images, grey or colour", choices=(1, 3), architecture=True)
    classifier_num_head_channels: int = flag(64, "channels per attention head", minimum=1, architecture=True)
    classifier_channel_mult: str = flag("", 'relative width of each level, "1,2,4"; "": by size', architecture=True)


@dataclass(frozen=True)
class RunConfig:
    """Run."""

    log_dir: str = flag("", "directory of the run's files; default runs/<script>-<time>, or OPENAI_LOGDIR")
    seed: int = flag(0, "seed of all random draws", minimum=0)
    amp_dtype: str = flag(
        "fp16",
        "dtype of mixed precision, where enabled; auto: fp16 on CUDA, bf16 on a CPU that has units for it, else fp32",
        choices=(*AMP_DTYPES, "auto"),
    )
    meet_timeout: int = flag(meeting.DEFAULT, meeting.HELP, minimum=0)

    def __post_init__(self) -> None:
        if self.amp_dtype == "auto":  # the run's record has what it was computed in, on whatever machine it goes on
            object.__setattr__(self, "amp_dtype", fastest_amp(collectives.dev()))


@dataclass(frozen=True)
class SamplingConfig:
    """Sampling."""

    clip_denoised: bool = flag(True, "clamp the model's guess of x_0 to [-1, 1]")
    num_samples: int = flag(10000, "number of images to sample", minimum=1)
    batch_size: int = flag(16, "images per batch in each process", minimum=1)
    dynamic_threshold: float = flag(
        0.0,
        "in place of that clamp: clamp each image's x_0, guided, at this quantile of its |values|, at least 1, and "
        "divide by it (Imagen: 0.995); 0: off",
        minimum=0.0,
        maximum=1.0,
    )
    use_ddim: bool = flag(False, "sample with DDIM (deterministic) instead of DDPM")
    sampler: str = flag(
        "",
        'dpmpp2m, unipc and strang need fewer steps; heun evaluates twice a step; "": ddim with --use_ddim, else ddpm',
        choices=SAMPLERS,
    )
    model_path: str = flag("", "checkpoint of the diffusion model, .pt or .safetensors, or its training's folder")
    save_images: bool = flag(False, "also write a PNG grid of the first images beside the npz")
    compile: bool = flag(
        None, "compile the networks, one to three minutes each; by default on CUDA in long runs", type=bool
    )
    nonfinite: str = flag(
        "stop", "for a sample with inf or nan: stop, or skip it and list it in nonfinite.json", choices=nonfinite.MODES
    )

    def __post_init__(self) -> None:
        if 0 < self.dynamic_threshold < 0.5:
            raise InputError(f"--dynamic_threshold: found {self.dynamic_threshold}, expected 0 (off) or 0.5 to 1")
        if self.dynamic_threshold and not self.clip_denoised:
            raise InputError("--dynamic_threshold: found with --clip_denoised False, whose clamp it replaces")

    def evaluations(self, steps: int) -> int:
        """Return how often the sampler evaluates the model in a number of steps."""
        return SAMPLERS[self.sampler].evaluations(steps) if self.sampler else steps

    @property
    def refining(self) -> dict[str, Any]:
        """Return what is done to the predicted x_0, as arguments of the sampling loops."""
        threshold = DynamicThreshold(self.dynamic_threshold) if self.dynamic_threshold else None
        return {"clip_denoised": self.clip_denoised, "denoised_fn": threshold}


@dataclass(frozen=True)
class CacheConfig:
    """Feature cache of the diffusion model: docs/sampling.md."""

    cache_every: int = flag(
        1, "run the whole model at one of N steps, between them its outermost blocks alone, on cached features",
        minimum=1,
    )  # fmt: skip
    cache_depth: int = flag(1, "blocks on each side of the model that run at every step", minimum=1)
    cache_schedule: str = flag(
        UNIFORM, "where the whole model runs: at every N-th step, or most often about 0.4 of the way", choices=SCHEDULES
    )


@dataclass(frozen=True)
class LabelConfig:
    """Class labels of the samples."""

    classes: str = flag(
        "",
        'classes to sample, by number or name, "3,dog"; name:10 is the class called 10; "": all seen in training',
    )
    balanced: bool = flag(False, "cycle through the classes instead of drawing them at random")


@dataclass(frozen=True)
class ReadingConfig:
    """Reading of image files."""

    bit_depth: int = flag(16, "bits used by the values of 16-bit files", minimum=8, maximum=16)
    exif_transpose: bool = flag(False, "rotate images by their EXIF orientation")
    alpha: str = flag(
        "keep", "colour behind transparent pixels; keep: their hidden colours", choices=("keep", "white", "black")
    )

    @property
    def reading(self) -> Reading:
        """Return how pixels become 8 bits."""
        return Reading(self.bit_depth, self.exif_transpose, self.alpha)


@dataclass(frozen=True)
class DataConfig(ReadingConfig):
    """Training data."""

    data_dir: str = flag("", "folder of images, searched recursively, or a zip or tar archive")
    labels: str = flag("auto", image_labels.HELP)
    random_flip: bool = flag(True, "mirror images left to right at random")
    data_workers: int = flag(1, "processes that read images ahead, per training process", minimum=1)


def decay_rates(text: str) -> str:
    """Check rates such as "0.99,0.9999"; argparse.ArgumentTypeError unless each is in 0..1."""
    for rate in text.split(","):
        try:
            valid = 0 <= float(rate) <= 1
        except ValueError:
            valid = False
        if not valid:
            raise argparse.ArgumentTypeError(f"found {rate!r}, expected numbers from 0 to 1 such as 0.99,0.9999")
    return text


@dataclass(frozen=True)
class _AnyTrainConfig:
    """The flags that both kinds of training share."""

    schedule_sampler: str = flag(
        "uniform", "which timesteps to train on", choices=("uniform", "loss-second-moment")
    )
    weight_decay: float = flag(0.0, "weight decay of AdamW", minimum=0.0)
    microbatch: int = flag(-1, "images per forward and backward pass, to save memory; -1: the whole batch", minimum=-1)
    log_interval: int = flag(10, "steps between entries of the log", minimum=1)
    save_interval: int = flag(10000, "steps between checkpoints, from which the same command resumes", minimum=1)
    keep: int = flag(0, "number of newest checkpoints to keep; 0: all", minimum=0)
    init_from: str = flag("", "checkpoint whose weights a new run starts from; it may have other classes, or none")
    compile: bool = flag(False, "compile the network first, a minute or more; changes the weights by rounding")


@dataclass(frozen=True)
class TrainConfig(_AnyTrainConfig):
    """Training."""

    lr: float = flag(1e-4, "learning rate of AdamW", minimum=0.0)
    lr_anneal_steps: int = flag(0, "steps over which the learning rate falls to 0, then stop; 0: constant", minimum=0)
    batch_size: int = flag(1, "images per step in each process", minimum=1)
    ema_rate: str = flag(
        "0.9999", "decay of the averaged weights, 0 to 1; several separated by commas: 0.99,0.9999", type=decay_rates
    )
    resume_checkpoint: str = flag("", "model%06d.pt of another run to resume from, or that run's folder")
    fp16_scale_growth: float = flag(1e-3, "growth of log2(loss scale) per step in float16", minimum=0.0)
    iterations: int = flag(0, "total number of steps; 0: as --lr_anneal_steps says", minimum=0)


@dataclass(frozen=True)
class ClassifierTrainConfig(_AnyTrainConfig):
    """Classifier training."""

    val_data_dir: str = flag("", "folder of validation images; none: no validation")
    noised: bool = flag(True, "train on noised images; False: on clean ones, as a feature network")
    iterations: int = flag(150000, "number of steps", minimum=1)
    lr: float = flag(3e-4, "learning rate of AdamW", minimum=0.0)
    anneal_lr: bool = flag(False, "let the learning rate fall linearly to 0")
    batch_size: int = flag(4, "images per step in each process", minimum=1)
    resume_checkpoint: str = flag(
        "", "model%06d.pt of another run to resume from, with opt%06d.pt beside it, or that run's folder"
    )
    eval_interval: int = flag(5, "steps between validation batches", minimum=1)
    random_crop: bool = flag(True, "crop training images at random scale and place")
    keep_best: str = flag(
        "",
        "value of the validation log, such as val_acc@1 or val_loss_q0, by which the best checkpoint is kept, also "
        'beyond --keep, and used where the folder is given; "": none',
    )

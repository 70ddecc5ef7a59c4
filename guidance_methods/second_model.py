"""The second diffusion model that flags ask for: classifier-free guidance and autoguidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from ed_dpm_patches.config import parse_interval
from guided_diffusion.config.class_labels import Classes
from guided_diffusion.config.configs import CacheConfig, DiffusionConfig, ModelConfig, RunConfig
from guided_diffusion.config.create import build_model
from guided_diffusion.config.flags import ParsedFlags
from guided_diffusion.diffusion.process import DiffusionProcess
from guided_diffusion.errors import InputError
from guided_diffusion.runs import logger
from guided_diffusion.sampling import setup

from .config import SECOND_MODELS, PairConfig, check_not_rescaled, warn_of_empty_interval
from .denoiser import EPS, X_0, all_alphas_cumprod
from .pairs import Pair, without_labels
from .projection import AdaptiveProjection

_APG = ("apg_eta", "apg_norm", "apg_momentum")


@dataclass(frozen=True)
class SecondModel:
    """The model that a pair leads away from, checked; `build` loads it.

    :param path: its checkpoint; model, diffusion: what the first model and its process are, diffusion's learn_sigma
        that of this one.
    """

    path: str
    pair: PairConfig
    scale: float
    model: ModelConfig
    diffusion: DiffusionConfig

    def build(
        self, first: Callable[..., Tensor], run: RunConfig, compile: bool, diffusion: DiffusionProcess,
        cache: CacheConfig,
    ) -> Callable[..., Tensor]:  # fmt: skip
        """Return the `Pair`. :param first: model(x_t, t, y=...)."""
        build = partial(build_model, self.model, self.diffusion)
        weak = setup.load_frozen(build, self.path, self.model.use_fp16, run, compile)
        weak = setup.with_cache(weak, cache, diffusion.num_timesteps)
        pair = self.pair
        projection = None
        if (pair.apg_eta, pair.apg_norm, pair.apg_momentum) != (1.0, 0.0, 0.0):
            predicts = X_0 if self.diffusion.predict_xstart else EPS
            projection = AdaptiveProjection(
                all_alphas_cumprod(diffusion), predicts, pair.apg_eta, pair.apg_norm, pair.apg_momentum
            )
        warn_of_empty_interval("--pair_interval", pair.pair_interval, diffusion.timestep_map)
        interval = parse_interval(pair.pair_interval) if pair.pair_interval else None
        return Pair(first, weak if self.model.class_cond else without_labels(weak), self.scale, interval, projection)


def read_second_model(
    parsed: ParsedFlags, model: ModelConfig, model_path: str, diffusion: DiffusionConfig
) -> SecondModel | None:
    """Return the second model that flags name, or None. InputError where it does not go with the first."""
    pair = parsed.make(PairConfig)
    named = [flag for flag in SECOND_MODELS if getattr(pair, flag)]
    if len(named) > 1:
        raise InputError("--weak_model_path: found together with --uncond_model_path, expected one of them")
    lone = [flag for flag in (*SECOND_MODELS.values(), "pair_interval", *_APG) if flag in parsed.values]
    lone = [name for name in lone if not named or name in {*SECOND_MODELS.values()} - {SECOND_MODELS[named[0]]}]
    if lone:
        wanted = [path for path, scale in SECOND_MODELS.items() if scale == lone[0]] or [*SECOND_MODELS]
        raise InputError(f"--{lone[0]}: found without --{' or --'.join(wanted)}, expected both")
    if not named:
        return None
    (flag,) = named
    path = getattr(pair, flag)
    if getattr(pair, SECOND_MODELS[flag]) == 1:
        logger.warning(f"--{SECOND_MODELS[flag]}: found 1, which is --model_path alone: --{flag} will have no say")
    own, process, is_told = setup.second_model_configs(flag, path, model, diffusion)
    if flag == "uncond_model_path":
        if not model.class_cond:
            raise InputError(
                f"--model_path {model_path}: found a model without classes, expected one with, for --{flag}"
            )
        if is_told and own.class_cond:
            raise InputError(f"--{flag} {path}: found a model with classes, expected an unconditional one")
        own = replace(own, class_cond=False)
    elif own.class_cond != model.class_cond or (own.class_cond and own.num_classes != model.num_classes):
        other = "; for one without classes there is --uncond_model_path" if model.class_cond > own.class_cond else ""
        raise InputError(
            f"--{flag} {path}: found a model of other classes than {model_path}, expected the same{other}"
        )
    elif own.class_cond:
        ours, theirs = (Classes.of_checkpoint(file, model.num_classes) for file in (model_path, path))
        if clash := theirs.clash(ours):
            raise InputError(f"--{flag} {path}: {clash} for --model_path {model_path}; expected the same classes")
    setup.check_same_process(model, diffusion, model_path, own, process, path)
    for name in (*_APG, "pair_interval"):
        if name in parsed.values:
            check_not_rescaled(diffusion, f"--{name}")
    return SecondModel(path, pair, getattr(pair, SECOND_MODELS[flag]), replace(own, use_fp16=model.use_fp16), process)

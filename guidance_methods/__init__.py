"""Other ways to guide than the paper's, and the same guidance in other libraries' samplers.

A guidance is a callable guidance(x_t [B, ...], t [B], y=..., **kwargs) -> the gradient of a log-score at x_t, already
scaled, shaped like x_t: what every sampler here takes as `cond_fn`. `ed_dpm_patches.ClassifierGuidance` is one.
Importing this package adds its rules to `ed_dpm_patches.rules.RULES`.
"""

from ed_dpm_patches.rules import RULES

from .clean import CleanClassifier, Decoded, with_softplus
from .denoiser import Denoiser
from .denoisers import GuidedDenoiser
from .diffusers_unet import GuidedUNet, as_diffusers, scheduler_options
from .divergences import ForwardKLRule, JensenShannonRule, ReverseKLRule
from .elucd import ElucdRule
from .entropy_scaled import EntropyScaled, entropy_guidance
from .every import GuidanceEvery
from .pairs import Pair, with_null_label, without_labels
from .places import AtDenoised, SineVariance, Through
from .projection import AdaptiveProjection
from .scorers import ScoreGuidance, discriminator_score, multi_label_score
from .several_classes import MultiRule, NegativeRule
from .stabilizers import STABILIZERS, Adam, Ema, Stabilized, Stabilizer
from .sums import Sum

RULES["elucd"] = ElucdRule
RULES["kl"] = ForwardKLRule
RULES["reverse-kl"] = ReverseKLRule
RULES["js"] = JensenShannonRule
RULES["multi"] = MultiRule
RULES["negative"] = NegativeRule

__all__ = [
    "Adam",
    "AdaptiveProjection",
    "AtDenoised",
    "CleanClassifier",
    "Decoded",
    "Denoiser",
    "ElucdRule",
    "Ema",
    "EntropyScaled",
    "ForwardKLRule",
    "GuidanceEvery",
    "GuidedDenoiser",
    "GuidedUNet",
    "JensenShannonRule",
    "MultiRule",
    "NegativeRule",
    "Pair",
    "ReverseKLRule",
    "STABILIZERS",
    "ScoreGuidance",
    "SineVariance",
    "Stabilized",
    "Stabilizer",
    "Sum",
    "Through",
    "as_diffusers",
    "discriminator_score",
    "entropy_guidance",
    "multi_label_score",
    "scheduler_options",
    "with_null_label",
    "with_softplus",
    "without_labels",
]

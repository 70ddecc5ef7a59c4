"""Other ways to guide than the paper's, and the same guidance in other libraries' samplers.

A guidance is a callable guidance(x_t [B, ...], t [B], y=..., **kwargs) -> the gradient of a log-score at x_t, already
scaled, shaped like x_t: what every sampler here takes as `cond_fn`. `ed_dpm_patches.ClassifierGuidance` is one.
Importing this package adds its rules to `ed_dpm_patches.rules.RULES`.
"""

from ed_dpm_patches.rules import RULES

from .divergences import ForwardKLRule, JensenShannonRule, ReverseKLRule
from .elucd import ElucdRule
from .entropy_scaled import EntropyScaled, entropy_guidance
from .every import GuidanceEvery
from .several_classes import MultiRule, NegativeRule
from .stabilizers import STABILIZERS, Adam, Ema, Stabilized, Stabilizer

RULES["elucd"] = ElucdRule
RULES["kl"] = ForwardKLRule
RULES["reverse-kl"] = ReverseKLRule
RULES["js"] = JensenShannonRule
RULES["multi"] = MultiRule
RULES["negative"] = NegativeRule

__all__ = [
    "STABILIZERS",
    "Adam",
    "ElucdRule",
    "Ema",
    "EntropyScaled",
    "ForwardKLRule",
    "GuidanceEvery",
    "JensenShannonRule",
    "MultiRule",
    "NegativeRule",
    "ReverseKLRule",
    "Stabilized",
    "Stabilizer",
    "entropy_guidance",
]

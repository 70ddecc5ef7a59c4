"""Entropy-driven sampling (EDS) and entropy-constraint training (ECT), a layer over `guided_diffusion`.

    guidance = ClassifierGuidance(classifier, EntropyRule(gamma=6.0))
    diffusion.ddim_sample_loop(model, shape, cond_fn=guidance, model_kwargs={"y": labels})

    loss = ect_terms(classifier(x_t, t), labels, weight=0.2)["loss"].mean()
"""

from guided_diffusion.moved import OldNames

from .ect import ect_terms
from .guidance import ClassifierGuidance
from .rules import ConstantRule, EntropyRule, GradientNormRule, GuidanceRule, RangeRule, TimestepRule
from .softmax import Softmax

OldNames({
    "ed_dpm_patches.probabilities": "ed_dpm_patches.softmax",
    "ed_dpm_patches.report": "ed_dpm_patches.scale_stats",
    "ed_dpm_patches.reproduce": "experiments",
    "ed_dpm_patches.figures": "experiments.figures",
}).install()  # fmt: skip

__all__ = [
    "ClassifierGuidance",
    "ConstantRule",
    "EntropyRule",
    "GradientNormRule",
    "GuidanceRule",
    "RangeRule",
    "Softmax",
    "TimestepRule",
    "ect_terms",
]

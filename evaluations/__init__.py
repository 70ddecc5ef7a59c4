"""Evaluation of samples: feature extractors, metrics, and the programs that join them."""

from guided_diffusion.moved import OldNames

OldNames({
    "evaluations.engine": "evaluations.features.base",
    "evaluations.classifier_features": "evaluations.features.classifier",
    "evaluations.function_features": "evaluations.features.function",
    "evaluations.inception": "evaluations.features.inception_tensorflow",
    "evaluations.torch_inception": "evaluations.features.inception_torch",
    "evaluations.metrics.resampling": "evaluations.metrics.significance",
    "evaluations.metrics.npz": "evaluations.reference",
}).install()  # fmt: skip

"""Accuracy of a classifier as the feature extractor, on the labels of the samples and of the reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluations.metrics.metric import Metric, Score, Sets
from guided_diffusion.errors import some_of

POOR = 0.8  # accuracy on the reference below which there is a warning


def known_labels(found: Any, extractor: Any) -> tuple[np.ndarray | None, list[str]]:
    """Return a set's labels [N] as classes of the network, and warnings; None where set or network have no labels.

    Labels are numbers of the network's classes. Where both set and network name the classes, the names decide. Labels
    outside its classes, as of samples guided by another classifier, give a warning in place of the accuracy.
    """
    classes = found.features.probabilities.shape[1] if found.features else 0
    labels = found.labels
    if labels is None or not classes or extractor.uses_stored_statistics:
        return None, []
    own, known = _names(found.images.settings.get("class_names")), _names(getattr(extractor, "class_names", None))
    if own and known and own != known and labels.min() >= 0 and labels.max() < len(own):
        if missing := sorted({own[k] for k in np.unique(labels)} - set(known)):
            line = f"{found.images.name}: no accuracy: found the classes {some_of(missing)}"
            return None, [f"{line}, which {extractor.name} does not know"]
        labels = np.array([known.index(name) if name in known else -1 for name in own])[labels]
    if labels.min() < 0 or labels.max() >= classes:
        return None, [
            f"{found.images.name}: no accuracy: found labels from {labels.min()} to {labels.max()} in arr_1, "
            f"expected 0 to {classes - 1}, the classes of the --features classifier"
        ]
    return labels, []


def _names(value: object) -> list[str] | None:
    """Return class names from a JSON file, None where they are not names."""
    return value if isinstance(value, list) and all(isinstance(name, str) for name in value) else None


def _compute(sets: Sets) -> Score:
    """Return the share of samples whose most probable class is their label, and that of the reference with it."""
    (own, warnings), (labels, more) = (known_labels(one, sets.extractor) for one in (sets.reference, sets.samples))
    warnings += more
    adds: dict[str, Any] = {}
    if own is not None:
        probabilities = sets.reference.features.probabilities
        share = adds["reference_accuracy"] = float((probabilities.argmax(axis=1) == own).mean())
        if share < POOR:
            warnings.append(
                f"{sets.reference.images.name}: the feature network agrees with {share:.1%} of these labels only (by "
                f"chance: {1 / probabilities.shape[1]:.1%}; expected at least {POOR:.0%}): it may "
                "score noise as well as images; or its classes are numbered otherwise"
            )
    if labels is None:
        return Score(None, adds=adds, warnings=warnings)
    right = sets.samples.features.probabilities.argmax(axis=1) == labels
    adds["class_accuracy"] = {str(k): float(right[labels == k].mean()) for k in np.unique(labels)}
    return Score(float(right.mean()), right, adds, warnings)


ACCURACY = Metric(
    "accuracy", "Accuracy", _compute, "accuracy",
    adds={"class_accuracy": None, "reference_accuracy": "Reference accuracy"},
)  # fmt: skip

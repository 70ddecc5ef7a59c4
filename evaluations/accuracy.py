"""How often a feature network that is a classifier agrees with labels: of the samples, and of the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluations.engine import FeatureEngine
from evaluations.judged import Judged
from guided_diffusion.errors import some_of

POOR = 0.8  # accuracy on the reference below which there is a warning


@dataclass(frozen=True)
class Accuracy:
    """Labels [N] and whether the most probable class is the label, bool [N]."""

    labels: np.ndarray
    right: np.ndarray

    @property
    def share(self) -> float:
        return float(self.right.mean())

    def per_class(self) -> dict[str, float]:
        return {str(k): float(self.right[self.labels == k].mean()) for k in np.unique(self.labels)}


def accuracy_of(judged: Judged, engine: FeatureEngine) -> tuple[Accuracy | None, list[str]]:
    """Return the network's accuracy on a set, and warnings; None where set or network have no labels.

    Labels are numbers of the network's classes. Where both sides know the classes by name, the names decide. Labels
    that are none of its classes, as of samples guided by a classifier of others, cost the accuracy and get a warning.
    """
    classes = judged.seen.activations.probabilities.shape[1] if judged.seen else 0
    labels = judged.labels
    if labels is None or not classes or engine.uses_stored_statistics:
        return None, []
    own, known = _names(judged.images.settings.get("class_names")), _names(getattr(engine, "class_names", None))
    if own and known and own != known and labels.min() >= 0 and labels.max() < len(own):
        if missing := sorted({own[k] for k in np.unique(labels)} - set(known)):
            line = f"{judged.images.name}: no accuracy: found the classes {some_of(missing)}"
            return None, [f"{line}, which {engine.name} does not know"]
        labels = np.array([known.index(name) if name in known else -1 for name in own])[labels]
    if labels.min() < 0 or labels.max() >= classes:
        return None, [
            f"{judged.images.name}: no accuracy: found labels from {labels.min()} to {labels.max()} in arr_1, "
            f"expected 0 to {classes - 1}, the classes of the --features classifier"
        ]
    return Accuracy(labels, judged.seen.activations.probabilities.argmax(axis=1) == labels), []


def _names(value: object) -> list[str] | None:
    """Class names out of a JSON file, None where they are none."""
    return value if isinstance(value, list) and all(isinstance(name, str) for name in value) else None


def warn_of_poor(name: str, accuracy: Accuracy, classes: int) -> list[str]:
    """Return one line if the network gets the reference's own labels wrong too often to be trusted with samples."""
    if accuracy.share >= POOR:
        return []
    return [
        f"{name}: the feature network agrees with {accuracy.share:.1%} of these labels only (by chance: "
        f"{1 / classes:.1%}; expected at least {POOR:.0%}): a poor judge, which may score noise as well as images; or "
        "its classes are numbered otherwise"
    ]

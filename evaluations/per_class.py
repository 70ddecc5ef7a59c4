"""FID, precision and recall of each class."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evaluations.activations import Features, FeatureSet
from evaluations.metrics.metric import Metric, Sets
from evaluations.metrics.precision_recall import NEIGHBOURS
from evaluations.metrics.statistics import fit_gaussian
from guided_diffusion.errors import InputError

log = logging.getLogger(__name__)


def check_classes(name: str, count: int, labels: np.ndarray | None) -> None:
    """Raise ``InputError`` if a set cannot be evaluated class by class."""
    if not count:
        raise InputError(f"{name}: found statistics only, expected images with labels for --per_class")
    if labels is None:
        raise InputError(
            f"{name}: found no labels, expected some for --per_class: arr_1 in an npz file, or names such as 3_0012.png"
        )


def by_class(metrics: Sequence[Metric], sets: Sets) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the metrics of every label that occurs in either set, by label, and warnings.

    An entry has ``name`` (where the reference names its classes), ``n_reference``, ``n_samples``, and the metrics that
    are given per class (``fid``, ``precision``, ``recall``) from the images of that class alone; these are None where
    either set has under 4.
    """
    log.info("computing the metrics of each class")
    sides = sets.reference, sets.samples
    names = next(filter(None, (one.images.settings.get("class_names") for one in sides)), None)
    found, few = {}, []
    for label in np.unique(np.concatenate([one.labels for one in sides])):
        counts = [int((one.labels == label).sum()) for one in sides]
        values = {metric.name: None for metric in metrics if metric.per_class}
        if min(counts) > NEIGHBOURS:
            reference, samples = (_of_class(one, label) for one in sides)
            part = replace(sets, reference=reference, samples=samples, _known={})
            values = {metric.name: metric.score(part).value for metric in metrics if metric.per_class}
        else:
            few.append(str(label))
        known = isinstance(names, list) and 0 <= label < len(names)
        entry = {"name": str(names[label]) if known else None, "n_reference": counts[0], "n_samples": counts[1]}
        found[str(label)] = entry | values
    if not few:
        return found, []
    shown = ", ".join(few[:10]) + (", ..." if len(few) > 10 else "")
    return found, [
        f"--per_class: {len(few)} of {len(found)} classes have under {NEIGHBOURS + 1} images on a side and no "
        f"figures: {shown}"
    ]


def _of_class(one: FeatureSet, label: int) -> FeatureSet:
    """Return the pooled features of one class."""
    rows, found = one.labels == label, one.features
    features = Features(found.pool[rows], found.spatial[:0], found.probabilities[rows], found.image_hashes[rows])
    return FeatureSet(one.images, one.labels[rows], features, fit_gaussian(features.pool), None)

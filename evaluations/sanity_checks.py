"""Warnings about the sets of an evaluation: too few images, unbalanced labels, samples from the reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.special import chdtrc

from evaluations.activations import FeatureSet
from evaluations.features.base import FeatureExtractor

FEW = 10_000
_UNLIKELY = 1e-3


def warn_of_sets(sets: Sequence[FeatureSet], extractor: FeatureExtractor) -> list[str]:
    """Return all lines about reference, samples and perhaps paired samples, and about the outputs of the network."""
    reference, samples = sets[:2]
    found = []
    if not reference.features:
        found.append(f"{reference.images.name}: holds no images: no precision, no recall, only distances")
    if samples.spatial is None:
        found.append(f"{extractor.name}: gives no spatial features: no sFID")
    elif reference.spatial is None:
        found.append(f"{reference.images.name}: holds no statistics of spatial features (mu_s, sigma_s): no sFID")
    if not samples.features.probabilities.shape[1]:
        found.append(f"{extractor.name}: gives no logits: no inception score, no accuracy")
    for one in sets:
        if one.features:
            # Stored statistics may be those of many more images.
            found += _warn_of_images(one, count_matters=not (one is reference and one.images.stored))
    for one in sets[1:]:
        found += warn_of_labels(one.images.name, one.labels, reference.labels)
        if reference.features:
            found += _warn_of_pair(one, reference)
    return found


def _warn_of_images(one: FeatureSet, count_matters: bool) -> Iterator[str]:
    """Yield a line each for a small set, one with less images than dimensions, copies, and features that are equal."""
    name, pool = one.images.name, one.features.pool
    count, dims = pool.shape
    if count_matters and count < FEW:
        yield f"{name}: {count} images; under {FEW} FID is biased upwards: compare equal counts only"
    if count_matters and count <= dims:
        yield f"{name}: {count} images span less than the {dims} dimensions of the features"
    distinct = len(np.unique(one.features.image_hashes))
    if distinct == 1 < count:
        yield f"{name}: all {count} images are identical"
    elif distinct < count:
        yield f"{name}: {count - distinct} of {count} images are copies of others in it"
    if (pool.max(axis=0) == pool.min(axis=0)).all():
        yield f"{name}: the pooled features of all images are equal"


def _warn_of_pair(one: FeatureSet, reference: FeatureSet) -> Iterator[str]:
    """Yield a line each if images differ in size or channels from the reference's, or are in the reference too."""
    name, other = one.images.name, reference.images.name
    shapes = ["x".join(map(str, images.shape[1:])) for images in (one.images, reference.images)]
    if shapes[0] != shapes[1]:
        own = "the network brings both to its own size"
        yield f"{name}: images of {shapes[0]}, those of {other} are of {shapes[1]}; {own}"
    if shared := int(np.isin(one.features.image_hashes, reference.features.image_hashes).sum()):
        yield f"{name}: {shared} of {one.images.count} images are in the reference {other} too"


def warn_of_labels(name: str, labels: np.ndarray | None, reference_labels: np.ndarray | None) -> list[str]:
    """Return a line if the classes are not as frequent as in the reference, or as each other if that has no labels.

    It is a chi-squared test, in which chance causes a warning once in a thousand sets.
    """
    if labels is None or labels.min() < 0:
        return []
    known = labels if reference_labels is None or reference_labels.min() < 0 else reference_labels
    classes = int(max(labels.max(), known.max())) + 1
    if classes < 2 or classes > len(labels):
        return []
    counts = np.bincount(labels, minlength=classes)
    if known is labels:
        observed, expected = counts, np.full(classes, counts.mean())
        like = "equally frequent"
    else:
        table = np.stack([counts, np.bincount(known, minlength=classes)])
        observed = table[:, table.any(axis=0)]
        expected = np.outer(observed.sum(axis=1), observed.sum(axis=0)) / observed.sum()
        like = "as in the reference"
    if observed.shape[-1] < 2:
        return []
    statistic = ((observed - expected) ** 2 / expected).sum()
    # From scipy.special, as scipy.stats takes longer to import than the rest of this program.
    p = chdtrc(observed.shape[-1] - 1, statistic)
    if p >= _UNLIKELY:
        return []
    return [f"{name}: its labels are not {like}: from {counts.min()} to {counts.max()} images a class"]

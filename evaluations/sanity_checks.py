"""What a reader of the figures should know: too few images, unbalanced labels, samples out of the reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import chdtrc

from evaluations.features.base import FeatureEngine
from evaluations.judged import Judged

FEW = 10_000
_UNLIKELY = 1e-3


def warn_of_sets(judged: Sequence[Judged], engine: FeatureEngine) -> list[str]:
    """Return all lines about reference, samples and perhaps paired samples, and about what the network gives."""
    ref, own = judged[:2]
    found = [] if ref.seen else [f"{ref.images.name}: holds no images: no precision, no recall, only distances"]
    if own.spatial is None:
        found.append(f"{engine.name}: gives no spatial features: no sFID")
    elif ref.spatial is None:
        found.append(f"{ref.images.name}: holds no statistics of spatial features (mu_s, sigma_s): no sFID")
    if not own.seen.activations.probabilities.shape[1]:
        found.append(f"{engine.name}: gives no logits: no inception score, no accuracy")
    for one in judged:
        if one.seen:
            name, pool = one.images.name, one.seen.activations.pool
            if not (one is ref and one.images.stored):  # stored ones may be of many more images
                found += warn_of_counts(name, len(pool), pool.shape[1])
            found += warn_of_images(name, one.seen.image_hashes) + warn_of_features(name, pool)
    for one in judged[1:]:
        found += warn_of_labels(one.images.name, one.labels, ref.labels)
        if ref.seen:
            found += warn_of_shapes(one.images.name, one.images.shape, ref.images.name, ref.images.shape)
            hashes = one.seen.image_hashes, ref.seen.image_hashes
            found += warn_of_shared(one.images.name, hashes[0], ref.images.name, hashes[1])
    return found


def warn_of_counts(name: str, count: int, dims: int) -> list[str]:
    """One line each if a set is small for the Fréchet distance or smaller than its number of dimensions."""
    found = []
    if count < FEW:
        found.append(f"{name}: {count} images; under {FEW} FID is biased upwards: compare equal counts only")
    if count <= dims:
        found.append(f"{name}: {count} images span less than the {dims} dimensions of the features")
    return found


def warn_of_shapes(name: str, shape: tuple[int, ...], reference: str, reference_shape: tuple[int, ...]) -> list[str]:
    """One line if images [N, H, W, C] are not of the reference's size and channels."""
    if shape[1:] == reference_shape[1:]:
        return []
    own, other = ("x".join(map(str, size[1:])) for size in (shape, reference_shape))
    return [f"{name}: images of {own}, those of {reference} are of {other}; the network brings both to its own size"]


def warn_of_images(name: str, hashes: np.ndarray) -> list[str]:
    """One line if images occur more than once."""
    distinct = len(np.unique(hashes))
    if distinct == 1 < len(hashes):
        return [f"{name}: all {len(hashes)} images are identical"]
    if distinct < len(hashes):
        return [f"{name}: {len(hashes) - distinct} of {len(hashes)} images are copies of others in it"]
    return []


def warn_of_shared(name: str, hashes: np.ndarray, reference: str, reference_hashes: np.ndarray) -> list[str]:
    """One line if the reference holds some of the samples."""
    shared = int(np.isin(hashes, reference_hashes).sum())
    return [f"{name}: {shared} of {len(hashes)} images are in the reference {reference} too"] if shared else []


def warn_of_features(name: str, features_ND: np.ndarray) -> list[str]:
    """One line if no feature ever changes."""
    constant = bool((features_ND.max(axis=0) == features_ND.min(axis=0)).all())
    return [f"{name}: the pooled features of all images are equal"] if constant else []


def warn_of_labels(name: str, labels: np.ndarray | None, reference_labels: np.ndarray | None) -> list[str]:
    """One line if the classes are not as frequent as in the reference, or as each other if that has no labels.

    By the chi-squared test; chance warns once in a thousand sets.
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
    # Of scipy.special, as scipy.stats takes longer to import than the rest of this program.
    p = chdtrc(observed.shape[-1] - 1, statistic)
    if p >= _UNLIKELY:
        return []
    return [f"{name}: its labels are not {like}: from {counts.min()} to {counts.max()} images a class"]

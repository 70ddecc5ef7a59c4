"""How sure the figures are: intervals by resampling, and paired tests against other samples of the same noise."""

from __future__ import annotations

import logging

import numpy as np

from evaluations.accuracy import Accuracy
from evaluations.cache import Seen
from evaluations.judged import Judged
from evaluations.metrics import precision_recall as pr
from evaluations.metrics.inception_score import inception_score
from evaluations.metrics.kernel_distance import kernel_figure, kernel_interval
from evaluations.metrics.recall_of_parts import recall_figure
from evaluations.metrics.resampling import (
    Figure,
    bootstrap_intervals,
    frechet_figure,
    mean_figure,
    paired_differences,
    row_by_row,
    rows_of,
    split_intervals,
)

PerImage = dict[str, tuple[str, np.ndarray]]  # metric to ("samples" or "reference", one value an image of those)
_DISTANCES = ("fid", "sfid")

log = logging.getLogger(__name__)


def intervals(
    ref: Judged, own: Judged, per_image: PerImage, accuracy: Accuracy | None, rounds: int, seed: int, extra: bool
) -> dict[str, tuple[float, float]]:
    """Return 95 % intervals by metric: FID's and sFID's from random halves, KID's from the variance of its kernels,
    the others' by the bootstrap."""
    log.info("resampling %d times for intervals", rounds)
    figures = _figures(ref, own.seen)
    order = [*figures, "kid"]
    distances = {name: figures.pop(name) for name in _DISTANCES if name in figures}
    if own.images.stored:  # their distances are not those of these images
        distances = {}
    figures |= {name: mean_figure(v) for name, (whose, v) in per_image.items() if whose == "samples"}
    if accuracy:
        figures["accuracy"] = mean_figure(accuracy.right)
    found = split_intervals(distances, own.images.count, rounds, seed)
    found |= bootstrap_intervals(figures, own.images.count, rounds, seed)
    if extra and ref.seen:
        found["kid"] = kernel_interval(own.seen.activations.pool, ref.seen.activations.pool)
    found = {name: found.pop(name) for name in order if name in found} | found
    others = {name: mean_figure(v) for name, (whose, v) in per_image.items() if whose == "reference"}
    return found | (bootstrap_intervals(others, ref.images.count, rounds, seed) if others else {})


def paired_tests(
    ref: Judged, own: Judged, other: Judged, rounds: int, seed: int, extra: bool
) -> dict[str, dict[str, float]]:
    """Return by metric the difference between two sets of samples of the same noise, and its p-value."""
    log.info("swapping pairs %d times", rounds)
    both = [own.seen.activations, other.seen.activations]
    stacked = {
        name: np.concatenate([getattr(one, name) for one in both]) for name in ("pool", "spatial", "probabilities")
    }
    figures = _figures(ref, Seen(type(both[0])(**stacked), np.empty(0)))
    if ref.seen:
        reference = ref.seen.activations.pool
        if extra:
            figures["kid"] = kernel_figure(stacked["pool"], reference)
        inside = [pr.inside_manifolds(reference, one.pool)[0] for one in both]
        figures["precision"] = mean_figure(np.concatenate(inside))
        if recall := recall_figure(reference, stacked["pool"], pr.NEIGHBOURS):
            figures["recall"] = recall
        else:
            log.warning("warning: no paired test of recall: too many images have the same features")
    return paired_differences(figures, own.images.count, rounds, seed)


def _figures(ref: Judged, seen: Seen) -> dict[str, Figure]:
    """Inception score, FID and sFID of samples that may count several times, against a fixed reference."""
    found = seen.activations
    figures: dict[str, Figure] = {}
    if found.probabilities.shape[1]:
        figures["inception_score"] = row_by_row(lambda counts: inception_score(found.probabilities[rows_of(counts)]))
    figures["fid"] = frechet_figure(found.pool, ref.pool)
    if found.spatial.shape[1] and ref.spatial is not None:
        figures["sfid"] = frechet_figure(found.spatial, ref.spatial)
    return figures

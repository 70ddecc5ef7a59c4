"""How sure the metrics are: intervals by resampling, and paired tests against other samples of the same noise."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from evaluations.features.base import Activations
from evaluations.judged import Judged
from evaluations.metrics.metric import Metric, Score, Sets
from evaluations.metrics.significance import Figure, bootstrap_intervals, mean_figure, paired_differences

Scores = dict[str, Score]  # by metric

log = logging.getLogger(__name__)


def intervals(
    metrics: Sequence[Metric], scores: Scores, sets: Sets, rounds: int
) -> dict[str, tuple[float, float]]:
    """Return 95 % intervals by metric: by its own way if it has one, else by the bootstrap."""
    log.info("resampling %d times for intervals", rounds)
    found: dict[str, tuple[float, float] | None] = {}
    resampled: dict[int, dict[str, Figure]] = {}  # by number of images
    for metric in metrics:
        score = scores[metric.name]
        if score.value is None:
            continue
        if metric.interval:
            found[metric.name] = metric.interval(sets, rounds, sets.seed)
        elif score.per_image is not None:
            figures = resampled.setdefault(len(score.per_image), {})
            figures[metric.name] = mean_figure(score.per_image)
        elif metric.figure and (figure := metric.figure(sets, sets.samples.seen.activations)):
            resampled.setdefault(sets.samples.images.count, {})[metric.name] = figure
    for count, figures in resampled.items():
        found |= bootstrap_intervals(figures, count, rounds, sets.seed)
    return {metric.name: found[metric.name] for metric in metrics if found.get(metric.name)}


def paired_tests(
    metrics: Sequence[Metric], scores: Scores, sets: Sets, other: Judged, rounds: int
) -> dict[str, dict[str, float]]:
    """Return by metric the difference between two sets of samples of the same noise, and its p-value."""
    log.info("swapping pairs %d times", rounds)
    both = [one.seen.activations for one in (sets.samples, other)]
    stacked = Activations(
        *(np.concatenate([getattr(one, name) for one in both]) for name in ("pool", "spatial", "probabilities"))
    )
    figures = {
        metric.name: figure
        for metric in metrics
        if metric.figure and scores[metric.name].value is not None and (figure := metric.figure(sets, stacked))
    }
    return paired_differences(figures, sets.samples.images.count, rounds, sets.seed)

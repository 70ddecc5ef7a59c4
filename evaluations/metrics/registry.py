"""All metrics in the order of printing, which flags, printed lines, files, reports and plots read."""

from __future__ import annotations

from collections.abc import Sequence

from evaluations.metrics.accuracy import ACCURACY
from evaluations.metrics.density_coverage import COVERAGE, DENSITY
from evaluations.metrics.frechet import FID, SFID
from evaluations.metrics.inception_score import INCEPTION_SCORE
from evaluations.metrics.kernel_distance import KID
from evaluations.metrics.metric import Metric
from evaluations.metrics.precision_recall import PRECISION, RECALL
from guided_diffusion.errors import InputError

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        INCEPTION_SCORE,
        FID,
        SFID,
        PRECISION,
        RECALL,
        ACCURACY,
        KID,
        DENSITY,
        COVERAGE,
    )
}


def choose_metrics(names: Sequence[str] | None = None, extra: bool = False) -> list[Metric]:
    """Return the metrics of these names, or else all that are not extra; with ``extra`` those that are, too.

    Raises ``InputError`` for a name that is none.
    """
    for name in names or ():
        if name not in METRICS:
            raise InputError(f"--metrics: found {name!r:.60}, expected some of {', '.join(METRICS)}")
    return [
        metric
        for metric in METRICS.values()
        if (extra and metric.extra) or (metric.name in names if names else not metric.extra)
    ]


def in_tables() -> list[Metric]:
    """Return the metrics in the order of columns: those of which less is better first."""
    return sorted(METRICS.values(), key=lambda metric: not metric.lower_is_better)

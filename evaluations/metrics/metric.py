"""Interface of a metric: its names, its computation from two sets of features, and its uncertainty.

A new one is a file beside this one that defines a ``Metric``, and a line in ``registry``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from evaluations.metrics.significance import Figure

if TYPE_CHECKING:
    from evaluations.activations import FeatureSet
    from evaluations.features.base import Activations, FeatureExtractor

Found = TypeVar("Found")


@dataclass(frozen=True)
class Sets:
    """The reference and the samples, the network that made their features, and the flags that metrics have."""

    reference: FeatureSet
    samples: FeatureSet
    extractor: FeatureExtractor
    exact_upstream: bool = False
    kid_subset_size: int | None = None
    seed: int = 0
    _known: dict[Callable, Any] = field(default_factory=dict, repr=False)

    @property
    def pools(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The pooled features [N, D] of reference and samples; None where the reference is statistics alone."""
        both = self.reference.features, self.samples.features
        return None if both[0] is None else tuple(features.pool for features in both)

    def once(self, function: Callable[[Sets], Found]) -> Found:
        """Return ``function(self)``, computed at the first call only, for metrics that share a computation."""
        if function not in self._known:
            self._known[function] = function(self)
        return self._known[function]


@dataclass(frozen=True)
class Score:
    """A metric's value, None where the sets or the network lack what it needs.

    per_image: one number an image, of the samples or of the reference, if the value is their mean; its interval then
    comes from drawing these again. adds: values of ``Metric.adds``. warnings: lines for the user.
    """

    value: float | None
    per_image: np.ndarray | None = None
    adds: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def mean(cls, per_image: np.ndarray) -> Score:
        """Return the mean of one number an image."""
        return cls(float(per_image.mean()), per_image)


@dataclass(frozen=True)
class Metric:
    """A metric of samples against a reference.

    name: in JSON and CSV files and in flags. title: in the printed lines; label: in plots and tables, column: at the
    head of a column, both the title unless given. compute: a ``Score``, a number or None.

    upstream: upstream's evaluator has it, so every results file does, perhaps as null. extra: computed only if asked
    for. per_class: also computed of the images of each class. least_reference: reference images that it needs.
    adds: names of further values in the JSON file, each with its title if it is printed too.

    figure: the metric as a function of how often each of some images counts; None where it cannot be had. The paired
    test needs it, and the bootstrap where there is no ``Score.per_image``. interval: another way than the bootstrap
    to a 95 % interval, from sets, rounds and seed.
    """

    name: str
    title: str
    compute: Callable[[Sets], Score | float | None]
    label: str = ""
    column: str = ""
    lower_is_better: bool = False
    upstream: bool = False
    extra: bool = False
    per_class: bool = False
    least_reference: int = 0
    adds: Mapping[str, str | None] = field(default_factory=dict)
    figure: Callable[[Sets, Activations], Figure | None] | None = None
    interval: Callable[[Sets, int, int], tuple[float, float] | None] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.title)
        object.__setattr__(self, "column", self.column or self.label)

    def score(self, sets: Sets) -> Score:
        """Compute the metric."""
        found = self.compute(sets)
        return found if isinstance(found, Score) else Score(None if found is None else float(found))

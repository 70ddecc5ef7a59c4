"""The numbers of a run: the evaluator's values, what the traces show, and how sure one can be of either."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np

from demo.plan import COMBINATIONS, CONFIGURATIONS, REAL, Configuration, Plan

METRICS = {"accuracy": 3, "fid": 4, "precision": 3, "recall": 3}  # and the digits they are shown with
# The paper's bound for a vanished gradient (its Fig. 3), and what we call a certain classifier.
VANISHED_NORM, LOW_ENTROPY = 0.15, 0.1
# The parts of the process that are compared: "late" is near the finished image.
EARLY, LATE = (667, 1000), (0, 333)


@dataclass(frozen=True)
class Score:
    """One metric of one configuration: a value a seed."""

    values: tuple[float, ...]
    digits: int = 3  # shown behind the point

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def half_range(self) -> float:
        """Half the difference between the largest and the smallest; 0 for a single seed."""
        return (max(self.values) - min(self.values)) / 2

    def __str__(self) -> str:
        spread = f" ± {self.half_range:.{self.digits}f}" if len(self.values) > 1 else ""
        return f"{self.mean:.{self.digits}f}{spread}"


Scores = dict[str, Score]  # by metric


@dataclass(frozen=True)
class Results:
    """Everything that the report shows.

    `scores` are by configuration, in the order of CONFIGURATIONS; `real` are those of the train part's
    images, a bound for any sampler.
    """

    scores: dict[Configuration, Scores]
    real: Scores
    traces: dict[tuple[str, str], dict[str, np.ndarray]]  # by (classifier, rule): arrays [samples, steps]

    def best(self, rule: str, classifier: str | None = None, metric: str = "fid") -> Configuration:
        """The configuration of a rule with the lowest Fréchet distance (highest value of other metrics)."""
        sign = 1 if metric == "fid" else -1
        among = [c for c in self.scores if c.rule == rule and classifier in (None, c.classifier)]
        return min(among, key=lambda c: sign * self.scores[c][metric].mean)

    def noise(self, a: Configuration, b: Configuration, metric: str) -> float:
        """Standard deviation of `difference`, from the seeds' spread; nan for one seed.

        Two seeds of two configurations say little about noise, thirteen pairs say more. The noise of a
        Fréchet distance grows with the distance, so there the relative spread is what is pooled.
        """
        rows = np.array([scores[metric].values for scores in self.scores.values()])
        if rows.shape[1] < 2:
            return math.nan
        relative = metric == "fid"
        variance = (rows.var(axis=1, ddof=1) / (rows.mean(axis=1) ** 2 if relative else 1)).mean()
        sizes = [self.scores[c][metric].mean if relative else 1.0 for c in (a, b)]
        return math.sqrt(variance * sum(size**2 for size in sizes) / rows.shape[1])

    def difference(self, a: Configuration, b: Configuration, metric: str) -> float:
        """Mean of `a` less mean of `b`."""
        return self.scores[a][metric].mean - self.scores[b][metric].mean


def read_results(plan: Plan) -> Results:
    """Read what the steps of a plan left."""
    seeds = plan.settings.seeds
    scores = {c: _read_scores([plan.metrics(c.name, seed) for seed in seeds]) for c in CONFIGURATIONS}
    traced = {(c.classifier, c.rule): c for c in CONFIGURATIONS if c.traced}
    traces = {key: _read_trace([plan.trace(traced[key], seed) for seed in seeds]) for key in COMBINATIONS}
    return Results(scores, _read_scores([plan.metrics(REAL)]), traces)


def _read_scores(paths: list) -> Scores:
    found = [json.loads(path.read_text()) for path in paths]
    return {
        metric: Score(tuple(float(values[metric]) for values in found), digits) for metric, digits in METRICS.items()
    }


def _read_trace(paths: list) -> dict[str, np.ndarray]:
    parts = []
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            parts.append({name: file[name] for name in file.files})
    trace = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    low_entropy = trace["entropy_ratio"] < LOW_ENTROPY
    return trace | {"vanished": (trace["grad_norm"] < VANISHED_NORM) & low_entropy}


def timesteps(trace: dict[str, np.ndarray]) -> np.ndarray:
    """t of every step [steps], the same for all samples."""
    return trace["t"][0]


def over_period(trace: dict[str, np.ndarray], name: str, period: tuple[int, int]) -> float:
    """Mean over samples and over the steps with period[0] <= t < period[1]; relative guidance: median."""
    t = timesteps(trace)
    values = trace[name][:, (t >= period[0]) & (t < period[1])]
    return float(np.median(values) if name == "relative_guidance" else values.mean())

"""Estimates from what `Measurement.measure` found, with bootstrap intervals: images are resampled, with all levels.

Every statistic is computed for rows of weights of the images at once: the first row weighs each image once, the others
are draws with replacement. An estimate is [value, low, high], the ends of its 95 % interval; None where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.diagnose.measures import TEMPERATURES, Arrays
from experiments.figures.vanishing_points import CERTAIN_ENTROPY, VANISHED_NORM

BINS = 15  # of the expected calibration error
SURE = 0.9  # a wrong prediction with a larger confidence counts as certain and wrong
CONSTANT, CONSTANT_1, PAIR = "constant", "constant at 1", "pair"
Estimate = list[float | None]
Rules = dict[str, tuple[np.ndarray, np.ndarray]]  # along and square [N, L] of each


def resampled(images: int, replicates: int, seed: int) -> np.ndarray:
    """Return weights of the images, float64 [1 + replicates, images]; those of the first row are 1."""
    rng = np.random.default_rng((seed, images, replicates))
    draws = rng.multinomial(images, np.full(images, 1 / images), size=replicates)
    return np.concatenate([np.ones((1, images)), draws]).astype(np.float64)


def mean(weights_RN: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the weighted means over images [R, ...] of values [N, ...]."""
    total = weights_RN @ values.reshape(len(values), -1).astype(np.float64)
    return (total / weights_RN.sum(axis=1, keepdims=True)).reshape(-1, *values.shape[1:])


def estimates(rows: np.ndarray) -> list:
    """Return an estimate of rows [1 + R], or a list of them of [1 + R, levels]."""
    if rows.ndim > 1:
        return [estimates(column) for column in rows.T]
    resampled_rows = rows[1:][np.isfinite(rows[1:])]
    ends = np.quantile(resampled_rows, (0.025, 0.975)) if len(resampled_rows) else (np.nan, np.nan)
    return [float(value) if np.isfinite(value) else None for value in (rows[0], *ends)]


def temperature(cross_entropy: np.ndarray) -> np.ndarray:
    """Return the temperature [...] that calibrates, of mean cross entropies [..., at TEMPERATURES].

    The lowest point of the parabola over log T through the smallest and its neighbours: the temperatures are so close
    that it is off by less than 0.1 % there. An end of TEMPERATURES where the smallest is there.
    """
    log_T = np.log(TEMPERATURES)
    at = np.clip(cross_entropy.argmin(axis=-1), 1, len(log_T) - 2)[..., None]
    left, middle, right = (np.take_along_axis(cross_entropy, at + i, axis=-1)[..., 0] for i in (-1, 0, 1))
    bend = left - 2 * middle + right
    slope, bent = (left - right) / 2, bend > 0
    step = np.where(bent, slope / np.where(bent, bend, 1.0), np.sign(slope))
    return np.exp(log_T[at[..., 0]] + np.clip(step, -1, 1) * (log_T[1] - log_T[0]))


def calibration_gaps(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return confidence - right [..., BINS] in the bin of the confidence; the ECE is the sum of its means' sizes."""
    bins = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1)
    return (confidence - right)[..., None] * (bins[..., None] == np.arange(BINS))


def best_gamma(along: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Return the gamma with the smallest loss, sum along / sum square; nan where the guidance is 0 everywhere."""
    return np.divide(along, square, out=np.full(np.shape(along), np.nan), where=square > 0)


def gain(gamma: Any, along: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Return by how much gamma lowers L / (1 - abar)."""
    return 2 * gamma * along - gamma**2 * square


def summarize(
    arrays: Arrays, classifiers: Sequence[str], rules: Sequence[str], times: Sequence[int], classes: int,
    replicates: int = 1000, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Return all estimates, as JSON can hold them.

    "levels" has a list of estimates over `times` for each quantity, "overall" those over all levels, "rules" the gamma
    of each rule that is best over all levels of the first half of the images (every second one), and with it the gain
    on the other half, a mean over levels: of L / (1 - abar), of its share of the loss without guidance, and beyond the
    constant rule.
    """
    images = len(next(iter(arrays.values())))
    weights = resampled(images, replicates, seed)
    unguided = arrays.get("unguided")
    found: dict[str, Any] = {
        "images": images, "classes": classes, "replicates": replicates, "times": list(times), "classifiers": {},
        "unguided": None if unguided is None else estimates(mean(weights, unguided)),
    }  # fmt: skip
    for name in classifiers:
        own = {key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")}
        levels, overall = _certainty(weights, own)
        entry = found["classifiers"][name] = {"levels": levels, "overall": overall, "rules": {}}
        if unguided is None:
            continue
        by_rule = {rule: (own["along"][..., i], own["square"][..., i]) for i, rule in enumerate(rules)}
        levels |= _at_levels(weights, by_rule)
        overall["s_star"] = estimates(best_gamma(*(mean(weights, x).mean(axis=1) for x in by_rule[CONSTANT])))
        entry["rules"] = _fitted(weights, unguided, by_rule)
    if "pair_along" in arrays:
        rule = {CONSTANT: (arrays["pair_along"], arrays["pair_square"])}
        found[PAIR] = {"levels": _at_levels(weights, rule), "rules": _fitted(weights, unguided, rule)}
    return found


def _at_levels(weights: np.ndarray, rules: Rules) -> dict[str, list]:
    """Return s* and the gains of every level: of each rule at its best scale there, and of the constant one at 1."""
    found = {}
    for rule, pair in rules.items():
        sums = [mean(weights, values) for values in pair]
        scales = best_gamma(*sums)
        found[f"gain/{rule}"] = estimates(gain(np.nan_to_num(scales), *sums))
        if rule == CONSTANT:
            found |= {"s_star": estimates(scales), f"gain/{CONSTANT_1}": estimates(gain(1.0, *sums))}
    return found


def _certainty(weights: np.ndarray, own: Arrays) -> tuple[dict[str, list], dict[str, Estimate]]:
    """Return what the logits and the gradient tell, at every level and over all."""
    right, confidence, entropy = own["right"], own["confidence"], own["entropy"]
    means = {
        "accuracy": right, "top5": own["top5"], "cross_entropy": own["cross_entropy"][..., len(TEMPERATURES) // 2],
        "entropy": entropy, "certain_wrong": (confidence > SURE) * (1 - right), "gradient": own["gradient"],
        "vanished": (own["gradient"] < VANISHED_NORM) & (entropy < CERTAIN_ENTROPY),
    }  # fmt: skip
    means |= {"cosine": own["cosine"]} if "cosine" in own else {}
    rows = {name: mean(weights, values) for name, values in means.items()}
    levels = {name: estimates(values) for name, values in rows.items()}
    overall = {name: estimates(values.mean(axis=1)) for name, values in rows.items()}
    cross_entropy = mean(weights, own["cross_entropy"])
    gaps = mean(weights, calibration_gaps(confidence, right))
    levels["ece"] = estimates(np.abs(gaps).sum(axis=2))
    overall["ece"] = estimates(np.abs(gaps.mean(axis=1)).sum(axis=1))
    levels["temperature"] = estimates(temperature(cross_entropy))
    overall["temperature"] = estimates(temperature(cross_entropy.mean(axis=1)))
    return levels, overall


def _fitted(weights: np.ndarray, unguided: np.ndarray, rules: Rules) -> dict[str, dict[str, Estimate]]:
    """Return the rules with one gamma each, fitted on one half of the images and judged on the other."""
    first = np.arange(len(unguided)) % 2 == 0
    fit, judge = weights * first, weights * ~first
    loss = mean(judge, unguided)
    found, gains = {}, {}
    for rule, (along, square) in rules.items():
        sums = (mean(fit, values).mean(axis=1) for values in (along, square))
        gamma = np.maximum(np.nan_to_num(best_gamma(*sums)), 0)  # a rule has no negative one
        for name, chosen in ((rule, gamma), (CONSTANT_1, np.ones_like(gamma)))[: 2 if rule == CONSTANT else 1]:
            at_levels = gain(chosen[0], *(mean(judge, values) for values in (along, square))) + 0.0  # of -0, 0
            share = (at_levels / loss).mean(axis=1)
            gains[name] = at_levels.mean(axis=1)
            found[name] = {"gamma": estimates(chosen), "gain": estimates(gains[name]), "share": estimates(share)}
    for name, entry in found.items():
        entry["over_constant"] = estimates(gains[name] - gains[CONSTANT])
    return found

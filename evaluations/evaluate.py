"""Metrics of samples against a reference, from images and a feature extractor, perhaps with a paired set."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from evaluations.activations import ActivationCache, FeatureSet, extract, usable_statistics
from evaluations.features.base import Activations, FeatureExtractor
from evaluations.image_sets import RESIZE_RULE, ImageSet, open_image_set
from evaluations.metrics.metric import Metric, Score, Sets
from evaluations.metrics.precision_recall import NEIGHBOURS
from evaluations.metrics.registry import METRICS, choose_metrics
from evaluations.metrics.significance import bootstrap_interval, mean_figure, paired_difference
from evaluations.per_class import by_class, check_classes
from evaluations.sanity_checks import warn_of_sets
from evaluations.summary import Metrics
from guided_diffusion.errors import InputError, counted
from guided_diffusion.io.images import Reading
from guided_diffusion.io.reading import hash_file

__all__ = ["Metrics", "evaluate"]

Paths = str | os.PathLike | Sequence[str | os.PathLike]

LEAST = {"batch_size": 1, "bootstrap": 2, "paired_rounds": 1, "num_samples": 4, "resize": 1, "kid_subset_size": 2}

log = logging.getLogger(__name__)


def evaluate(
    reference: Paths | ImageSet,
    samples: Paths | ImageSet,
    extractor: FeatureExtractor,
    *,
    metrics: Sequence[str] | None = None,
    extra: bool = False,
    bootstrap: int = 0,
    paired: Paths | ImageSet | None = None,
    paired_rounds: int = 99,
    exact_upstream: bool = False,
    seed: int = 0,
    cache: str | os.PathLike | None = None,
    num_samples: int | None = None,
    resize: int | None = None,
    reading: Reading | None = None,
    per_class: bool = False,
    kid_subset_size: int | None = None,
) -> Metrics:
    """Compute the metrics of ``samples`` against ``reference``; ``image_sets`` lists what both may be.

    At least 4 images each, uint8 [N, H, W, 1 or 3]. Statistics stored with either (``mu``, ``sigma``, ``mu_s``,
    ``sigma_s``) replace those of its images if they were made by the same network, or by an unknown one; a
    reference may hold nothing else. Everything about the files is checked before the network runs.

    :param metrics: names of the registry's metrics, all but the extra ones unless given; extra: those too.
    :param bootstrap: rounds of resampling for 95 % intervals; 0 for none.
    :param paired: other samples whose i-th image shares its noise with the i-th sample.
    :param paired_rounds: random swaps behind the p-values of ``paired``.
    :param exact_upstream: precision and recall in upstream's half precision.
    :param seed: of subsets, resampling, swaps and the choice of ``num_samples``.
    :param cache: a folder for the activations of the reference.
    :param num_samples: compare that many of the samples with that many of the reference, drawn at random; statistics
        stored with the reference stay those of all it was made from.
    :param resize: bring all images to squares of this side first, by ``image_sets.RESIZE_RULE``; reading: how the
        pixels of image files become 8 bits, as in training unless given. Neither changes sets that are open already.
    :param per_class: FID, precision and recall of each label too.
    :param kid_subset_size: see ``kernel_distance``.

    Raises ``InputError`` naming the file and what is wrong with it.
    """
    check_numbers(num_samples=num_samples, resize=resize, kid_subset_size=kid_subset_size, paired_rounds=paired_rounds)
    chosen = choose_metrics(metrics, extra)
    if kid_subset_size is not None and METRICS["kid"] not in chosen:
        raise InputError("--kid_subset_size: found no --extra, expected it, as KID is one of its figures")
    given = [one for one in (reference, samples, paired) if one is not None]
    sets = _open_sets([open_image_set(one, resize, reading) for one in given], extractor, num_samples, seed)
    warnings: list[str] = []
    _warn(warnings, [line for images in sets for line in images.warnings])
    _check_counts(sets[0], sets[1], chosen, kid_subset_size)
    labels = [_labels(images, i == 1, extractor) for i, images in enumerate(sets)]
    if per_class:
        for images, found_labels in zip(sets[:2], labels, strict=False):
            check_classes(images.path, images.count, found_labels)
    weights = getattr(extractor, "weights_path", None)
    network = None if weights is None else hash_file(weights)
    for i, images in enumerate(sets):
        stored, lines = usable_statistics(images, extractor, network)
        sets[i] = replace(images, stored=stored)
        _warn(warnings, lines)
    digests = [images.digest() for images in sets]
    keep_spatial = bool(bootstrap) or paired is not None
    store = None if cache is None else ActivationCache(cache)
    if store and not network:
        log.warning("warning: --cache: %s does not say where its weights are; nothing is cached", extractor.name)
    found = [
        extract(images, labels[i], digests[i], store if i == 0 else None, extractor, network, keep_spatial)
        for i, images in enumerate(sets)
    ]
    _warn(warnings, warn_of_sets(found, extractor))

    pair = Sets(found[0], found[1], extractor, exact_upstream, kid_subset_size, seed)
    scores, values = {}, {name: None for metric in METRICS.values() for name in (metric.name, *metric.adds)}
    for metric in chosen:
        log.info("computing %s", metric.title)
        score = scores[metric.name] = metric.score(pair)
        values |= {metric.name: score.value, **score.adds}
        _warn(warnings, score.warnings)
    classes = None
    if per_class:
        classes, lines = by_class(chosen, pair)
        _warn(warnings, lines)
    return Metrics(
        values=values,
        n_reference=sets[0].count,
        n_samples=sets[1].count,
        engine=extractor.name,
        reference=sets[0].name,
        samples=sets[1].name,
        intervals=_intervals(chosen, scores, pair, bootstrap) if bootstrap else None,
        paired=_paired_tests(chosen, scores, pair, found[2], paired_rounds) if paired is not None else None,
        per_class=classes,
        paired_with=sets[2].name if paired is not None else None,
        paired_rounds=paired_rounds if paired is not None else 0,
        bootstrap=bootstrap,
        seed=seed,
        half_precision=exact_upstream,
        chosen=num_samples and f"{num_samples} of each set at random, seed {seed}",
        resize_before=resize and f"to {resize}x{resize}: {RESIZE_RULE}",
        resize=getattr(extractor, "resize", None),
        reading=None if reading in (None, Reading()) else asdict(reading),
        network_sha256=network,
        network_config=getattr(extractor, "config", None),
        reference_sha256=digests[0],
        samples_sha256=digests[1],
        paired_sha256=digests[2] if paired is not None else None,
        warnings=warnings,
    )


def _intervals(
    metrics: Sequence[Metric], scores: dict[str, Score], sets: Sets, rounds: int
) -> dict[str, tuple[float, float]]:
    """Return 95 % intervals by metric: by its own method if it has one, else by the bootstrap."""
    log.info("resampling %d times for intervals", rounds)
    found: dict[str, tuple[float, float] | None] = {}
    for metric in metrics:
        score, figure, count = scores[metric.name], None, sets.samples.images.count
        if score.value is None:
            continue
        if metric.interval:
            found[metric.name] = metric.interval(sets, rounds, sets.seed)
        elif score.per_image is not None:
            figure, count = mean_figure(score.per_image), len(score.per_image)
        elif metric.figure:
            figure = metric.figure(sets, sets.samples.features)
        if figure:
            found[metric.name] = bootstrap_interval(figure, count, rounds, sets.seed)
    return {name: interval for name, interval in found.items() if interval}


def _paired_tests(
    metrics: Sequence[Metric], scores: dict[str, Score], sets: Sets, other: FeatureSet, rounds: int
) -> dict[str, dict[str, float]]:
    """Return by metric the difference between two sets of samples of the same noise, and its p-value."""
    log.info("swapping pairs %d times", rounds)
    both = [one.features for one in (sets.samples, other)]
    stacked = Activations(
        *(np.concatenate([getattr(one, name) for one in both]) for name in ("pool", "spatial", "probabilities"))
    )
    return {
        metric.name: paired_difference(figure, sets.samples.images.count, rounds, sets.seed)
        for metric in metrics
        if metric.figure and scores[metric.name].value is not None and (figure := metric.figure(sets, stacked))
    }


def _open_sets(sets: list[ImageSet], extractor: FeatureExtractor, num_samples: int | None, seed: int) -> list[ImageSet]:
    """Check reference, samples and paired samples against network and each other, and choose their images."""
    for images in filter(lambda images: images.count, sets):
        path = images.path
        if images.count <= NEIGHBOURS:
            raise InputError(f"{path}: found {counted(images.count, 'images')}, expected at least {NEIGHBOURS + 1}")
        extractor.check(path, images.shape)
    if not sets[1].count or sets[-1].count != sets[1].count:
        raise InputError(
            f"{sets[-1].name}: found {sets[-1].count} images, expected "
            + ("some images" if not sets[1].count else f"{sets[1].count}, one for each of {sets[1].name}")
        )
    if num_samples is None:
        return sets
    return [_choose(images, num_samples, seed, is_reference=i == 0) for i, images in enumerate(sets)]


def _warn(warnings: list[str], lines: list[str]) -> None:
    """Log some lines, and keep them for the results."""
    for line in lines:
        log.warning("warning: %s", line)
    warnings += lines


def check_numbers(**numbers: int | None) -> None:
    """Raise ``InputError`` for a number below the least that its flag takes; None stands for one not given."""
    for flag, number in numbers.items():
        if number is not None and number < LEAST[flag]:
            raise InputError(f"--{flag}: found {number}, expected at least {LEAST[flag]}")


def _choose(images: ImageSet, num_samples: int, seed: int, is_reference: bool) -> ImageSet:
    """Return ``num_samples`` of a set's images. A reference may have fewer, and keeps its statistics."""
    path = images.path
    if images.count < num_samples and not is_reference:
        found = counted(images.count, "images")
        raise InputError(f"{path}: found {found}, expected at least --num_samples {num_samples}")
    if 0 < images.count < num_samples:
        log.info("%s: taking all %d images, fewer than --num_samples %d", path, images.count, num_samples)
    chosen = images.choose(num_samples, seed)
    return chosen if is_reference or chosen is images else replace(chosen, stored=None)


def _check_counts(
    reference: ImageSet, samples: ImageSet, metrics: Sequence[Metric], kid_subset_size: int | None
) -> None:
    """Raise ``InputError`` for sets that are too small for a metric or for subsets of the size asked for."""
    if not reference.count:
        return
    for metric in metrics:
        if reference.count < metric.least_reference:
            raise InputError(
                f"{reference.name}: found {counted(reference.count, 'images')}, "
                f"expected more than {metric.least_reference - 1} for {metric.label}"
            )
    smaller = min(reference, samples, key=lambda images: images.count)
    if kid_subset_size is not None and kid_subset_size > smaller.count:
        raise InputError(
            f"--kid_subset_size: found {kid_subset_size}, expected at most {smaller.count}, as {smaller.name} holds"
        )


def _labels(images: ImageSet, are_samples: bool, extractor: FeatureExtractor) -> np.ndarray | None:
    """Return class labels; bad ones are an error where a classifier's accuracy on samples needs them, else a warning.

    Images in folders of their classes are numbered by the class names that the network knows.
    """
    try:
        return images.labels(getattr(extractor, "class_names", None))
    except InputError as error:
        if are_samples and not extractor.uses_stored_statistics:
            raise
        log.warning("warning: %s", error)
        return None

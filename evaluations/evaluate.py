"""From images and a feature network to metrics: of one set against a reference, perhaps beside a paired set."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluations import checks
from evaluations.cache import ActivationCache, Seen
from evaluations.engine import FeatureEngine
from evaluations.image_sets import ImageSet, open_image_set
from evaluations.metrics import half_precision
from evaluations.metrics import precision_recall as pr
from evaluations.metrics.density_coverage import NEIGHBOURS as DENSITY_NEIGHBOURS
from evaluations.metrics.density_coverage import density_coverage
from evaluations.metrics.frechet import frechet_distance
from evaluations.metrics.inception_score import inception_score
from evaluations.metrics.kernel_distance import kernel_distance, kernel_figure
from evaluations.metrics.recall_of_parts import recall_figure
from evaluations.metrics.resampling import (
    Figure,
    bootstrap_intervals,
    frechet_figure,
    mean_figure,
    paired_differences,
    row_by_row,
    rows_of,
)
from evaluations.metrics.statistics import Gaussian, fit_gaussian
from evaluations.metrics_record import Metrics
from evaluations.seeing import see
from guided_diffusion.errors import InputError
from guided_diffusion.files import hash_file

__all__ = ["Metrics", "evaluate"]

Paths = str | os.PathLike | Sequence[str | os.PathLike]

log = logging.getLogger(__name__)


def evaluate(
    reference: Paths,
    samples: Paths,
    engine: FeatureEngine,
    *,
    extra: bool = False,
    bootstrap: int = 0,
    paired: Paths | None = None,
    paired_rounds: int = 99,
    exact_upstream: bool = False,
    seed: int = 0,
    cache: str | os.PathLike | None = None,
) -> Metrics:
    """Judge the images ``samples`` by ``reference``; what both may be is said in ``image_sets``.

    At least 4 images each, uint8 [N, H, W, 1 or 3]. Statistics stored with either (``mu``, ``sigma``, ``mu_s``,
    ``sigma_s``) replace those of its images if they were made by the same kind of engine; a reference may hold
    nothing else. Everything about the files is checked before the network runs.

    :param extra: KID, density and coverage too.
    :param bootstrap: rounds of resampling for 95 % intervals; 0 for none.
    :param paired: other samples whose i-th image shares its noise with the i-th sample.
    :param paired_rounds: random swaps behind the p-values of ``paired``.
    :param exact_upstream: precision and recall in upstream's half precision.
    :param seed: of subsets, resampling and swaps.
    :param cache: a folder for the activations of the reference.

    Raises ``InputError`` naming the file and what is wrong with it.
    """
    sets = [_describe(paths, engine) for paths in (reference, samples, paired) if paths is not None]
    if not sets[1].count or (paired is not None and sets[2].count != sets[1].count):
        raise InputError(
            f"{sets[-1].name}: found {sets[-1].count} images, expected "
            + ("some to judge" if not sets[1].count else f"{sets[1].count}, one for each of {sets[1].name}")
        )
    labels = [_labels(images, required=i == 1 and not engine.uses_stored_statistics) for i, images in enumerate(sets)]
    digests = [images.digest() for images in sets]
    weights = getattr(engine, "weights_path", None)
    network = None if weights is None else hash_file(weights)
    store = None if cache is None else ActivationCache(cache)
    if store and not network:
        log.warning("warning: --cache: %s does not say where its weights are; nothing is cached", engine.name)

    judged = []
    for i, images in enumerate(sets):
        seen = see(images, engine, digests[i], network, store if i == 0 else None) if images.count else None
        statistics = _statistics(images, seen, engine)
        if seen and not (bootstrap or paired is not None):
            seen = seen.without_spatial()
        judged.append(_Judged(images, labels[i], seen, *statistics))
    warnings = _warnings(judged)
    if not engine.uses_stored_statistics:
        warnings += _warn_of_other_classes(judged[1])
    for line in warnings:
        log.warning("warning: %s", line)

    ref, own = judged[:2]
    log.info("computing Fréchet distances")
    found = {
        "inception_score": inception_score(own.seen.activations.probabilities),
        "fid": _distance(ref, own, "pool"),
        "sfid": _distance(ref, own, "spatial"),
    }
    accuracy = _Accuracy.of(own) if not engine.uses_stored_statistics else None
    per_image = _per_image(ref, own, extra, exact_upstream)
    found |= {name: float(values.mean()) for name, (_, values) in per_image.items()}
    if extra and ref.seen:
        log.info("computing the kernel distance")
        pools = ref.seen.activations.pool, own.seen.activations.pool
        found["kid"], found["kid_deviation"] = kernel_distance(*pools, seed=seed)
    return Metrics(
        **{"precision": None, "recall": None, **found},
        accuracy=accuracy and float(accuracy.right.mean()),
        class_accuracy=accuracy and accuracy.per_class(),
        n_reference=ref.images.count,
        n_samples=own.images.count,
        engine=engine.name,
        reference=ref.images.name,
        samples=own.images.name,
        intervals=_intervals(ref, own, per_image, accuracy, bootstrap, seed, extra) if bootstrap else None,
        paired=_paired(*judged, paired_rounds, seed, extra) if paired is not None else None,
        paired_with=judged[2].images.name if paired is not None else None,
        paired_rounds=paired_rounds if paired is not None else 0,
        bootstrap=bootstrap,
        seed=seed,
        half_precision=exact_upstream,
        resize=getattr(engine, "resize", None),
        network_sha256=network,
        reference_sha256=digests[0],
        samples_sha256=digests[1],
        paired_sha256=digests[2] if paired is not None else None,
        warnings=warnings,
    )


@dataclass(frozen=True)
class _Judged:
    """A set and what the network made of it; ``seen`` is None for statistics alone."""

    images: ImageSet
    labels: np.ndarray | None
    seen: Seen | None
    pool: Gaussian
    spatial: Gaussian


@dataclass(frozen=True)
class _Accuracy:
    """Labels [N] and whether the most probable class is the label, bool [N]."""

    labels: np.ndarray
    right: np.ndarray

    @classmethod
    def of(cls, judged: _Judged) -> _Accuracy | None:
        if judged.labels is None or _warn_of_other_classes(judged):
            return None
        labels, probabilities = judged.labels, judged.seen.activations.probabilities
        return cls(labels, probabilities.argmax(axis=1) == labels)

    def per_class(self) -> dict[str, float]:
        return {str(k): float(self.right[self.labels == k].mean()) for k in np.unique(self.labels)}


def _describe(paths: Paths, engine: FeatureEngine) -> ImageSet:
    """Check an input as far as that goes without reading its images."""
    images = open_image_set(paths)
    path = images.parts[0].path
    if not images.count and not engine.uses_stored_statistics:
        raise InputError(f"{path}: found statistics only, which are Inception's, expected images for {engine.name}")
    if images.count:
        if images.count <= pr.NEIGHBOURS:
            raise InputError(f"{path}: found {images.count} images, expected at least {pr.NEIGHBOURS + 1}")
        engine.check(path, images.shape)
    return images


def _labels(images: ImageSet, required: bool) -> np.ndarray | None:
    """Class labels; where they serve for a warning only, bad ones are one."""
    try:
        return images.labels()
    except InputError as error:
        if required:
            raise
        log.warning("warning: %s", error)
        return None


def _statistics(images: ImageSet, seen: Seen | None, engine: FeatureEngine) -> tuple[Gaussian, Gaussian]:
    """Of pooled and spatial features, stored or computed."""
    path = images.parts[0].path
    if images.stored and not engine.uses_stored_statistics:
        log.info("%s: its stored statistics are Inception's; computing new ones from its images", path)
    elif images.stored:
        log.info("%s: using its stored statistics", path)
        found = tuple(len(gaussian.mu) for gaussian in images.stored)
        dims = found if seen is None else (seen.activations.pool.shape[1], seen.activations.spatial.shape[1])
        if found != dims:
            raise InputError(
                f"{path}: found stored statistics of {found[0]} and {found[1]} dimensions, "
                f"expected {dims[0]} and {dims[1]} for {engine.name}"
            )
        return images.stored
    return fit_gaussian(seen.activations.pool), fit_gaussian(seen.activations.spatial)


def _distance(reference: _Judged, samples: _Judged, kind: str) -> float:
    try:
        return frechet_distance(getattr(samples, kind), getattr(reference, kind))
    except ValueError as error:  # only stored statistics can be unfit
        raise InputError(f"statistics of {reference.images.name} and {samples.images.name}: {error}") from error


def _warnings(judged: Sequence[_Judged]) -> list[str]:
    ref = judged[0]
    found = [] if ref.seen else [f"{ref.images.name}: holds no images: no precision, no recall, only distances"]
    for one in judged:
        if one.seen:
            name, pool = one.images.name, one.seen.activations.pool
            if not (one is ref and one.images.stored):  # stored ones may be of many more images
                found += checks.warn_of_counts(name, len(pool), pool.shape[1])
            found += checks.warn_of_images(name, one.seen.image_hashes) + checks.warn_of_features(name, pool)
    for one in judged[1:]:
        found += checks.warn_of_labels(one.images.name, one.labels, ref.labels)
        if ref.seen:
            found += checks.warn_of_shapes(one.images.name, one.images.shape, ref.images.name, ref.images.shape)
            hashes = one.seen.image_hashes, ref.seen.image_hashes
            found += checks.warn_of_shared(one.images.name, hashes[0], ref.images.name, hashes[1])
    return found


def _warn_of_other_classes(judged: _Judged) -> list[str]:
    """A line where the labels are not classes of the network: samples guided by a classifier of others."""
    labels, classes = judged.labels, judged.seen.activations.probabilities.shape[1]
    if labels is None or (labels.min() >= 0 and labels.max() < classes):
        return []
    return [
        f"{judged.images.name}: no accuracy: found labels from {labels.min()} to {labels.max()} in arr_1, "
        f"expected 0 to {classes - 1}, the classes of the --features classifier"
    ]


def _per_image(
    ref: _Judged, own: _Judged, extra: bool, exact_upstream: bool
) -> dict[str, tuple[str, np.ndarray]]:
    """Metrics that are means of one value an image: metric to (whose images, values)."""
    if ref.seen is None:
        return {}
    pools = ref.seen.activations.pool, own.seen.activations.pool
    upstreams = {"block": half_precision.BLOCK, "distances": half_precision.upstream_distances}
    log.info("computing precision and recall")
    precise, recalled = pr.inside_manifolds(*pools, **(upstreams if exact_upstream else {}))
    found = {"precision": ("samples", precise), "recall": ("reference", recalled)}
    if extra:
        if len(pools[0]) <= DENSITY_NEIGHBOURS:
            raise InputError(
                f"{ref.images.name}: found {len(pools[0])} images, expected more than {DENSITY_NEIGHBOURS} for density"
            )
        log.info("computing density and coverage")
        density, covered = density_coverage(*pools)
        found |= {"density": ("samples", density), "coverage": ("reference", covered)}
    return found


def _intervals(
    ref: _Judged,
    own: _Judged,
    per_image: dict[str, tuple[str, np.ndarray]],
    accuracy: _Accuracy | None,
    rounds: int,
    seed: int,
    extra: bool,
) -> dict[str, tuple[float, float]]:
    log.info("resampling %d times for intervals", rounds)
    figures = _figures(ref, own.seen, extra)
    if own.images.stored:  # their distances are not those of these images
        figures = {name: figure for name, figure in figures.items() if name not in ("fid", "sfid")}
    figures |= {name: mean_figure(v) for name, (whose, v) in per_image.items() if whose == "samples"}
    if accuracy:
        figures["accuracy"] = mean_figure(accuracy.right)
    found = bootstrap_intervals(figures, own.images.count, rounds, seed)
    others = {name: mean_figure(v) for name, (whose, v) in per_image.items() if whose == "reference"}
    return found | (bootstrap_intervals(others, ref.images.count, rounds, seed) if others else {})


def _paired(
    ref: _Judged, own: _Judged, other: _Judged, rounds: int, seed: int, extra: bool
) -> dict[str, dict[str, float]]:
    log.info("swapping pairs %d times", rounds)
    both = [own.seen.activations, other.seen.activations]
    stacked = {
        name: np.concatenate([getattr(one, name) for one in both]) for name in ("pool", "spatial", "probabilities")
    }
    figures = _figures(ref, Seen(type(both[0])(**stacked), np.empty(0)), extra)
    if ref.seen:
        reference = ref.seen.activations.pool
        inside = [pr.inside_manifolds(reference, one.pool)[0] for one in both]
        figures["precision"] = mean_figure(np.concatenate(inside))
        if recall := recall_figure(reference, stacked["pool"], pr.NEIGHBOURS):
            figures["recall"] = recall
        else:
            log.warning("warning: no paired test of recall: too many images have the same features")
    return paired_differences(figures, own.images.count, rounds, seed)


def _figures(ref: _Judged, seen: Seen, extra: bool) -> dict[str, Figure]:
    """The metrics of samples that may count several times, against a fixed reference."""
    found = seen.activations
    figures = {
        "inception_score": row_by_row(lambda counts: inception_score(found.probabilities[rows_of(counts)])),
        "fid": frechet_figure(found.pool, ref.pool),
        "sfid": frechet_figure(found.spatial, ref.spatial),
    }
    if extra and ref.seen:
        figures["kid"] = kernel_figure(found.pool, ref.seen.activations.pool)
    return figures

"""From images and a feature network to metrics: of one set against a reference, perhaps beside a paired set."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from evaluations import checks
from evaluations.accuracy import accuracy_of, warn_of_poor
from evaluations.cache import ActivationCache
from evaluations.engine import FeatureEngine
from evaluations.image_choice import choose_images
from evaluations.image_sets import RESIZE_RULE, ImageSet, open_image_set
from evaluations.judged import Judged, fit_statistics, usable_statistics
from evaluations.metrics import half_precision
from evaluations.metrics import precision_recall as pr
from evaluations.metrics.density_coverage import NEIGHBOURS as DENSITY_NEIGHBOURS
from evaluations.metrics.density_coverage import density_coverage
from evaluations.metrics.frechet import frechet_distance
from evaluations.metrics.inception_score import inception_score
from evaluations.metrics.kernel_distance import SUBSET_SIZE, deviation_size, kernel_distance
from evaluations.metrics_record import Metrics
from evaluations.per_class import by_class, check_classes
from evaluations.seeing import see
from evaluations.uncertainty import PerImage, intervals, paired_tests
from guided_diffusion.errors import InputError, counted
from guided_diffusion.files import hash_file
from guided_diffusion.safe_images import Reading

__all__ = ["Metrics", "evaluate"]

Paths = str | os.PathLike | Sequence[str | os.PathLike]

LEAST = {"batch_size": 1, "bootstrap": 2, "paired_rounds": 1, "num_samples": 4, "resize": 1, "kid_subset_size": 2}

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
    num_samples: int | None = None,
    resize: int | None = None,
    reading: Reading | None = None,
    per_class: bool = False,
    kid_subset_size: int | None = None,
) -> Metrics:
    """Judge the images ``samples`` by ``reference``; what both may be is said in ``image_sets``.

    At least 4 images each, uint8 [N, H, W, 1 or 3]. Statistics stored with either (``mu``, ``sigma``, ``mu_s``,
    ``sigma_s``) replace those of its images if they were made by the same network, or nobody knows by which; a
    reference may hold nothing else. Everything about the files is checked before the network runs.

    :param extra: KID, density and coverage too.
    :param bootstrap: rounds of resampling for 95 % intervals; 0 for none.
    :param paired: other samples whose i-th image shares its noise with the i-th sample.
    :param paired_rounds: random swaps behind the p-values of ``paired``.
    :param exact_upstream: precision and recall in upstream's half precision.
    :param seed: of subsets, resampling, swaps and the choice of ``num_samples``.
    :param cache: a folder for the activations of the reference.
    :param num_samples: judge that many of the samples by that many of the reference, drawn at random; statistics
        stored with the reference stay those of all it was made from.
    :param resize: bring all images to squares of this side first, by ``image_sets.RESIZE_RULE``.
    :param reading: how the pixels of image files become 8 bits; as in training unless given.
    :param per_class: FID, precision and recall of each label too.
    :param kid_subset_size: see ``kernel_distance``.

    Raises ``InputError`` naming the file and what is wrong with it.
    """
    check_numbers(num_samples=num_samples, resize=resize, kid_subset_size=kid_subset_size, paired_rounds=paired_rounds)
    if kid_subset_size is not None and not extra:
        raise InputError("--kid_subset_size: found no --extra, expected it, as KID is one of its figures")
    sets = [_describe(paths, engine, resize, reading) for paths in (reference, samples, paired) if paths is not None]
    if not sets[1].count or (paired is not None and sets[2].count != sets[1].count):
        raise InputError(
            f"{sets[-1].name}: found {sets[-1].count} images, expected "
            + ("some to judge" if not sets[1].count else f"{sets[1].count}, one for each of {sets[1].name}")
        )
    warnings: list[str] = []
    _warn(warnings, [line for images in sets for line in images.warnings])
    if num_samples is not None:
        sets = [_choose(images, num_samples, seed, is_reference=i == 0) for i, images in enumerate(sets)]
    if extra:
        _check_counts(sets[0], sets[1], kid_subset_size)
    names = getattr(engine, "class_names", None)
    labels = [_labels(images, i == 1 and not engine.uses_stored_statistics, names) for i, images in enumerate(sets)]
    if per_class:
        for images, found_labels in zip(sets[:2], labels, strict=False):
            check_classes(images.parts[0].path, images.count, found_labels)
    weights = getattr(engine, "weights_path", None)
    network = None if weights is None else hash_file(weights)
    stored = [usable_statistics(images, engine, network) for images in sets]
    _warn(warnings, [line for _, lines in stored for line in lines])
    digests = [images.digest() for images in sets]
    store = None if cache is None else ActivationCache(cache)
    if store and not network:
        log.warning("warning: --cache: %s does not say where its weights are; nothing is cached", engine.name)

    judged = []
    for i, images in enumerate(sets):
        seen = see(images, engine, digests[i], network, store if i == 0 else None) if images.count else None
        statistics = fit_statistics(images.parts[0].path, stored[i][0], seen, engine)
        if seen and not (bootstrap or paired is not None):
            seen = seen.without_spatial()
        judged.append(Judged(replace(images, stored=stored[i][0]), labels[i], seen, *statistics))
    ref, own = judged[:2]
    _warn(warnings, _warnings(judged, engine))
    (ref_accuracy, lines), (accuracy, more) = accuracy_of(ref, engine), accuracy_of(own, engine)
    lines += more
    if ref_accuracy:
        lines += warn_of_poor(ref.images.name, ref_accuracy, ref.seen.activations.probabilities.shape[1])
    _warn(warnings, lines)

    log.info("computing Fréchet distances")
    upstreams = {"block": half_precision.BLOCK, "distances": half_precision.upstream_distances}
    manifolds = upstreams if exact_upstream else {}
    probabilities = own.seen.activations.probabilities
    found: dict[str, Any] = {
        "inception_score": inception_score(probabilities) if probabilities.shape[1] else None,
        "fid": _distance(ref, own, "pool"),
        "sfid": _distance(ref, own, "spatial"),
    }
    per_image = _per_image(ref, own, extra, manifolds)
    found |= {name: float(values.mean()) for name, (_, values) in per_image.items()}
    if extra and ref.seen:
        log.info("computing the kernel distance")
        pools = ref.seen.activations.pool, own.seen.activations.pool
        found["kid"], found["kid_deviation"] = kernel_distance(*pools, subset_size=kid_subset_size, seed=seed)
        found["kid_subset_size"] = kid_subset_size or deviation_size(min(map(len, pools)))
        if kid_subset_size is None and found["kid_subset_size"] < SUBSET_SIZE:
            line = f"KID: its deviation is over subsets of {found['kid_subset_size']} images, half the smaller set, "
            _warn(warnings, [f"{line}not {SUBSET_SIZE}, as there are too few; --kid_subset_size chooses another size"])
    if per_class:
        found["per_class"], lines = by_class(ref, own, **manifolds)
        _warn(warnings, lines)
    return Metrics(
        **{"precision": None, "recall": None, **found},
        accuracy=accuracy and accuracy.share,
        class_accuracy=accuracy and accuracy.per_class(),
        reference_accuracy=ref_accuracy and ref_accuracy.share,
        n_reference=ref.images.count,
        n_samples=own.images.count,
        engine=engine.name,
        reference=ref.images.name,
        samples=own.images.name,
        intervals=intervals(ref, own, per_image, accuracy, bootstrap, seed, extra) if bootstrap else None,
        paired=paired_tests(*judged, paired_rounds, seed, extra) if paired is not None else None,
        paired_with=judged[2].images.name if paired is not None else None,
        paired_rounds=paired_rounds if paired is not None else 0,
        bootstrap=bootstrap,
        seed=seed,
        half_precision=exact_upstream,
        chosen=num_samples and f"{num_samples} of each set at random, seed {seed}",
        resize_before=resize and f"to {resize}x{resize}: {RESIZE_RULE}",
        resize=getattr(engine, "resize", None),
        reading=None if reading in (None, Reading()) else asdict(reading),
        network_sha256=network,
        network_config=getattr(engine, "config", None),
        reference_sha256=digests[0],
        samples_sha256=digests[1],
        paired_sha256=digests[2] if paired is not None else None,
        warnings=warnings,
    )


def _warn(warnings: list[str], lines: list[str]) -> None:
    """Say something now, and keep it for the results."""
    for line in lines:
        log.warning("warning: %s", line)
    warnings += lines


def check_numbers(**numbers: int | None) -> None:
    """Raise ``InputError`` for a number below the least that its flag takes; None is one that is not given."""
    for flag, number in numbers.items():
        if number is not None and number < LEAST[flag]:
            raise InputError(f"--{flag}: found {number}, expected at least {LEAST[flag]}")


def _describe(paths: Paths, engine: FeatureEngine, resize: int | None, reading: Reading | None) -> ImageSet:
    """Check an input as far as that goes without reading its images."""
    images = open_image_set(paths, resize, reading)
    path = images.parts[0].path
    if images.count:
        if images.count <= pr.NEIGHBOURS:
            raise InputError(f"{path}: found {counted(images.count, 'images')}, expected at least {pr.NEIGHBOURS + 1}")
        engine.check(path, images.shape)
    return images


def _choose(images: ImageSet, num_samples: int, seed: int, is_reference: bool) -> ImageSet:
    """``num_samples`` of a set's images. A reference may have fewer, and keeps its statistics."""
    path = images.parts[0].path
    if images.count < num_samples and not is_reference:
        found = counted(images.count, "images")
        raise InputError(f"{path}: found {found}, expected at least --num_samples {num_samples}")
    if 0 < images.count < num_samples:
        log.info("%s: taking all %d images, fewer than --num_samples %d", path, images.count, num_samples)
    chosen = choose_images(images, num_samples, seed)
    return chosen if is_reference or chosen is images else replace(chosen, stored=None)


def _check_counts(reference: ImageSet, samples: ImageSet, kid_subset_size: int | None) -> None:
    """Raise ``InputError`` for sets that are too small for density or for subsets of the size asked for."""
    if not reference.count:
        return
    if reference.count <= DENSITY_NEIGHBOURS:
        raise InputError(
            f"{reference.name}: found {counted(reference.count, 'images')}, "
            f"expected more than {DENSITY_NEIGHBOURS} for density"
        )
    smaller = min(reference, samples, key=lambda images: images.count)
    if kid_subset_size is not None and kid_subset_size > smaller.count:
        raise InputError(
            f"--kid_subset_size: found {kid_subset_size}, expected at most {smaller.count}, as {smaller.name} holds"
        )


def _labels(images: ImageSet, required: bool, class_names: Sequence[str] | None) -> np.ndarray | None:
    """Class labels; where they serve for a warning only, bad ones are one.

    :param class_names: that the feature network knows, for images in folders of their classes.
    """
    try:
        return images.labels(class_names)
    except InputError as error:
        if required:
            raise
        log.warning("warning: %s", error)
        return None


def _distance(reference: Judged, samples: Judged, kind: str) -> float | None:
    first, second = getattr(samples, kind), getattr(reference, kind)
    if first is None or second is None:
        return None
    try:
        return frechet_distance(first, second)
    except ValueError as error:  # only stored statistics can be unfit
        raise InputError(f"statistics of {reference.images.name} and {samples.images.name}: {error}") from error


def _warnings(judged: Sequence[Judged], engine: FeatureEngine) -> list[str]:
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
                found += checks.warn_of_counts(name, len(pool), pool.shape[1])
            found += checks.warn_of_images(name, one.seen.image_hashes) + checks.warn_of_features(name, pool)
    for one in judged[1:]:
        found += checks.warn_of_labels(one.images.name, one.labels, ref.labels)
        if ref.seen:
            found += checks.warn_of_shapes(one.images.name, one.images.shape, ref.images.name, ref.images.shape)
            hashes = one.seen.image_hashes, ref.seen.image_hashes
            found += checks.warn_of_shared(one.images.name, hashes[0], ref.images.name, hashes[1])
    return found


def _per_image(ref: Judged, own: Judged, extra: bool, manifolds: dict[str, Any]) -> PerImage:
    """Metrics that are means of one value an image: metric to (whose images, values)."""
    if ref.seen is None:
        return {}
    pools = ref.seen.activations.pool, own.seen.activations.pool
    log.info("computing precision and recall")
    precise, recalled = pr.inside_manifolds(*pools, **manifolds)
    found = {"precision": ("samples", precise), "recall": ("reference", recalled)}
    if extra:
        log.info("computing density and coverage")
        density, covered = density_coverage(*pools)
        found |= {"density": ("samples", density), "coverage": ("reference", covered)}
    return found

"""From two npz files and a feature network to the five metrics (and accuracy, for a classifier)."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluations.engine import Activations, FeatureEngine
from evaluations.metrics.frechet import frechet_distance
from evaluations.metrics.inception_score import inception_score
from evaluations.metrics.npz import open_images, read_labels, read_stored_statistics
from evaluations.metrics.precision_recall import NEIGHBOURS, precision_recall
from evaluations.metrics.statistics import Gaussian, fit_gaussian
from guided_diffusion.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metrics:
    """The quality of a set of samples against a reference set.

    ``inception_score`` 1..K; ``fid`` and ``sfid`` >= 0, smaller is better; ``precision``, ``recall`` and
    ``accuracy`` 0..1. ``accuracy`` is None unless the engine is a classifier and the samples have labels.
    ``n_reference`` and ``n_samples`` count images.
    """

    inception_score: float
    fid: float
    sfid: float
    precision: float
    recall: float
    accuracy: float | None
    n_reference: int
    n_samples: int
    engine: str
    reference: str
    samples: str


def evaluate(reference: str | os.PathLike, samples: str | os.PathLike, engine: FeatureEngine) -> Metrics:
    """Judge the images of the npz file ``samples`` by those of ``reference``.

    Both hold ``arr_0``, uint8 [N, H, W, 1 or 3], N >= 4. Statistics stored in either file (``mu``, ``sigma``,
    ``mu_s``, ``sigma_s``) replace those of its images if they were made by the same kind of engine; precision
    and recall always use the images. Everything about the files is checked before the network runs.

    Raises ``InputError`` naming the file and what is wrong with it.
    """
    sets = [_describe(path, engine) for path in (reference, samples)]
    labels = None if engine.uses_stored_statistics else read_labels(samples, sets[1].count)

    reference_activations = _activations(sets[0], engine)
    sample_activations = _activations(sets[1], engine)
    reference_stats = _statistics(sets[0], reference_activations, engine)
    sample_stats = _statistics(sets[1], sample_activations, engine)

    log.info("computing precision and recall")
    precision, recall = precision_recall(reference_activations.pool, sample_activations.pool)
    log.info("computing Fréchet distances")
    return Metrics(
        inception_score=inception_score(sample_activations.probabilities),
        fid=_distance(reference_stats[0], sample_stats[0], sets),
        sfid=_distance(reference_stats[1], sample_stats[1], sets),
        precision=precision,
        recall=recall,
        accuracy=None if labels is None else _accuracy(sample_activations, labels, samples),
        n_reference=sets[0].count,
        n_samples=sets[1].count,
        engine=engine.name,
        reference=str(Path(reference).absolute()),
        samples=str(Path(samples).absolute()),
    )


@dataclass(frozen=True)
class _ImageSet:
    path: str
    shape: tuple[int, ...]
    stored: tuple[Gaussian, Gaussian] | None

    @property
    def count(self) -> int:
        return self.shape[0]


def _describe(path: str | os.PathLike, engine: FeatureEngine) -> _ImageSet:
    """Check a file as far as that goes without reading its images."""
    path = os.fspath(path)
    with open_images(path) as images:
        shape = images.shape
    if shape[0] <= NEIGHBOURS:
        raise InputError(f"{path}: found {shape[0]} images, expected at least {NEIGHBOURS + 1}")
    engine.check(path, shape)
    stored = read_stored_statistics(path)
    if stored and not engine.uses_stored_statistics:
        log.info("%s: its stored statistics are Inception's; computing new ones from its images", path)
        stored = None
    return _ImageSet(path, shape, stored)


def _activations(images: _ImageSet, engine: FeatureEngine) -> Activations:
    log.info("%s: computing activations of %d images", Path(images.path).absolute(), images.count)
    with open_images(images.path) as reader:
        try:
            found = engine.compute_activations(reader.read_batches(engine.batch_size))
        except InputError as error:
            raise _naming(images.path, error) from error
    for kind, array in (("pooled", found.pool), ("spatial", found.spatial), ("class", found.probabilities)):
        if not np.isfinite(array).all():
            raise InputError(f"{images.path}: {engine.name} yields {kind} outputs that are nan or infinite")
    return found


def _statistics(
    images: _ImageSet, activations: Activations, engine: FeatureEngine
) -> tuple[Gaussian, Gaussian]:
    """Of pooled and spatial features, stored or computed."""
    if images.stored is None:
        return fit_gaussian(activations.pool), fit_gaussian(activations.spatial)
    log.info("%s: using its stored statistics", images.path)
    dims = activations.pool.shape[1], activations.spatial.shape[1]
    found = tuple(len(gaussian.mu) for gaussian in images.stored)
    if found != dims:
        raise InputError(
            f"{images.path}: found stored statistics of {found[0]} and {found[1]} dimensions, "
            f"expected {dims[0]} and {dims[1]} for {engine.name}"
        )
    return images.stored


def _distance(reference: Gaussian, samples: Gaussian, sets: list[_ImageSet]) -> float:
    try:
        return frechet_distance(samples, reference)
    except ValueError as error:  # only stored statistics can be unfit
        raise InputError(f"statistics of {sets[0].path} and {sets[1].path}: {error}") from error


def _accuracy(activations: Activations, labels: np.ndarray, path: str | os.PathLike) -> float:
    """Share of images, 0..1, whose most probable class is the label."""
    classes = activations.probabilities.shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"{path}: found labels from {labels.min()} to {labels.max()} in arr_1, "
            f"expected 0 to {classes - 1}, the classes of the --features classifier"
        )
    return float((activations.probabilities.argmax(axis=1) == labels).mean())


def _naming(path: str, error: InputError) -> InputError:
    """The same complaint with the file's name in front, unless it is there already."""
    text = str(error)
    return error if text.startswith(path) else InputError(f"{path}: {text}")

"""A set of images as the metrics need it: labels, what the network made of it, means and covariances."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from evaluations.activations import Seen
from evaluations.features.base import FeatureEngine
from evaluations.image_sets import ImageSet
from evaluations.metrics.statistics import Gaussian, fit_gaussian
from guided_diffusion.errors import InputError

Statistics = tuple[Gaussian, Gaussian | None]  # of pooled and spatial features, the latter None where there are none

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """A set and what the network made of it; ``seen`` is None for statistics alone."""

    images: ImageSet
    labels: np.ndarray | None
    seen: Seen | None
    pool: Gaussian
    spatial: Gaussian | None


def usable_statistics(
    images: ImageSet, engine: FeatureEngine, network: str | None
) -> tuple[Statistics | None, list[str]]:
    """Return the statistics stored with a set, None where this network did not make them; and warnings about them.

    ``network`` is the sha256 of the engine's weights. A file says by which network they were made if
    ``make_reference`` wrote it. Raises ``InputError`` where they are of no use and there are no images to compute
    others from, or where they are of another width.
    """
    path = images.parts[0].path
    if images.stored is None:
        return None, []
    if not engine.uses_stored_statistics:
        if not images.count:
            raise InputError(f"{path}: found statistics only, which are Inception's, expected images for {engine.name}")
        log.info("%s: its stored statistics are Inception's; computing new ones from its images", path)
        return None, []
    made_by = images.settings.get("network_sha256")
    if isinstance(made_by, str) and network and made_by != network:
        found = f"{path}: its statistics were made by another network (sha256 {made_by[:12]}..., not {network[:12]}...)"
        if not images.count:
            raise InputError(f"{found} and it holds no images to compute others from; expected those of {engine.name}")
        return None, [f"{found}; they are computed anew from the {images.count} images in it"]
    _check_width(path, len(images.stored[0].mu), getattr(engine, "pool_dims", None), engine)
    log.info("%s: using its stored statistics", path)
    if images.stored[1] is None and images.count:
        log.info("%s: none of them are of spatial features: sFID is to its %d images", path, images.count)
    if made_by and made_by == network:
        return images.stored, []
    known = "the file does not say" if not made_by else f"the file says sha256 {made_by[:12]}..., {engine.name} nothing"
    return images.stored, [f"{path}: whether its statistics were made by this network is unknown: {known}"]


def fit_statistics(path: str, stored: Statistics | None, seen: Seen | None, engine: FeatureEngine) -> Statistics:
    """Return the stored statistics, and in place of those that are missing the ones of ``seen``.

    Raises ``InputError`` if stored ones are not as wide as the network's features.
    """
    found = list(stored or (None, None))
    if seen is not None:
        for i, (kind, features) in enumerate((("", seen.activations.pool), ("_s", seen.activations.spatial))):
            if found[i] is not None:
                _check_width(path, len(found[i].mu), features.shape[1], engine, kind)
            elif features.shape[1]:
                found[i] = fit_gaussian(features)
    return found[0], found[1]


def _check_width(path: str, found: int, expected: int | None, engine: FeatureEngine, kind: str = "") -> None:
    if expected is not None and found != expected:
        raise InputError(
            f"{path}: found stored statistics mu{kind} of {found} dimensions, expected {expected} for {engine.name}"
        )

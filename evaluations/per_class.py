"""FID, precision and recall of each class by itself."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from evaluations.judged import Judged
from evaluations.metrics import precision_recall as pr
from evaluations.metrics.frechet import frechet_distance
from evaluations.metrics.statistics import fit_gaussian
from guided_diffusion.errors import InputError

log = logging.getLogger(__name__)

FIGURES = ("fid", "precision", "recall")


def check_classes(name: str, count: int, labels: np.ndarray | None) -> None:
    """Raise ``InputError`` if a set cannot be judged class by class."""
    if not count:
        raise InputError(f"{name}: found statistics only, expected images with labels for --per_class")
    if labels is None:
        raise InputError(
            f"{name}: found no labels, expected some for --per_class: arr_1 in an npz file, or names such as 3_0012.png"
        )


def by_class(reference: Judged, samples: Judged, **manifolds: Any) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the figures of every label that occurs in either set, by label, and warnings.

    An entry has ``name`` (where the reference names its classes), ``n_reference``, ``n_samples``, and ``fid``,
    ``precision`` and ``recall`` from the images of that class alone; these are None where a side has under 4.

    :param manifolds: more arguments of ``precision_recall``.
    """
    log.info("computing the figures of each class")
    names = reference.images.settings.get("class_names") or samples.images.settings.get("class_names")
    found, few = {}, []
    for label in np.unique(np.concatenate([reference.labels, samples.labels])):
        pools = [one.seen.activations.pool[one.labels == label] for one in (reference, samples)]
        figures: dict[str, Any] = dict.fromkeys(FIGURES)
        if min(map(len, pools)) > pr.NEIGHBOURS:
            figures["fid"] = frechet_distance(fit_gaussian(pools[1]), fit_gaussian(pools[0]))
            figures["precision"], figures["recall"] = pr.precision_recall(*pools, **manifolds)
        else:
            few.append(str(label))
        known = isinstance(names, list) and 0 <= label < len(names)
        counts = {"n_reference": len(pools[0]), "n_samples": len(pools[1])}
        found[str(label)] = {"name": str(names[label]) if known else None, **counts, **figures}
    if not few:
        return found, []
    shown = ", ".join(few[:10]) + (", ..." if len(few) > 10 else "")
    return found, [
        f"--per_class: {len(few)} of {len(found)} classes have under {pr.NEIGHBOURS + 1} images on a side and no "
        f"figures: {shown}"
    ]

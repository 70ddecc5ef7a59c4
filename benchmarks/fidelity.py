"""torch-fidelity's metrics as functions of features, without the rest of the package, which needs torchvision."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.metadata import version
from types import ModuleType, SimpleNamespace

import numpy as np
import torch

NAME = "torch_fidelity"


class FidelityUnavailable(Exception):
    """torch-fidelity cannot be had here; the message says why."""


def load_fidelity() -> SimpleNamespace:
    """Its modules ``metric_fid``, ``metric_isc``, ``metric_kid`` and ``metric_prc``, and ``version``.

    They import each other through the package, whose ``__init__`` loads every network it knows. So the package is
    stood in for by an empty one with the same folder, and ``utils``, which only images need, by one whose names
    are all None. Neither stays behind. Raises FidelityUnavailable.
    """
    spec = importlib.util.find_spec(NAME)
    if spec is None:
        raise FidelityUnavailable("not installed (pip install --no-deps torch-fidelity)")
    package, utils = ModuleType(NAME), ModuleType(f"{NAME}.utils")
    package.__path__ = list(spec.submodule_search_locations)
    utils.__getattr__ = lambda name: None
    before = set(sys.modules)
    sys.modules |= {NAME: package, f"{NAME}.utils": utils}
    try:
        kinds = ("metric_fid", "metric_isc", "metric_kid", "metric_prc")
        modules = {kind: importlib.import_module(f"{NAME}.{kind}") for kind in kinds}
    except ImportError as error:
        raise FidelityUnavailable(f"does not import: {error}") from error
    finally:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == NAME:
                del sys.modules[name]
    return SimpleNamespace(**modules, version=version("torch-fidelity"))


def fidelity_metrics(
    reference_ND: np.ndarray, samples_MD: np.ndarray, probabilities_MK: np.ndarray, split_size: int = 5000
) -> dict[str, float]:
    """Its FID, precision, recall and inception score, the latter in file order and upstream's splits.

    KID of all images at once, where both sets have as many; its subsets are other random ones than ours.
    """
    package = load_fidelity()
    reference, samples = (torch.from_numpy(np.array(x)) for x in (reference_ND, samples_MD))
    shares = package.metric_prc.prc_features_to_metric(samples, reference, verbose=False)
    logits = torch.from_numpy(probabilities_MK).log()
    score = package.metric_isc.isc_features_to_metric(logits, splits=-(-len(logits) // split_size), shuffle=False)
    found = {
        "inception_score": score["inception_score_mean"],
        "fid": fidelity_frechet(reference_ND, samples_MD),
        "precision": shares["precision"],
        "recall": shares["recall"],
    }
    if len(reference) == len(samples):
        whole = {"kid_subsets": 1, "kid_subset_size": len(samples), "verbose": False}
        kernel = package.metric_kid.kid_features_to_metric(samples.double(), reference.double(), **whole)
        found["kid"] = kernel["kernel_inception_distance_mean"]
    return found


def fidelity_frechet(reference_ND: np.ndarray, samples_MD: np.ndarray) -> float:
    """Its Fréchet distance of features."""
    package = load_fidelity().metric_fid
    gaussians = [package.fid_features_to_statistics(torch.from_numpy(np.array(x))) for x in (samples_MD, reference_ND)]
    return package.fid_statistics_to_metric(*gaussians, False)["frechet_inception_distance"]

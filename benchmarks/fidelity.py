"""torch-fidelity's metrics as functions of features, without the rest of the package, which needs torchvision."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import torch

NAME = "torch_fidelity"


class FidelityUnavailable(Exception):
    """torch-fidelity cannot be used here; the message says why."""


def load_fidelity() -> SimpleNamespace:
    """Import torch-fidelity's modules ``metric_fid``, ``metric_isc``, ``metric_kid`` and ``metric_prc``.

    They import each other through the package, whose ``__init__`` loads every network it knows. So an empty package
    with the same folder takes its place meanwhile, and one whose names are all None that of ``utils``, which only
    images need. Raises FidelityUnavailable.
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
        return SimpleNamespace(**{kind: importlib.import_module(f"{NAME}.{kind}") for kind in kinds})
    except ImportError as error:
        raise FidelityUnavailable(f"does not import: {error}") from error
    finally:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == NAME:
                del sys.modules[name]


def fidelity_metrics(
    reference_ND: np.ndarray, samples_ND: np.ndarray, probabilities_NK: np.ndarray, split_size: int = 5000
) -> dict[str, float]:
    """FID, precision, recall, KID and inception score of as many samples as references.

    The inception score is in file order and upstream's splits; KID is that of all images at once, as the subsets are
    other random ones than ours.
    """
    package = load_fidelity()
    reference, samples = (torch.from_numpy(np.array(x)) for x in (reference_ND, samples_ND))
    gaussians = [package.metric_fid.fid_features_to_statistics(x) for x in (samples, reference)]
    shares = package.metric_prc.prc_features_to_metric(samples, reference, verbose=False)
    logits, splits = torch.from_numpy(probabilities_NK).log(), -(-len(probabilities_NK) // split_size)
    whole = {"kid_subsets": 1, "kid_subset_size": len(samples), "verbose": False}
    kernel = package.metric_kid.kid_features_to_metric(samples.double(), reference.double(), **whole)
    return {
        "inception_score": package.metric_isc.isc_features_to_metric(logits, splits, False)["inception_score_mean"],
        "fid": package.metric_fid.fid_statistics_to_metric(*gaussians, False)["frechet_inception_distance"],
        "precision": shares["precision"],
        "recall": shares["recall"],
        "kid": kernel["kernel_inception_distance_mean"],
    }

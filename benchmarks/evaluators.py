"""The evaluators that are compared, each to be run in a process of its own: images or features in, figures out.

What comes back of each are figures, seconds on the wall and of processor time by part, and the peak memory.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

POOL, SPATIAL = 2048, 2023


def ours_from_images(engine: str, reference: str, samples: str, graph: str, keep: str) -> dict[str, Any]:
    """``evaluate`` with the TensorFlow or the torch engine; the samples' and reference's activations go to ``keep``."""
    from evaluations.evaluate import evaluate
    from evaluations.features.inception_tensorflow import InceptionExtractor
    from evaluations.features.inception_torch import TorchInceptionExtractor
    from evaluations.metrics.kernel_distance import squared_discrepancy

    network = (InceptionExtractor if engine == "tensorflow" else TorchInceptionExtractor)(graph)
    clock, compute, kept = Clock(), network.compute_activations, []

    def compute_and_keep(batches: Any) -> Any:
        kept.append(clock("network", lambda: compute(batches)))
        return kept[-1]

    network.compute_activations = compute_and_keep
    metrics = clock("metrics", lambda: evaluate(reference, samples, network))
    clock.subtract("metrics", "network")
    result = clock.result({name: getattr(metrics, name) for name in FIGURES if name != "kid"})
    result["figures"]["kid"] = squared_discrepancy(*(found.pool for found in kept))
    names = [f"{kind}_{name}" for kind in ("reference", "samples") for name in ("pool", "spatial", "probabilities")]
    arrays = [array for found in kept for array in (found.pool, found.spatial, found.probabilities)]
    np.savez(keep, **dict(zip(names, arrays, strict=True)))
    return result


def upstream_from_images(path: str, reference: str, samples: str, graph: str, scratch: str) -> dict[str, Any]:
    """Upstream's ``Evaluator``; it looks for the graph in its working directory."""
    module, tf = load_upstream(path)
    os.chdir(scratch)
    Path("classify_image_graph_def.pb").symlink_to(Path(graph).resolve())
    clock = Clock()
    with tf.Session(config=tf.ConfigProto(allow_soft_placement=True)) as session:
        evaluator = module.Evaluator(session)
        evaluator.warmup()
        first, second = clock("network", lambda: [evaluator.read_activations(name) for name in (reference, samples)])

        def figures() -> dict[str, float]:
            ours, theirs = evaluator.read_statistics(samples, second), evaluator.read_statistics(reference, first)
            shares = evaluator.compute_prec_recall(first[0], second[0])
            return {
                "inception_score": float(evaluator.compute_inception_score(second[0])),
                "fid": float(ours[0].frechet_distance(theirs[0])),
                "sfid": float(ours[1].frechet_distance(theirs[1])),
                "precision": float(shares[0]),
                "recall": float(shares[1]),
            }

        return clock.result(clock("metrics", figures))


def fidelity_from_features(kept: str) -> dict[str, Any]:
    """torch-fidelity's functions on the activations that ``ours_from_images`` kept."""
    from benchmarks.fidelity import fidelity_frechet, fidelity_metrics

    with np.load(kept) as arrays:
        pools = arrays["reference_pool"], arrays["samples_pool"]
        spatials = arrays["reference_spatial"], arrays["samples_spatial"]
        probabilities = arrays["samples_probabilities"]
    clock = Clock()
    figures = clock("metrics", lambda: {**fidelity_metrics(*pools, probabilities), "sfid": fidelity_frechet(*spatials)})
    return clock.result(figures)


FIGURES = ("inception_score", "fid", "sfid", "precision", "recall", "kid")


def ours_from_features(count: int) -> dict[str, Any]:
    """All but the inception score from made-up features, and what a bootstrap round of FID costs."""
    from evaluations.metrics.frechet import frechet_distance, frechet_figure
    from evaluations.metrics.precision_recall import precision_recall
    from evaluations.metrics.statistics import fit_gaussian

    clock = Clock()
    figures = {}
    for name, dims in (("fid", POOL), ("sfid", SPATIAL)):
        reference, samples = make_features(count, dims)
        gaussians = clock("statistics", lambda pair=(reference, samples): [fit_gaussian(x) for x in pair])
        figures[name] = clock(name, lambda pair=gaussians: frechet_distance(*pair))
    del gaussians
    reference, samples = make_features(count, POOL)
    figures["precision"], figures["recall"] = clock(
        "precision and recall", lambda: precision_recall(reference, samples)
    )
    result = clock.result(figures)
    gaussian = fit_gaussian(reference)
    figure, start = frechet_figure(samples, gaussian), time.process_time()
    figure(np.bincount(np.random.default_rng(0).integers(count, size=count), minlength=count)[None])
    return result | {"bootstrap_round_cpu_seconds": time.process_time() - start}


def upstream_from_features(path: str, count: int) -> dict[str, Any]:
    """The same by upstream's functions."""
    module, tf = load_upstream(path)
    clock = Clock()
    figures = {}
    for name, dims in (("fid", POOL), ("sfid", SPATIAL)):
        pair = make_features(count, dims)
        compute = module.Evaluator.compute_statistics
        first, second = clock("statistics", lambda pair=pair, c=compute: [c(None, x) for x in pair])
        figures[name] = float(clock(name, lambda a=first, b=second: b.frechet_distance(a)))
    reference, samples = make_features(count, POOL)
    with tf.Session() as session:
        estimator = module.ManifoldEstimator(session)
        estimator.warmup()

        def precision_recall() -> Any:
            radii = [estimator.manifold_radii(x) for x in (reference, samples)]
            return estimator.evaluate_pr(reference, radii[0], samples, radii[1])

        found = clock("precision and recall", precision_recall)
    figures["precision"], figures["recall"] = (float(share[0]) for share in found)
    return clock.result(figures)


def load_upstream(path: str) -> tuple[ModuleType, ModuleType]:
    """Upstream's evaluator.py as a module, and TensorFlow."""
    from evaluations.features.inception_tensorflow import import_tensorflow

    tf = import_tensorflow()
    spec = importlib.util.spec_from_file_location("upstream_evaluator", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, tf


def make_features(count: int, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Reference and samples, float32 [count, dims], not negative and correlated, as after a ReLU."""
    random = np.random.default_rng(dims)
    mixing = 0.3 * random.standard_normal((dims, dims), dtype=np.float32) / np.float32(np.sqrt(dims))
    found = []
    for shift in (-0.1, -0.09):
        features = random.standard_normal((count, dims), dtype=np.float32) @ mixing
        features += np.float32(shift)
        found.append(np.maximum(features, 0, out=features))
    return found[0], found[1]


def make_images(seed: int, count: int, size: int) -> np.ndarray:
    """Coarse random colours under fine noise, uint8 [count, size, size, 3]; another seed draws from the same."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 4, 4, 3), dtype=np.int16).repeat(size // 4, 1).repeat(size // 4, 2)
    fine = random.integers(-20, 21, coarse.shape, dtype=np.int16)
    return np.clip(coarse + fine, 0, 255).astype(np.uint8)


class Clock:
    """Adds up the seconds of each part."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, float]] = {"seconds": {}, "cpu_seconds": {}}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter(), time.process_time()
        found = work()
        spent = time.perf_counter() - start[0], time.process_time() - start[1]
        for seconds, more in zip(self._found.values(), spent, strict=True):
            seconds[name] = seconds.get(name, 0.0) + more
        return found

    def subtract(self, name: str, inner: str) -> None:
        """``inner`` was measured within ``name``: it is to count once."""
        for seconds in self._found.values():
            seconds[name] -= seconds[inner]

    def result(self, figures: dict[str, float]) -> dict[str, Any]:
        spent = {kind: {**seconds, "all": sum(seconds.values())} for kind, seconds in self._found.items()}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"figures": figures, **spent, "peak_bytes": peak}

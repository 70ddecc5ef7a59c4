"""The evaluators that are compared, each run in a process of its own: from images or features to metrics."""

from __future__ import annotations

import importlib.util
import os
import resource
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.fidelity import fidelity_frechet, fidelity_metrics
from evaluations.inception import import_tensorflow, make_session
from evaluations.metrics.frechet import frechet_figure
from evaluations.metrics.inception_score import inception_score
from evaluations.metrics.kernel_distance import squared_discrepancy
from evaluations.metrics.statistics import fit_gaussian
from evaluations.torch_inception import TorchInceptionEngine
from evaluations.upstream_api import Evaluator

OURS, TORCH, UPSTREAM, FIDELITY = "ours, TensorFlow", "ours, torch", "upstream", "torch-fidelity"
POOL, SPATIAL = 2048, 2023  # widths of the features
GRAPH = "classify_image_graph_def.pb"  # as upstream looks for it in the working directory


class Clock:
    """Adds up the seconds of each part, on the wall and of processor time."""

    def __init__(self) -> None:
        self.seconds, self.cpu_seconds = Counter(), Counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter(), time.process_time()
        yield
        self.seconds[part] += time.perf_counter() - start[0]
        self.cpu_seconds[part] += time.process_time() - start[1]

    def result(self, figures: dict[str, Any]) -> dict[str, Any]:
        """The metrics ("figures"), "seconds" and "cpu_seconds" by part and in all, peak memory ("peak_bytes")."""
        spent = {name: {**seconds, "all": sum(seconds.values())} for name, seconds in vars(self).items()}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"figures": {name: float(value) for name, value in figures.items()}, **spent, "peak_bytes": peak}


def run_evaluator(name: str, folder: Path, upstream: Path | None = None, count: int = 0) -> dict[str, Any]:
    """Compute all metrics with ours or upstream's `Evaluator`, which have the same methods; see `Clock.result`.

    :param folder: holds the graph, and images in reference.npz and samples.npz.
    :param upstream: upstream's evaluator.py; None: ours, whose KID is computed too.
    :param count: made-up features in each set instead of those of images; ours also returns the processor seconds of
        a round of FID's bootstrap ("bootstrap_round_cpu_seconds") then.
    """
    os.chdir(folder)
    clock, figures, evaluator = Clock(), {}, open_evaluator(name, upstream)
    if count:
        reference, samples = zip(*(make_features(count, dims) for dims in (POOL, SPATIAL)), strict=True)
    else:
        evaluator.warmup()
        with clock("network"):
            reference, samples = map(evaluator.read_activations, ("reference.npz", "samples.npz"))
        with clock("inception score"):
            figures["inception_score"] = evaluator.compute_inception_score(samples[0])
    for metric, *features in zip(("fid", "sfid"), reference, samples, strict=True):
        with clock("statistics"):
            first, second = map(evaluator.compute_statistics, features)
        with clock(metric):
            figures[metric] = second.frechet_distance(first)
    with clock("precision and recall"):
        figures["precision"], figures["recall"] = evaluator.compute_prec_recall(reference[0], samples[0])
    result = clock.result(figures)
    if count and upstream is None:
        result["bootstrap_round_cpu_seconds"] = time_bootstrap_round(reference[0], samples[0])
    elif upstream is None:
        result["figures"]["kid"] = squared_discrepancy(reference[0], samples[0])
    if name == TORCH and not count:
        np.savez("activations.npz", *reference, *samples, evaluator.network.compute_probabilities(samples[0]))
    return result


class TorchEvaluator(Evaluator):
    """Our evaluator with the torch engine."""

    def __init__(self) -> None:
        self.network, self.batch_size = TorchInceptionEngine(GRAPH), 64

    def compute_activations(self, batches: Any) -> tuple[np.ndarray, np.ndarray]:
        return self.network.compute_features(batches)

    def compute_inception_score(self, activations: np.ndarray) -> float:
        return inception_score(self.network.compute_probabilities(activations))


def open_evaluator(name: str, upstream: Path | None) -> Any:
    """The evaluator of a name, with the graph in the working directory."""
    if name == TORCH:
        return TorchEvaluator()
    if upstream is None:
        return Evaluator(make_session())
    module, tf = load_upstream_evaluator(upstream)
    return module.Evaluator(tf.Session(config=tf.ConfigProto(allow_soft_placement=True)))


def load_upstream_evaluator(path: str | Path) -> tuple[ModuleType, ModuleType]:
    """Upstream's evaluator.py as a module, and TensorFlow."""
    tf = import_tensorflow()
    spec = importlib.util.spec_from_file_location("upstream_evaluator", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, tf


def run_fidelity(folder: Path) -> dict[str, Any]:
    """Compute torch-fidelity's metrics from the activations that ours with the torch engine left in a folder."""
    clock = Clock()
    with np.load(folder / "activations.npz") as file:
        reference, spatial, samples, samples_spatial, probabilities = (file[name] for name in file.files)
    with clock("metrics"):
        figures = fidelity_metrics(reference, samples, probabilities)
        figures["sfid"] = fidelity_frechet(spatial, samples_spatial)
    return clock.result(figures)


def time_bootstrap_round(reference: np.ndarray, samples: np.ndarray) -> float:
    """Processor seconds of FID on samples drawn anew."""
    count = len(samples)
    figure, start = frechet_figure(samples, fit_gaussian(reference)), time.process_time()
    figure(np.bincount(np.random.default_rng(0).integers(count, size=count), minlength=count)[None])
    return time.process_time() - start


def make_features(count: int, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Reference and samples, float32 [count, dims], not negative and correlated, as after a ReLU."""
    random = np.random.default_rng(dims)
    mixing = 0.3 * random.standard_normal((dims, dims), dtype=np.float32) / np.float32(np.sqrt(dims))
    first, second = (random.standard_normal((count, dims), dtype=np.float32) @ mixing for _ in range(2))
    return np.maximum(first - np.float32(0.1), 0), np.maximum(second - np.float32(0.09), 0)


def make_images(seed: int, count: int, size: int) -> np.ndarray:
    """Coarse random colours under fine noise, uint8 [count, size, size, 3]; another seed draws from the same."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 4, 4, 3), dtype=np.int16).repeat(size // 4, 1).repeat(size // 4, 2)
    fine = random.integers(-20, 21, coarse.shape, dtype=np.int16)
    return np.clip(coarse + fine, 0, 255).astype(np.uint8)

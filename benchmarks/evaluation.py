"""The evaluator's metrics from activations, beside upstream's evaluator on the same numbers.

    python -m benchmarks.evaluation --upstream PATH/evaluator.py [--count 10000] [--json FILE]

Each side is a process of its own, one after the other, for its time and peak memory: statistics and Fréchet
distances of pooled [N, 2048] and spatial [N, 2023] features, precision and recall on the pooled ones.
Upstream's file is not part of this repository; without it only our side runs. It needs TensorFlow, whose
threads are held to ours. Compared are seconds of processor time, which other work on the machine stretches less
than those on the wall; both are reported.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy

POOL, SPATIAL = 2048, 2023


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the evaluator's metrics.")
    parser.add_argument("--upstream", metavar="FILE", help="upstream's evaluator.py")
    parser.add_argument("--count", type=int, default=10_000, help="images of reference and of samples")
    parser.add_argument("--threads", type=int, default=1, help="of BLAS and of TensorFlow")
    parser.add_argument("--json", metavar="FILE", help="write the result there")
    args = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(args.threads)
    result: dict[str, Any] = {"what": "evaluation", "count": args.count, "threads": args.threads, "cpu": _cpu()}
    result |= {"load": os.getloadavg(), "numpy": np.__version__, "scipy": scipy.__version__}
    result["ours"] = _in_process(ours, args.count)
    if args.upstream:
        result["upstream"] = _in_process(upstream, args.count, args.upstream, args.threads)
        for kind in ("cpu_seconds", "seconds"):
            result[f"ratio_of_{kind}"] = result["upstream"][kind]["all"] / result["ours"][kind]["all"]
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        Path(args.json).write_text(text + "\n")


def ours(count: int) -> dict[str, Any]:
    """Our figures, seconds and what a bootstrap round of FID costs."""
    from evaluations.metrics.frechet import frechet_distance
    from evaluations.metrics.precision_recall import precision_recall
    from evaluations.metrics.resampling import frechet_figure
    from evaluations.metrics.statistics import fit_gaussian

    clock = _Clock()
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
    figure(np.bincount(np.random.default_rng(0).integers(count, size=count), minlength=count))
    return result | {"bootstrap_round_cpu_seconds": time.process_time() - start}


def upstream(count: int, path: str, threads: int) -> dict[str, Any]:
    """Upstream's figures and seconds."""
    import tensorflow.compat.v1 as tf

    spec = importlib.util.spec_from_file_location("upstream_evaluator", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    clock = _Clock()
    figures = {}
    for name, dims in (("fid", POOL), ("sfid", SPATIAL)):
        pair = make_features(count, dims)
        compute = module.Evaluator.compute_statistics
        first, second = clock("statistics", lambda pair=pair, c=compute: [c(None, x) for x in pair])
        figures[name] = float(clock(name, lambda a=first, b=second: b.frechet_distance(a)))
    reference, samples = make_features(count, POOL)
    config = tf.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads)
    with tf.Session(config=config) as session:
        estimator = module.ManifoldEstimator(session)
        estimator.warmup()

        def precision_recall() -> Any:
            radii = [estimator.manifold_radii(x) for x in (reference, samples)]
            return estimator.evaluate_pr(reference, radii[0], samples, radii[1])

        found = clock("precision and recall", precision_recall)
    figures["precision"], figures["recall"] = (float(share[0]) for share in found)
    return clock.result(figures)


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


class _Clock:
    def __init__(self) -> None:
        self._found: dict[str, dict[str, float]] = {"seconds": {}, "cpu_seconds": {}}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter(), time.process_time()
        found = work()
        spent = time.perf_counter() - start[0], time.process_time() - start[1]
        for seconds, more in zip(self._found.values(), spent, strict=True):
            seconds[name] = seconds.get(name, 0.0) + more
        return found

    def result(self, figures: dict[str, float]) -> dict[str, Any]:
        spent = {kind: {**seconds, "all": sum(seconds.values())} for kind, seconds in self._found.items()}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"figures": figures, **spent, "peak_bytes": peak}


def _in_process(work: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, args)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()

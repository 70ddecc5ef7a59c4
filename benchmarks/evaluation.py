"""Our metrics beside upstream's: values, differences, times and memory, as Markdown.

    python -m benchmarks.run evaluation [--upstream CHECKOUT]

From made-up features, 10,000 against 10,000, to metrics; each side in a process of its own, one after the other.
Upstream's evaluator is in no package: CHECKOUT (default: the environment variable GUIDED_DIFFUSION_PEER) is a checkout
of openai/guided-diffusion. Without it ours is measured alone.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import multiprocessing
import os
import resource
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import scipy

from benchmarks.machine import cpu_name, save_result
from evaluations import upstream_api
from evaluations.features.inception_tensorflow import import_tensorflow
from evaluations.metrics.frechet import frechet_figure
from evaluations.metrics.statistics import fit_gaussian
from guided_diffusion.io.atomic import write_json

POOL, SPATIAL = 2048, 2023  # widths of Inception's features
TITLES = {"fid": "FID", "sfid": "sFID", "precision": "Precision", "recall": "Recall"}
_THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    os.environ |= dict.fromkeys(_THREADS, str(args.threads))
    evaluators: dict[str, Path | None] = {"ours": None}
    if args.upstream is None:
        print("No column of upstream's: neither --upstream nor GUIDED_DIFFUSION_PEER says where it is.\n")
    else:
        evaluators["upstream"] = path = Path(args.upstream, "evaluations", "evaluator.py")
        if not path.is_file():
            raise SystemExit(f"--upstream {args.upstream}: found no evaluations/evaluator.py there")
    result: dict[str, Any] = {"what": "evaluation", "threads": args.threads, "cpu": cpu_name(), "load": os.getloadavg()}
    result |= {"numpy": np.__version__, "scipy": scipy.__version__, "date": str(datetime.date.today())}
    found = {}
    for name, path in evaluators.items():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found[name] = process.submit(evaluate, path, args.count).result()
    result["features"] = {"count": args.count, "evaluators": found}
    print("\n".join(table(result["features"])))
    if args.json:
        write_json(args.json, result)
    else:
        save_result(cpu_name(), "evaluation", result)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.run evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    checkout = os.environ.get("GUIDED_DIFFUSION_PEER")
    parser.add_argument("--upstream", metavar="CHECKOUT", default=checkout, help="checkout of openai/guided-diffusion")
    parser.add_argument("--count", type=int, default=10_000, help="features in each set (default 10000)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each evaluator (default 1)")
    parser.add_argument("--json", metavar="FILE", help="default: in benchmarks/results")
    return parser.parse_args(argv)


def evaluate(path: Path | None, count: int) -> dict[str, Any]:
    """Compute all metrics but the inception score with upstream's evaluator.py, or with ours under the same names.

    :return: the metrics ("figures"), "seconds" and "cpu_seconds" by part and in all, the peak memory ("peak_bytes");
        of ours also the processor seconds of a round of FID's bootstrap ("bootstrap_round_cpu_seconds").
    """
    module, session = upstream_api, None
    if path:
        module, tf = load_upstream_evaluator(path)
        session = tf.Session()
    clock, figures = Clock(), {}
    for name, dims in (("fid", POOL), ("sfid", SPATIAL)):
        features = make_features(count, dims)
        with clock("statistics"):
            reference, samples = (module.Evaluator.compute_statistics(None, x) for x in features)
        with clock(name):
            figures[name] = samples.frechet_distance(reference)
    del features, reference, samples
    reference, samples = make_features(count, POOL)
    estimator = module.ManifoldEstimator(session)
    estimator.warmup()
    with clock("precision and recall"):
        evaluator = SimpleNamespace(manifold_estimator=estimator)
        figures["precision"], figures["recall"] = module.Evaluator.compute_prec_recall(evaluator, reference, samples)
    spent = {name: {**seconds, "all": sum(seconds.values())} for name, seconds in vars(clock).items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {"figures": {name: float(value) for name, value in figures.items()}, **spent, "peak_bytes": peak}
    if path is None:
        figure, start = frechet_figure(samples, fit_gaussian(reference)), time.process_time()
        figure(np.bincount(np.random.default_rng(0).integers(count, size=count), minlength=count)[None])
        result["bootstrap_round_cpu_seconds"] = time.process_time() - start
    return result


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


def load_upstream_evaluator(path: str | Path) -> tuple[ModuleType, ModuleType]:
    """Upstream's evaluator.py as a module, and TensorFlow."""
    tf = import_tensorflow()
    spec = importlib.util.spec_from_file_location("upstream_evaluator", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, tf


def make_features(count: int, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Reference and samples, float32 [count, dims], not negative and correlated, as after a ReLU."""
    random = np.random.default_rng(dims)
    mixing = 0.3 * random.standard_normal((dims, dims), dtype=np.float32) / np.float32(np.sqrt(dims))
    first, second = (random.standard_normal((count, dims), dtype=np.float32) @ mixing for _ in range(2))
    return np.maximum(first - np.float32(0.1), 0), np.maximum(second - np.float32(0.09), 0)


def table(compared: dict[str, Any]) -> list[str]:
    """Metrics and their relative difference; seconds by part, memory, and how many times as much upstream takes."""
    count, found = compared["count"], compared["evaluators"]
    results, ours = list(found.values()), found["ours"]
    rows = [(TITLES[key], ".7g", [result["figures"][key] for result in results]) for key in ours["figures"]]
    for part in ours["cpu_seconds"]:
        rows.append((f"processor seconds, {part}", ".1f", [result["cpu_seconds"][part] for result in results]))
    rows.append(("peak memory, GB", ".2f", [result["peak_bytes"] / 1e9 for result in results]))
    cells = [["", *found, *(["difference, ratio"] if len(found) == 2 else [])]]
    for title, form, (one, *others) in rows:
        is_metric = title in TITLES.values()
        compared = [
            f"{abs(one - other) / max(abs(other), 1e-12):.1e}" if is_metric else f"{other / max(one, 1e-12):.1f}"
            for other in others
        ]
        cells.append([title, *(format(value, form) for value in (one, *others)), *compared])
    head, *rest = (f"| {' | '.join(row)} |" for row in cells)
    caption = f"From made-up features [{count}, {POOL}] and [{count}, {SPATIAL}], twice each. "
    caption += f"A round of FID's bootstrap: {ours['bootstrap_round_cpu_seconds']:.1f} s."
    return [caption, "", head, f"|{'---|' * len(cells[0])}", *rest]


if __name__ == "__main__":
    main()

"""Judge a file of samples by a reference file: inception score, FID, sFID, precision, recall.

    python evaluations/evaluator.py REFERENCE.npz SAMPLES.npz [--json FILE] [--inception PATH]
                                    [--engine auto|tensorflow|torch] [--features CHECKPOINT] [--batch_size N]

The values go to stdout, everything else to stderr. Upstream's classes can be imported from here.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for runs without installation

from evaluations.engine import FeatureEngine  # noqa: E402
from evaluations.evaluate import Metrics, evaluate  # noqa: E402
from evaluations.inception import (  # noqa: E402
    INCEPTION_V3_PATH,
    INCEPTION_V3_URL,
    InceptionEngine,
    import_tensorflow,
)
from evaluations.metrics.npz import open_images  # noqa: E402
from evaluations.upstream_api import (  # noqa: E402
    Evaluator,
    FIDStatistics,
    InvalidFIDException,
    ManifoldEstimator,
    open_npz_array,
)
from guided_diffusion.errors import InputError  # noqa: E402

__all__ = [
    "INCEPTION_V3_PATH",
    "INCEPTION_V3_URL",
    "Evaluator",
    "FIDStatistics",
    "InvalidFIDException",
    "ManifoldEstimator",
    "Metrics",
    "evaluate",
    "main",
    "open_npz_array",
]

log = logging.getLogger("evaluator")


def main() -> None:
    """Parse the command line, evaluate, print; ``InputError`` for anything wrong with the input."""
    args = _create_parser().parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    if args.batch_size < 1:
        raise InputError(f"--batch_size: found {args.batch_size}, expected at least 1")
    if args.json is not None:
        _check_writable(args.json)
    for path in (args.ref_batch, args.sample_batch):
        with open_images(path):  # complains before a network is fetched or built
            pass
    metrics = evaluate(args.ref_batch, args.sample_batch, _create_engine(args))
    for line in format_metrics(metrics):
        print(line)
    if args.json is not None:
        _write_json(metrics, args.json)


def format_metrics(metrics: Metrics) -> list[str]:
    """The lines for stdout: five, and the accuracy if there is one."""
    lines = [
        f"Inception Score: {metrics.inception_score}",
        f"FID: {metrics.fid}",
        f"sFID: {metrics.sfid}",
        f"Precision: {metrics.precision}",
        f"Recall: {metrics.recall}",
    ]
    if metrics.accuracy is not None:
        lines.append(f"Accuracy: {metrics.accuracy}")
    return lines


def _create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Judge generated images by a reference set.")
    parser.add_argument("ref_batch", help="npz file of reference images, perhaps with their statistics")
    parser.add_argument("sample_batch", help="npz file of the images to judge")
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    network = parser.add_mutually_exclusive_group()
    network.add_argument(
        "--inception",
        metavar="PATH",
        help=f"frozen Inception graph, downloaded if absent (default: {INCEPTION_V3_PATH} in this directory)",
    )
    network.add_argument(
        "--features",
        metavar="CHECKPOINT",
        help="use this classifier of clean images, config.json beside it, in place of Inception",
    )
    parser.add_argument(
        "--engine",
        choices=["auto", "tensorflow", "torch"],
        default="auto",
        help="what runs the Inception graph (default: tensorflow where it can be imported, else torch)",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images at once in the feature network")
    return parser


def _create_engine(args: argparse.Namespace) -> FeatureEngine:
    if args.features is not None:
        from evaluations.classifier_features import ClassifierEngine  # torch only where it is used

        if args.engine != "auto":
            raise InputError(f"--engine {args.engine}: found --features, expected the Inception graph")
        return ClassifierEngine(args.features, batch_size=args.batch_size)
    if args.engine == "tensorflow" or (args.engine == "auto" and _has_tensorflow()):
        return InceptionEngine(args.inception, batch_size=args.batch_size)
    from evaluations.torch_inception import TorchInceptionEngine

    return TorchInceptionEngine(args.inception, batch_size=args.batch_size)


def _has_tensorflow() -> bool:
    try:
        import_tensorflow()  # an installation that is there may still be broken
    except InputError as error:
        log.info("%s; torch runs the graph", str(error).partition(";")[0])
        return False
    return True


def _check_writable(path: str) -> None:
    """Fail before the work rather than after it; directories are only made once there is a result."""
    target = Path(path).absolute()
    parent = next(ancestor for ancestor in target.parents if ancestor.exists())
    if target.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"--json {path}: expected a file that can be written")


def _write_json(metrics: Metrics, path: str) -> None:
    from guided_diffusion.checkpoint import write_bytes_atomically

    with write_bytes_atomically(path) as file:
        file.write((json.dumps(asdict(metrics), indent=2) + "\n").encode())
    log.info("wrote %s", Path(path).absolute())


if __name__ == "__main__":
    from guided_diffusion.dist_util import run_main

    run_main(main)

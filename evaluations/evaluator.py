"""Compare a file of samples with a reference file: inception score, FID, sFID, precision, recall.

    python evaluations/evaluator.py REFERENCE.npz SAMPLES.npz [--json FILE] [--inception PATH]
                                    [--engine auto|tensorflow|torch] [--features CHECKPOINT|package.module:function]
                                    [--num_samples N] [--resize N] [--per_class] [--batch_size N] ...

The values go to stdout, everything else to stderr. Started by mpiexec or torchrun it shares the network's work among
the ranks. Upstream's classes can be imported from here.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from functools import partial
from pathlib import Path

from evaluations.evaluate import LEAST, Metrics, check_numbers, evaluate
from evaluations.features.base import FeatureExtractor
from evaluations.features.inception import INCEPTION_V3_PATH, INCEPTION_V3_URL
from evaluations.features.inception_tensorflow import InceptionExtractor, import_tensorflow
from evaluations.image_sets import ImageSet, open_image_set, split_paths
from evaluations.metrics.registry import METRICS, choose_metrics
from evaluations.parallel import BatchScatter
from evaluations.summary import check_writable, format_markdown, format_metrics, write_metrics, write_or_keep
from evaluations.upstream_api import (
    Evaluator,
    FIDStatistics,
    InvalidFIDException,
    ManifoldEstimator,
    open_npz_array,
)
from guided_diffusion.config.configs import ReadingConfig
from guided_diffusion.config.flags import ParsedFlags, Parser
from guided_diffusion.config.release_flags import as_positions
from guided_diffusion.distributed import collectives, meeting, process_group, shutdown
from guided_diffusion.distributed.stop_signals import terminating
from guided_diffusion.errors import InputError
from guided_diffusion.io.images import Reading
from guided_diffusion.system.streams import print_result

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

_OPTIONS = (  # of ``evaluate``, by the names of their flags
    "metrics", "extra", "paired_rounds", "exact_upstream", "seed", "cache", "num_samples", "resize", "per_class",
    "kid_subset_size",
)  # fmt: skip

log = logging.getLogger("evaluator")


def main() -> None:
    """Parse the command line, evaluate, print; ``InputError`` for anything wrong with the input."""
    args = _parse()
    level = logging.INFO if collectives.get_rank() == 0 else logging.ERROR
    logging.basicConfig(stream=sys.stderr, level=level, format="%(message)s")
    check_numbers(**{flag: getattr(args, flag) for flag in LEAST})
    choose_metrics(args.metrics, args.extra)
    sets = _open_sets(args) if collectives.get_rank() == 0 else []  # others need not reach the files
    with terminating("nothing is printed before the end: the same command begins anew", log.warning):
        if collectives.get_world_size() > 1:
            _evaluate_on_ranks(args, sets)
        else:
            _evaluate(args, sets, create_extractor(args))


def _open_sets(args: argparse.Namespace) -> list[ImageSet]:
    """Open reference, samples and perhaps paired samples, before a network is fetched or built."""
    if args.json is not None:
        check_writable("--json", args.json)
    sets = []
    for paths in filter(None, (args.ref_batch, args.sample_batch, args.paired)):
        sets.append(open_image_set(split_paths(paths), args.resize, reading_of(args)))
        network = str(sets[-1].settings.get("engine"))
        if args.features is None and network.startswith("classifier "):
            log.warning("warning: %s was made with --features %s, here Inception is used", paths, network[11:])
    return sets


def _evaluate(args: argparse.Namespace, sets: list[ImageSet], extractor: FeatureExtractor) -> None:
    options = {name: getattr(args, name) for name in _OPTIONS}
    options |= {"bootstrap": args.bootstrap or 0, "reading": reading_of(args)}
    metrics = evaluate(*sets[:2], extractor, paired=sets[2] if len(sets) > 2 else None, **options)
    try:
        print_result((format_markdown if args.markdown else format_metrics)(metrics))
    finally:
        if args.json is not None:
            write = partial(write_metrics, metrics)
            write_or_keep(args.json, write, write, "the results are")
            log.info("wrote %s", Path(args.json).absolute())


def reading_of(args: argparse.Namespace) -> Reading:
    """Return how image files become 8 bits by the flags of ``ReadingConfig``."""
    return ParsedFlags(vars(args)).make(ReadingConfig).reading


def _evaluate_on_ranks(args: argparse.Namespace, sets: list[ImageSet]) -> None:
    """Evaluate on rank 0, with the other ranks running the network too."""
    process_group.setup_dist()
    if collectives.get_rank() == 0:
        extractor = create_extractor(args)
        collectives.barrier()  # the other ranks find what this one downloads
        scatter = BatchScatter()
        extractor.spread = scatter.spread
        _evaluate(args, sets, extractor)
        scatter.release()
    else:
        collectives.barrier()
        extractor = create_extractor(args)
        BatchScatter().serve(extractor.run_batch)


def _parse() -> argparse.Namespace:
    """Return the parsed command line; ``InputError`` for more than two inputs, such as a shell's expanded pattern."""
    parser = _create_parser()
    given = as_positions(sys.argv[1:], ("ref_batch", "sample_batch"), renamed={"save_result_path": "json"})
    args, more = parser.parse_known_args(given)
    if more and not any(text.startswith("-") for text in more):
        inputs = [args.ref_batch, args.sample_batch, *more]
        shown = ", ".join(inputs[:4]) + (", ..." if len(inputs) > 4 else "")
        raise InputError(
            f"found {len(inputs)} inputs ({shown}), expected a reference and samples; files that are one set are "
            f"joined by commas ({args.sample_batch},{more[0]}) or named by a pattern in quotes ('rank*.npz')"
        )
    if more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    return args


def _create_parser() -> argparse.ArgumentParser:
    parser = Parser("Compare generated images with a reference set.", ReadingConfig)
    usual, more = (", ".join(m.name for m in METRICS.values() if m.extra == extra) for extra in (False, True))
    parser.add_argument(
        "ref_batch", help="npz of reference images, their statistics or both; or a folder, zip or tar; several: a,b,c"
    )
    parser.add_argument(
        "sample_batch", help="images to compare: npz, a run's folder, a folder, zip or tar of images; several: a,b,c"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    parser.add_argument("--markdown", action="store_true", help="print a table with one row instead of lines")
    add_network_flags(parser)
    parser.add_argument(
        "--num_samples", type=int, metavar="N", help="take N of the samples and N of the reference, chosen by --seed"
    )
    parser.add_argument("--resize", type=int, metavar="N", help="take centre crops of NxN pixels, as training does")
    parser.add_argument(
        "--metrics", type=_names, metavar="NAMES", help=f"only these, by comma (default: {usual}; others: {more})"
    )
    parser.add_argument("--per_class", action="store_true", help="also FID, precision and recall of each class")
    parser.add_argument("--extra", action="store_true", help=f"also {more}")
    parser.add_argument(
        "--kid_subset_size", type=int, metavar="N", help="images in each of KID's subsets (default: 1000, see README)"
    )
    parser.add_argument("--bootstrap", type=int, metavar="ROUNDS", help="95%% intervals by resampling the samples")
    parser.add_argument("--paired", metavar="OTHER", help="test whether these samples, of the same noise, differ")
    parser.add_argument("--paired_rounds", type=int, default=99, help="random swaps of pairs in that test")
    parser.add_argument("--exact_upstream", action="store_true", help="precision and recall in half precision")
    parser.add_argument("--seed", type=int, default=0, help="of --num_samples, subsets, resampling and swaps")
    parser.add_argument("--cache", metavar="DIR", help="keep activations of references there (default: nowhere)")
    return parser


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def add_network_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that ``create_extractor`` reads, and the one that ``run_main`` does."""
    network = parser.add_mutually_exclusive_group()
    network.add_argument(
        "--inception",
        metavar="PATH",
        help=f"frozen Inception graph, downloaded if absent (default: {INCEPTION_V3_PATH} in this directory)",
    )
    network.add_argument(
        "--features",
        metavar="CHECKPOINT",
        help="use this classifier of clean images, config.json beside it, in place of Inception; or the function "
        "package.module:function of any other network, see README",
    )
    parser.add_argument(
        "--engine",
        choices=["auto", "tensorflow", "torch"],
        default="auto",
        help="what runs the Inception graph (default: tensorflow where it can be imported, else torch)",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images at once in the feature network")
    parser.add_argument("--meet_timeout", type=int, default=meeting.DEFAULT, metavar="N", help=meeting.HELP)


def _weights_of(features: str) -> str:
    """Return the file to take where a training's folder is given; anything else unchanged."""
    if not os.path.isdir(features):
        return features
    from guided_diffusion.runs.best_checkpoint import best_weights

    if (found := best_weights(features)) is None:
        raise InputError(f"--features {features}: found a folder, expected a file or a folder with model*.pt in it")
    log.info("--features %s: taking %s", features, Path(found).name)
    return found


def create_extractor(args: argparse.Namespace) -> FeatureExtractor:
    """Return the feature extractor that the flags ask for; ``InputError`` if it cannot be had."""
    if args.features is not None:
        from evaluations.features.classifier import ClassifierExtractor  # torch only where it is used
        from evaluations.features.function import FunctionExtractor, names_function

        if args.engine != "auto":
            raise InputError(f"--engine {args.engine}: found --features, expected the Inception graph")
        kind = FunctionExtractor if names_function(args.features) else ClassifierExtractor
        return kind(_weights_of(args.features), batch_size=args.batch_size)
    if args.engine == "tensorflow" or (args.engine == "auto" and _has_tensorflow()):
        return InceptionExtractor(args.inception, batch_size=args.batch_size)
    from evaluations.features.inception_torch import TorchInceptionExtractor

    return TorchInceptionExtractor(args.inception, batch_size=args.batch_size)


def _has_tensorflow() -> bool:
    try:
        import_tensorflow()  # an existing installation may be broken
    except InputError as error:
        log.info("%s; torch runs the graph", str(error).partition(";")[0])
        return False
    return True


if __name__ == "__main__":
    shutdown.run_main(main)

"""Our evaluator beside upstream's and torch-fidelity's: metrics, differences and times, as Markdown.

    python -m benchmarks.run evaluation [--upstream CHECKOUT] [--inception GRAPH] [--reference A --samples B]

The first table goes from images to metrics, all on the same images and the same graph file; torch-fidelity gets the
activations of our torch engine. The second goes from made-up features, 10,000 against 10,000, to metrics. Each
evaluator is a process of its own, one after the other.

Upstream's evaluator is in no package: CHECKOUT (default: the environment variable GUIDED_DIFFUSION_PEER) is a
checkout of openai/guided-diffusion. Without it, or without torch-fidelity, their columns are missing. Without GRAPH
a small random one takes the place of Inception's.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from benchmarks import evaluators
from benchmarks.evaluators import FIDELITY, GRAPH, OURS, TORCH, UPSTREAM, run_evaluator, run_fidelity
from benchmarks.fidelity import FidelityUnavailable, load_fidelity
from benchmarks.machine import cpu_name, result_path
from guided_diffusion.io.files import write_json

PAIRS = {
    "TensorFlow - upstream": (OURS, UPSTREAM), "torch - upstream": (TORCH, UPSTREAM),
    "torch - TensorFlow": (TORCH, OURS), "torch - torch-fidelity": (TORCH, FIDELITY),
}  # fmt: skip
TITLES = {
    "inception_score": "Inception Score", "fid": "FID", "sfid": "sFID", "precision": "Precision", "recall": "Recall",
    "kid": "KID, all images",
}  # fmt: skip
_THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    os.environ |= dict.fromkeys(_THREADS, str(args.threads))
    upstream = None
    if args.upstream is None:
        print("No column of upstream's: neither --upstream nor GUIDED_DIFFUSION_PEER says where it is.\n")
    elif not (upstream := Path(args.upstream, "evaluations", "evaluator.py").resolve()).is_file():
        raise SystemExit(f"--upstream {args.upstream}: found no evaluations/evaluator.py there")
    result: dict[str, Any] = {"what": "evaluation", "threads": args.threads, "cpu": cpu_name(), "load": os.getloadavg()}
    result |= {"numpy": np.__version__, "scipy": scipy.__version__, "date": str(datetime.date.today())}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_inputs(args, folder)
        found = {name: _in_process(run_evaluator, name, folder) for name in (OURS, TORCH)}
        if upstream:
            found[UPSTREAM] = _in_process(run_evaluator, UPSTREAM, folder, upstream)
        version = None
        try:
            version = load_fidelity().version
            found[FIDELITY] = _in_process(run_fidelity, folder)
        except FidelityUnavailable as reason:
            print(f"No column of torch-fidelity's: {reason}.\n")
        result["images"] = {
            "graph": args.inception or "random, of Inception's node names and operations", "torch_fidelity": version,
            "images": f"{args.reference},{args.samples}" if args.reference
            else f"{args.images} and {args.images} made-up ones of 64x64",
            "evaluators": found,
        }  # fmt: skip
        caption = "Images: {images}. Graph: {graph}. Differences are relative.".format(**result["images"])
        print(f"{caption}\n", *table(found, PAIRS), "", sep="\n", flush=True)

        found = {"ours": _in_process(run_evaluator, TORCH, folder, None, args.count)}
        if upstream:
            found[UPSTREAM] = _in_process(run_evaluator, UPSTREAM, folder, upstream, args.count)
    result["features"] = {"count": args.count, "evaluators": found}
    print(f"From made-up features [{args.count}, {evaluators.POOL}] and [{args.count}, {evaluators.SPATIAL}], twice each. A round of FID's "
          f"bootstrap: {found['ours']['bootstrap_round_cpu_seconds']:.1f} s.\n")  # fmt: skip
    print(*table(found, {"difference, ratio": ("ours", UPSTREAM)}), sep="\n")
    write_json(args.json or result_path(cpu_name(), "evaluation"), result)


def write_inputs(args: argparse.Namespace, folder: Path) -> None:
    """Put the graph and the two sets of images into a folder."""
    if args.inception:
        (folder / GRAPH).symlink_to(Path(args.inception).resolve())
    else:
        from benchmarks.frozen_graphs import write_inception_like_graph

        # Upstream's inception score is nan where a probability underflows.
        _in_process(write_inception_like_graph, folder / GRAPH, 0, 1)
    for seed, name in enumerate(("reference", "samples")):
        if given := getattr(args, name):
            (folder / f"{name}.npz").symlink_to(Path(given).resolve())
        else:
            np.savez(folder / f"{name}.npz", evaluators.make_images(seed, args.images, 64))


def table(found: dict[str, Any], pairs: dict[str, tuple[str, str]]) -> list[str]:
    """A Markdown table of metrics, processor seconds by part and memory.

    It has a column for each evaluator, and one for each pair of which both are there: the relative difference of the
    metrics, and how many times as much the second took.
    """
    pairs = {title: pair for title, pair in pairs.items() if set(pair) <= set(found)}
    rows = [["", *found, *pairs]]

    def add(title: str, values: list[float | None], form: str, compare: Callable[[float, float], str]) -> None:
        by_name = dict(zip(found, values, strict=True))
        both = [(by_name[one], by_name[other]) for one, other in pairs.values()]
        row = ["" if value is None else format(value, form) for value in values]
        rows.append([title, *row, *("" if None in pair else compare(*pair) for pair in both)])

    def difference(one: float, other: float) -> str:
        return f"{abs(one - other) / max(abs(other), 1e-12):.1e}"

    def ratio(one: float, other: float) -> str:
        return f"{other / max(one, 1e-12):.1f}"

    results = list(found.values())
    for key, title in TITLES.items():
        if any(key in result["figures"] for result in results):
            add(title, [result["figures"].get(key) for result in results], ".7g", difference)
    for part in dict.fromkeys(part for result in results for part in result["cpu_seconds"]):
        add(f"processor seconds, {part}", [result["cpu_seconds"].get(part) for result in results], ".1f", ratio)
    add("peak memory, GB", [result["peak_bytes"] / 1e9 for result in results], ".2f", ratio)
    head, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return [head, f"|{'---|' * len(rows[0])}", *rest]


def _in_process(work: Callable[..., Any], *args: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *args).result()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.run evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    checkout = os.environ.get("GUIDED_DIFFUSION_PEER")
    parser.add_argument("--upstream", metavar="CHECKOUT", default=checkout, help="checkout of openai/guided-diffusion")
    parser.add_argument("--inception", metavar="GRAPH", help="classify_image_graph_def.pb")
    parser.add_argument("--reference", help="npz file of images; default: made-up ones")
    parser.add_argument("--samples", help="npz file of images, with --reference")
    parser.add_argument("--images", type=int, default=3000, help="how many made-up ones in each set")
    parser.add_argument("--count", type=int, default=10_000, help="features in each set of the second table")
    parser.add_argument("--threads", type=int, default=1, help="threads of each evaluator")
    parser.add_argument("--json", metavar="FILE", help="default: in benchmarks/results")
    args = parser.parse_args(argv)
    if bool(args.reference) != bool(args.samples):
        parser.error("--reference and --samples go together")
    return args


if __name__ == "__main__":
    main()

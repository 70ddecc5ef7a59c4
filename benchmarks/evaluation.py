"""Our evaluator beside upstream's and torch-fidelity's: figures, differences and times, as Markdown.

    python -m benchmarks.run evaluation [--upstream CHECKOUT] [--inception GRAPH] [--reference A --samples B]

The first table goes from images to figures, all on the same images and the same graph file; torch-fidelity's metrics
are those of our torch engine's features. The second goes from made-up features, 10,000 against 10,000, to figures.
Each evaluator is a process of its own, one after the other.

Upstream's evaluator is in no package: CHECKOUT (default: the environment variable GUIDED_DIFFUSION_PEER) is a
checkout of openai/guided-diffusion. Without it, or without torch-fidelity, their columns are missing. Without GRAPH
a small random one stands in for Inception's.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from benchmarks import evaluators
from benchmarks.fidelity import FidelityUnavailable, load_fidelity
from benchmarks.machine import cpu_name, result_path
from guided_diffusion.io.atomic import write_json

OURS, TORCH, UPSTREAM, FIDELITY = "ours, TensorFlow", "ours, torch", "upstream", "torch-fidelity"
TITLES = dict(
    zip(evaluators.FIGURES, ("Inception Score", "FID", "sFID", "Precision", "Recall", "KID, all images"), strict=True)
)
_THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    os.environ |= dict.fromkeys(_THREADS, str(args.threads))
    result: dict[str, Any] = {"what": "evaluation", "threads": args.threads, "cpu": cpu_name(), "load": os.getloadavg()}
    result |= {"numpy": np.__version__, "scipy": scipy.__version__, "date": str(datetime.date.today())}
    upstream = Path(args.upstream, "evaluations", "evaluator.py") if args.upstream else None
    if upstream is None:
        print("No column of upstream's: neither --upstream nor GUIDED_DIFFUSION_PEER says where it is.\n")
    elif not upstream.is_file():
        raise SystemExit(f"--upstream {args.upstream}: found no evaluations/evaluator.py there")
    with tempfile.TemporaryDirectory() as scratch:
        result["images"] = compare_images(args, upstream, Path(scratch))
    print("\n".join(images_table(result["images"])), end="\n\n", flush=True)
    result["features"] = compare_features(args.count, upstream)
    print("\n".join(features_table(result["features"])))
    write_json(args.json or result_path(cpu_name(), "evaluation"), result)


def compare_images(args: argparse.Namespace, upstream: Path | None, scratch: Path) -> dict[str, Any]:
    """What each evaluator makes of the same images, by its name; and what they are."""
    graph, paths = args.inception, [args.reference, args.samples]
    if not graph:
        from benchmarks.frozen_graphs import write_inception_like_graph

        # Upstream's inception score is nan where a probability underflows.
        graph = _in_process(write_inception_like_graph, scratch / "graph.pb", 0, 1)
    if not args.reference:
        paths = [str(scratch / f"{kind}.npz") for kind in ("reference", "samples")]
        for seed, path in enumerate(paths):
            np.savez(path, evaluators.make_images(seed, args.images, 64))
    files = [os.path.abspath(path) for path in (*paths, graph)]
    found = {}
    for name, engine in ((OURS, "tensorflow"), (TORCH, "torch")):
        found[name] = _in_process(evaluators.ours_from_images, engine, *files, str(scratch / "kept.npz"))
    if upstream:
        found[UPSTREAM] = _in_process(evaluators.upstream_from_images, str(upstream.resolve()), *files, str(scratch))
    try:
        version = load_fidelity().version
        found[FIDELITY] = _in_process(evaluators.fidelity_from_features, str(scratch / "kept.npz"))
    except FidelityUnavailable as reason:
        version = None
        print(f"No column of torch-fidelity's: {reason}.\n")
    about = {
        "graph": args.inception or "random, of Inception's node names and operations",
        "images": ",".join(paths) if args.reference else f"{args.images} and {args.images} made-up ones of 64x64",
    }
    return {**about, "torch_fidelity": version, "evaluators": found}


def compare_features(count: int, upstream: Path | None) -> dict[str, Any]:
    """What ours and upstream make of the same features."""
    found = {"ours": _in_process(evaluators.ours_from_features, count)}
    if upstream:
        found[UPSTREAM] = _in_process(evaluators.upstream_from_features, str(upstream.resolve()), count)
    return {"count": count, "evaluators": found}


def images_table(compared: dict[str, Any]) -> list[str]:
    """Figures, relative differences to upstream and to torch-fidelity, seconds and memory."""
    found = compared["evaluators"]
    figures = {name: side["figures"] for name, side in found.items()}
    pairs = [(OURS, UPSTREAM), (TORCH, UPSTREAM), (TORCH, OURS), (TORCH, FIDELITY)]
    pairs = [pair for pair in pairs if set(pair) <= set(found)]
    short = {OURS: "TensorFlow", TORCH: "torch"}
    rows = [["", *found, *(f"{short[a]} - {short.get(b, b)}" for a, b in pairs)]]
    for key, title in TITLES.items():
        values = [_number(figures[name].get(key)) for name in found]
        rows.append([title, *values, *(_difference(figures[a].get(key), figures[b].get(key)) for a, b in pairs)])
    for part in ("network", "metrics"):
        seconds = [side["cpu_seconds"].get(part) for side in found.values()]
        rows.append([f"processor seconds, {part}", *(_number(value, ".1f") for value in seconds), *[""] * len(pairs)])
    peaks = [f"{side['peak_bytes'] / 1e9:.2f}" for side in found.values()]
    rows.append(["peak memory, GB", *peaks, *[""] * len(pairs)])
    caption = f"Images: {compared['images']}. Graph: {compared['graph']}. Differences are relative."
    return [caption, "", *_markdown(rows)]


def features_table(compared: dict[str, Any]) -> list[str]:
    """Figures and their relative difference; seconds by part, memory, and their ratio."""
    ours, other = (compared["evaluators"].get(name) for name in ("ours", UPSTREAM))
    sides = [side for side in (ours, other) if side]
    rows = [["", "ours", *(["upstream", "difference, ratio"] if other else [])]]
    for key in ours["figures"]:
        values = [side["figures"][key] for side in sides]
        rows.append([TITLES[key], *map(_number, values), *([_difference(*values)] if other else [])])
    for part in ours["cpu_seconds"]:
        values = [side["cpu_seconds"][part] for side in sides]
        rows.append([f"processor seconds, {part}", *(f"{value:.1f}" for value in values), *_ratio(values)])
    values = [side["peak_bytes"] / 1e9 for side in sides]
    rows.append(["peak memory, GB", *(f"{value:.2f}" for value in values), *_ratio(values)])
    count = compared["count"]
    caption = f"From made-up features [{count}, {evaluators.POOL}] and [{count}, {evaluators.SPATIAL}], twice each. "
    caption += f"A round of FID's bootstrap: {ours['bootstrap_round_cpu_seconds']:.1f} s."
    return [caption, "", *_markdown(rows)]


def _ratio(values: Sequence[float]) -> list[str]:
    return [f"{values[1] / values[0]:.1f}"] if len(values) == 2 else []


def _difference(one: float | None, other: float | None) -> str:
    return "" if one is None or other is None else f"{abs(one - other) / max(abs(other), 1e-12):.1e}"


def _number(value: float | None, how: str = ".7g") -> str:
    return "" if value is None else format(value, how)


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return [head, f"|{'---|' * len(rows[0])}", *rest]


def _in_process(work: Callable[..., Any], *args: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(work, args)
        pool.close()
        pool.join()
    return found


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.run evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    checkout = os.environ.get("GUIDED_DIFFUSION_PEER")
    parser.add_argument("--upstream", metavar="CHECKOUT", default=checkout, help="of openai/guided-diffusion")
    parser.add_argument("--inception", metavar="GRAPH", help="classify_image_graph_def.pb")
    parser.add_argument("--reference", help="npz file of images; default: made-up ones")
    parser.add_argument("--samples", help="npz file of images, with --reference")
    parser.add_argument("--images", type=int, default=3000, help="how many made-up ones in each set")
    parser.add_argument("--count", type=int, default=10_000, help="features in each set of the second table")
    parser.add_argument("--threads", type=int, default=1, help="of each evaluator")
    parser.add_argument("--json", metavar="FILE", help="default: in benchmarks/results")
    args = parser.parse_args(argv)
    if bool(args.reference) != bool(args.samples):
        parser.error("--reference and --samples go together")
    return args


if __name__ == "__main__":
    main()

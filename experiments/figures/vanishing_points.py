"""Vanishing points of the gradient (Fig. 3): a histogram over samples, under three definitions of the point.

The paper's "the gradient norm is smaller than 0.15" is also met near t = T, where the classifier knows nothing
yet, and by a gradient that comes back. So beside it: from when on the norm stays below, and from when on it does
so while the classifier is certain (low entropy), which is the vanishing that the paper is about.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numpy as np

from experiments.figures import style
from experiments.figures.inputs import Trace, labelled_trace, read_trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VANISHED_NORM = 0.15  # the paper's bound on a vanished gradient's norm, for images of 196,608 numbers
CERTAIN_ENTROPY = 0.1  # below it, as a share of log K, a classifier counts as certain
_BINS = 40  # at most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The figure's own options."""
    parser.add_argument("files", nargs="+", type=labelled_trace, metavar="LABEL=TRACE",
                        help="npz of --trace, or a run's folder with it")  # fmt: skip
    parser.add_argument("--threshold", type=float, default=VANISHED_NORM, metavar="M",
                        help=f"of the gradient's norm ({VANISHED_NORM:g})")  # fmt: skip
    parser.add_argument("--entropy", type=float, default=CERTAIN_ENTROPY, metavar="H",
                        help=f"certain below this H / log K ({CERTAIN_ENTROPY:g})")  # fmt: skip


def draw(args: argparse.Namespace) -> list[dict]:
    """Write the figure and return every sample's points, a row each."""
    traces = [read_trace(file) for file in args.files]
    points = [vanishing_points(trace, args.threshold, args.entropy) for trace in traces]
    titles = {
        "first_below": f"first t with gradient norm < {args.threshold:g}",
        "stays_below": f"from this t on, gradient norm < {args.threshold:g}",
        "stays_below_certain": f"from this t on, gradient norm < {args.threshold:g} and H / log K < {args.entropy:g}",
    }
    edges = _edges(min((trace.t for trace in traces), key=len))
    height = 3 * max(1.6, 0.5 + 0.32 * len(traces)) + 0.4
    with style.new_figure(args.out, style.WIDTH, height) as figure:
        panels = figure.subplots(3, 1, sharex=True)
        for axes, (name, title) in zip(panels, titles.items(), strict=True):
            for index, (trace, found) in enumerate(zip(traces, points, strict=True)):
                _histogram(axes, trace.label, found[name], edges, index)
            axes.set(title=title, ylabel="share of samples")
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.03), borderaxespad=0, frameon=False)
        style.sampling_axis(panels[-1], edges)
    return [
        {"trace": trace.label, "sample": sample}
        | {name: None if np.isnan(found[name][sample]) else int(found[name][sample]) for name in titles}
        for trace, found in zip(traces, points, strict=True)
        for sample in range(len(found["first_below"]))
    ]


def vanishing_points(trace: Trace, threshold: float, entropy: float) -> dict[str, np.ndarray]:
    """The t of every sample [N], float with nan where there is none, under three definitions.

    first_below: the first step, from noise to image, with a norm below the threshold. stays_below: the first
    from which on all are. stays_below_certain: the first from which on all are, with H / log K < entropy.
    """
    below_NS = trace.series["grad_norm"] < threshold
    certain_NS = below_NS & (trace.series["entropy_ratio"] < entropy)
    return {
        "first_below": _first(below_NS, trace.t),
        "stays_below": _first(_until_the_end(below_NS), trace.t),
        "stays_below_certain": _first(_until_the_end(certain_NS), trace.t),
    }


def _until_the_end(holds_NS: np.ndarray) -> np.ndarray:
    return np.logical_and.accumulate(holds_NS[:, ::-1], axis=1)[:, ::-1]


def _first(holds_NS: np.ndarray, t_S: np.ndarray) -> np.ndarray:
    return np.where(holds_NS.any(axis=1), t_S[holds_NS.argmax(axis=1)], np.nan)


def _edges(t_S: np.ndarray) -> np.ndarray:
    """Increasing edges of bins, halfway between steps: each holds the same number of them, only the last may not."""
    t = t_S[::-1].astype(np.float64)
    ends = [t[0] - (t[1] - t[0]) / 2, t[-1] + (t[-1] - t[-2]) / 2] if len(t) > 1 else [t[0] - 0.5, t[0] + 0.5]
    least = -(-len(t) // _BINS)
    size = next((size for size in range(least, 2 * least) if len(t) % size == 0), least)
    inner = ((t[1:] + t[:-1]) / 2)[size - 1 :: size]
    return np.unique([ends[0], *inner, ends[1]])


def _histogram(axes: Axes, label: str, points_N: np.ndarray, edges: np.ndarray, index: int) -> None:
    found = points_N[~np.isnan(points_N)]
    middle = f"median t {np.median(found):.0f}, " if len(found) else ""
    text = f"{style.plain(label, 24)}\n{middle}none in {len(points_N) - len(found)} of {len(points_N)}"
    look = style.line(index)
    shares = np.histogram(np.clip(found, edges[0], edges[-1]), edges)[0] / len(points_N)
    face = {"fill": True, "facecolor": (*[0.5] * 3, 0.25)} if index == 0 else {"fill": False}
    axes.stairs(shares, edges, label=text, edgecolor=look["color"], linestyle=look["linestyle"], linewidth=1.4, **face)

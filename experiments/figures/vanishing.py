"""Guidance over the sampling process (Fig. 1): how certain the classifier is, and what is left of its gradient.

The curves are over all samples of a trace: mean entropy, median gradient norm, relative guidance and scale, with
quartiles. Traces with maps also show one sample: x_t, the image predicted from it, and the guidance.
"""

from __future__ import annotations

import argparse
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.figures import style
from experiments.figures.inputs import (
    Trace,
    add_class_names,
    class_name,
    labelled_trace,
    read_class_names,
    read_trace,
)
from guided_diffusion.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "entropy_ratio": "entropy H(p) / log K, mean",
    "grad_norm": "gradient norm |\N{NABLA} log p(y | x)|, median",
    "relative_guidance": "guidance norm / eps norm, median",
    "scale": "scale, median",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The figure's own options."""
    parser.add_argument("files", nargs="+", type=labelled_trace, metavar="LABEL=TRACE",
                        help="npz of --trace, or a run's folder with it")  # fmt: skip
    parser.add_argument("--sample", type=int, default=0, metavar="I", help="whose pictures are shown (0)")
    parser.add_argument("--magnify", type=float, default=50.0, metavar="F", help="factor on the guidance shown (50)")
    add_class_names(parser)


def draw(args: argparse.Namespace) -> list[dict]:
    """Write the figure and return its curves, a row each."""
    names = read_class_names(args.class_names, args.files)
    traces = [read_trace(file, with_maps=True) for file in args.files]
    pictured = [trace for trace in traces if trace.maps is not None]
    for trace in pictured:
        if not 0 <= args.sample < len(trace.maps.y):
            raise InputError(
                f"--sample: found {args.sample}, expected 0 to {len(trace.maps.y) - 1}: "
                f"{trace.path} has maps of {len(trace.maps.y)} samples"
            )
    curves = {trace.label: summarize(trace) for trace in traces}

    steps = max((len(trace.maps.t) for trace in pictured), default=0)
    cell = min(style.CELL, max(0.4, 6.2 / steps)) if steps else 0
    grids = [list(group) for _, group in groupby(pictured, key=lambda trace: trace.maps.t.tolist())]
    heights = [4.4] + [0.4 + sum(0.35 + 3 * cell * _aspect(trace) for trace in grid) for grid in grids]
    width = max(style.WIDTH, 1.1 + steps * cell)
    with style.new_figure(args.out, width, sum(heights)) as figure:
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        _draw_curves(parts[0], traces, curves)
        for part, grid in zip(parts[1:], grids, strict=True):
            _draw_pictures(part.subplots(), grid, args.sample, args.magnify, cell, names)
    return [row for rows in curves.values() for row in rows]


def summarize(trace: Trace) -> list[dict[str, Any]]:
    """Rows of a trace, one a step: t, mean entropy_ratio, median and quartiles (_low, _high) of the others."""
    columns: dict[str, Any] = {"entropy_ratio": trace.series["entropy_ratio"].mean(axis=0)}
    for name in ("grad_norm", "relative_guidance", "scale"):
        low, middle, high = np.quantile(trace.series[name], (0.25, 0.5, 0.75), axis=0)
        columns |= {name: middle, f"{name}_low": low, f"{name}_high": high}
    return [
        {"trace": trace.label, "t": int(t)} | {name: float(values[step]) for name, values in columns.items()}
        for step, t in enumerate(trace.t)
    ]


def _aspect(trace: Trace) -> float:
    height, width = trace.maps.x_t.shape[-2:]
    return height / width


def _draw_curves(figure: Figure, traces: list[Trace], curves: dict[str, list[dict[str, Any]]]) -> None:
    panels = dict(zip(TITLES, figure.subplots(2, 2, sharex=True).flat, strict=True))
    for index, trace in enumerate(traces):
        look = style.line(index) | {"markevery": max(1, len(trace.t) // 12)}
        columns = {name: np.array([row[name] for row in curves[trace.label]]) for name in curves[trace.label][0]}
        for name, axes in panels.items():
            axes.plot(trace.t, _positive(columns[name], name), label=style.plain(trace.label), **look)
            if name != "entropy_ratio":
                low, high = (_positive(columns[f"{name}_{end}"], name) for end in ("low", "high"))
                axes.fill_between(trace.t, low, high, color=look["color"], alpha=0.15, linewidth=0)
    for name, axes in panels.items():
        axes.set_title(TITLES[name])
        style.sampling_axis(axes, np.concatenate([trace.t for trace in traces]))
        if name == "entropy_ratio":
            axes.set_ylim(-0.03, 1.03)
        else:
            style.log_axis(axes)
    for name in ("entropy_ratio", "grad_norm"):
        panels[name].set_xlabel("")
    handles = panels["scale"].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, title="bands: the middle half of the samples")


def _positive(values: np.ndarray, name: str) -> np.ndarray:
    """Zeros have no place on a logarithmic axis."""
    return values if name == "entropy_ratio" else np.where(values > 0, values, np.nan)


def _draw_pictures(
    axes: Axes, traces: list[Trace], sample: int, magnify: float, cell: float, names: list[str] | None
) -> None:
    """One sample of traces that have maps of the same steps."""
    blocks = []
    for trace in traces:
        maps = trace.maps
        rows = [maps.x_t[sample], maps.pred_xstart[sample], magnify * maps.guidance[sample]]
        title = f"{trace.label}: sample {sample}, {class_name(names, int(maps.y[sample]))}"
        blocks.append((title, [[style.picture(x) for x in row] for row in rows]))
    t = traces[0].maps.t
    style.picture_grid(
        axes, blocks, cell=cell, columns=[f"t = {t[0]}", *map(str, t[1:])],
        rows=["x_t", "predicted x_0", f"guidance \N{MULTIPLICATION SIGN} {magnify:g}"] * len(traces),
    )  # fmt: skip

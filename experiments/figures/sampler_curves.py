"""A metric over the number of evaluations: a curve a sampler, from the runs.csv of `ed-dpm report`.

Every sampler evaluates the network, and where guided the classifier, once a step. Constant and entropy-driven
guidance and none have a panel each. Points are means over seeds, bars half the range. Settings that were run with one
number of steps only make no curve, and are left out where others do.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evaluations.metrics.registry import METRICS
from experiments.figures import style
from experiments.figures.runs_table import Point, add_arguments, mark_rehearsal, one_point, read_rows, ticks
from guided_diffusion.errors import InputError

__all__ = ["add_arguments", "draw"]

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What may tell two curves of one panel apart, by the words before its value in a legend.
_SETTINGS = {
    "model": "", "classifier": "", "classifier_scale": "\N{GREEK SMALL LETTER GAMMA} = ", "guidance_factor": "C = ",
    "guidance_until": "t up to ", "guidance_norm": "M = ", "n": "n = ",
}  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """The points that differ in the number of steps only. `settings`: the values of _SETTINGS, "" where it has none."""

    guidance: str
    sampler: str
    settings: tuple[str, ...]


Curves = dict[Curve, list[Point]]  # Point.value: evaluations


def draw(args: argparse.Namespace) -> list[Path]:
    """Write the figure and its points; returns their paths."""
    data = style.beside(args.out)
    rows = read_rows(args)
    curves = collect(rows, args.table, args.metric)
    if not curves:
        raise InputError(f"{args.table}: found no run {args.runs} with a value of {args.metric}, expected some")
    panels = list(dict.fromkeys(curve.guidance for curve in curves))
    width = min(style.WIDTH, 0.6 + 3.3 * len(panels))
    lines = {label: index for index, label in enumerate(dict.fromkeys(_label(curve, curves) for curve in curves))}
    with style.new_figure(args.out, width, 3.0 + 0.2 * math.ceil(len(lines) / 2)) as figure:
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, guidance in zip(all_axes, panels, strict=True):
            _panel(axes, {_label(c, curves): p for c, p in curves.items() if c.guidance == guidance}, lines)
            axes.set_title(f"{guidance} guidance" if guidance else "no guidance")
        if min(point.mean for points in curves.values() for point in points) > 0:
            style.log_axis(all_axes[0])
        all_axes[0].set_ylabel(METRICS[args.metric].label)
        # A sampler looks the same in every panel, and so is listed once.
        entries = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in all_axes]
        legend = {label: handle for panel in entries for handle, label in panel}
        figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=2)
        mark_rehearsal(figure, rows)
    style.write_csv(data, [row for curve, points in curves.items() for row in _csv_rows(curve, points, args.metric)])
    return [args.out, data]


def collect(rows: Sequence[dict[str, str]], path: Path, metric: str) -> Curves:
    """The points of every curve by increasing number of evaluations, curves in the order of the table.

    InputError when a sampler has no number of steps, one point has two runs, or a run a seed twice.
    """
    lines: dict[Curve, dict[int, list[dict[str, str]]]] = {}
    for row in rows:
        if row[metric]:
            curve, steps = _place(row, path)
            lines.setdefault(curve, defaultdict(list))[steps].append(row)
    longest = max(map(len, lines.values()), default=0)
    return {
        curve: [one_point(steps, points[steps], curve.sampler, path, metric) for steps in sorted(points)]
        for curve, points in lines.items()
        if len(points) > 1 or longest == 1
    }


def _place(row: dict[str, str], path: Path) -> tuple[Curve, int]:
    sampler, _, steps = row.get("sampler", "").rpartition(" ")
    if not sampler or not steps.isdecimal():
        found = f"run {row['run']}: found sampler {row.get('sampler', '')!r}"
        raise InputError(f"{path}: {found}, expected a name and a number of steps such as DDIM 25")
    return Curve(row["guidance"], sampler, tuple(row.get(name) or "" for name in _SETTINGS)), int(steps)


def _panel(axes: Axes, curves: dict[str, list[Point]], lines: dict[str, int]) -> None:
    """Curves by label; `lines`: the number of each label's look."""
    for label, points in curves.items():
        axes.errorbar(
            [point.value for point in points], [point.mean for point in points],
            yerr=[point.half_range for point in points], capsize=3, label=style.plain(label),
            **style.line(lines[label]),
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(*ticks(sorted({point.value for points in curves.values() for point in points}), logarithmic=True))
    axes.minorticks_off()
    axes.set_xlabel("network evaluations")
    axes.margins(x=0.08, y=0.1)


def _label(curve: Curve, curves: Curves) -> str:
    """The sampler, and whatever tells this curve from others with the same guidance."""
    parts = [curve.sampler]
    rivals = [other for other in curves if other.guidance == curve.guidance]
    for index, (words, value) in enumerate(zip(_SETTINGS.values(), curve.settings, strict=True)):
        if value and len({other.settings[index] for other in rivals}) > 1:
            parts.append(words + value)
    return ", ".join(parts)


def _csv_rows(curve: Curve, points: Sequence[Point], metric: str) -> list[dict]:
    """A row a point: sampler, guidance and settings, evaluations, run, number of seeds, mean and half range."""
    return [
        {
            "sampler": curve.sampler,
            "guidance": curve.guidance,
            **dict(zip(_SETTINGS, curve.settings, strict=True)),
            "evaluations": point.value,
            "run": point.runs[0],
            "seeds": len(point.scores),
            metric: point.mean,
            "half_range": point.half_range,
        }
        for point in points
    ]

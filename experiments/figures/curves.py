"""Curves of a metric from runs.csv, as `ed-dpm report` writes it: their points, and panels of them side by side."""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from evaluations.metrics.registry import METRICS
from experiments.documents import read_csv
from experiments.figures import style
from experiments.smoke import MARK
from guided_diffusion.errors import InputError

_COLUMNS = ("run", "seed", "n", "classifier", "guidance", "classifier_scale", "guidance_factor", "rehearsal")
# The words before a setting's value in a legend, for settings whose values do not speak for themselves.
_WORDS = {
    "n": "n = ", "classifier_scale": "\N{GREEK SMALL LETTER GAMMA} = ", "guidance_factor": "C = ",
    "guidance_until": "t up to ", "guidance_norm": "M = ",
}  # fmt: skip
_LOG_RATIO = 4  # from this ratio of the largest to the smallest value on, the x axis is logarithmic


@dataclass(frozen=True)
class Curve:
    """Points that differ in one number only.

    :param panel: the panel's title; x_label: of its axis; varied: column of the number.
    :param settings: (column, value) of all that the points share, first what the curve is called by.
    """

    panel: str
    x_label: str
    varied: str
    settings: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        return self.settings[0][1]


@dataclass(frozen=True)
class Point:
    """A run at one value of what a curve varies, with its score at every seed."""

    value: float
    run: str
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.scores) / len(self.scores)

    @property
    def half_range(self) -> float:
        """Half the difference between the largest and the smallest; 0 for a single seed."""
        return (max(self.scores) - min(self.scores)) / 2


Row = dict[str, str]
Curves = dict[Curve, list[Point]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of all figures that are made from a table of runs."""
    parser.add_argument("table", type=_table, metavar="RUNS.csv", help="as `ed-dpm report` writes it, or its folder")
    parser.add_argument("--metric", choices=METRICS, default="fid", help="on the y axis (fid)")
    parser.add_argument("--runs", default="*", metavar="PATTERN", help="only runs of this name, as in 'uadm-5k-*'")


def _table(text: str) -> Path:
    path = Path(text)
    return path / "runs.csv" if path.is_dir() else path


def read_rows(args: argparse.Namespace) -> list[Row]:
    """The lines of the runs that the options choose.

    InputError for what is no runs.csv or misses a column.
    """
    path, expected = args.table, "expected the runs.csv of `ed-dpm report`"
    columns, rows = read_csv(path, expected)
    if missing := [name for name in (*_COLUMNS, args.metric) if name not in columns]:
        raise InputError(f"{path}: found no column {', '.join(missing)}, {expected}")
    return [row for row in rows if fnmatchcase(row["run"], args.runs)]


def collect(rows: Sequence[Row], path: Path, metric: str, place: Callable[[Row, Path], tuple[Curve, float]]) -> Curves:
    """The points of every curve by increasing value, curves in the order of the table; place: where a run belongs.

    InputError when one point has two runs, or a run a seed twice.
    """
    lines: dict[Curve, dict[float, list[Row]]] = {}
    for row in rows:
        if row[metric]:
            curve, value = place(row, path)
            lines.setdefault(curve, defaultdict(list))[value].append(row)
    return {
        curve: [_point(value, points[value], curve.name, path, metric) for value in sorted(points)]
        for curve, points in lines.items()
    }


def _point(value: float, rows: Sequence[Row], curve: str, path: Path, metric: str) -> Point:
    names = sorted({row["run"] for row in rows})
    if len(names) > 1:
        raise InputError(
            f"{path}: runs {names[0]} and {names[1]} are the same point of one curve ({curve} at {value:g}), expected "
            "one run a point: choose with --runs PATTERN"
        )
    if len({row["seed"] for row in rows}) < len(rows):
        raise InputError(f"{path}: found run {names[0]} with one seed twice, expected a line for each seed")
    return Point(value, names[0], tuple(number(row, metric, path) for row in rows))


def number(row: Row, name: str, path: Path) -> float:
    """A field as a number. InputError for anything else."""
    try:
        value = float(row[name])
    except (ValueError, TypeError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}: run {row['run']}: found {name} {row[name]!r}, expected a number")
    return value


def draw_curves(args: argparse.Namespace, rows: Sequence[Row], curves: Curves, log_y: bool, best: bool) -> list[dict]:
    """Write a figure with a panel for each that the curves name, and return its points, a row each.

    :param rows: the lines that the curves are from. log_y: where no mean is 0 or less; best: mark every curve's best.
    """
    labels = {curve: _label(curve, curves) for curve in curves}
    tops = {curve: _best(points, args.metric) for curve, points in curves.items()} if best else {}
    for curve, top in tops.items():
        labels[curve] += f": {'best ' * (len(curves[curve]) > 1)}{top.mean:.4g} at {top.value:g}"
    looks = {label: style.line(index) for index, label in enumerate(dict.fromkeys(labels.values()))}
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    width = max(4.0, 0.6 + min(3.3, 8.6 / len(panels)) * len(panels))
    with style.new_figure(args.out, width, 2.7 + 0.2 * math.ceil(len(looks) / 2)) as figure:
        all_axes = dict(zip(panels, figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], strict=True))
        for curve, points in curves.items():
            axes, look = all_axes[curve.panel], looks[labels[curve]]
            x, y = [point.value for point in points], [point.mean for point in points]
            spread = [point.half_range for point in points]
            axes.errorbar(x, y, yerr=spread, capsize=3, label=style.plain(labels[curve]), **look)
            if best and len(points) > 1:
                top = tops[curve].value, tops[curve].mean
                axes.plot(*top, "o", markersize=11, markerfacecolor="none", color=look["color"], zorder=4)
            axes.set(title=curve.panel, xlabel=curve.x_label)
        for panel, axes in all_axes.items():
            values = [point.value for curve, points in curves.items() if curve.panel == panel for point in points]
            if min(values) > 0 and max(values) / min(values) >= _LOG_RATIO:
                style.log_axis(axes, "x")
            axes.margins(x=0.1, y=0.1)
        first = all_axes[panels[0]]
        if log_y and min(point.mean for points in curves.values() for point in points) > 0:
            style.log_axis(first)
        first.set_ylabel(METRICS[args.metric].label)
        entries = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in all_axes.values()]
        legend = {label: handle for panel in entries for handle, label in panel}  # each label once
        figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=1 if width < 5 else 2)
        if any(row["rehearsal"] not in ("", "False") for row in rows):
            figure.suptitle(MARK, fontsize=14, fontweight="bold", color="#c2410c")
    return [
        dict(curve.settings) | {
            curve.varied: point.value, "run": point.run, "seeds": len(point.scores), args.metric: point.mean,
            "half_range": point.half_range,
        } | ({"best": point is tops[curve]} if best else {})
        for curve, points in curves.items() for point in points
    ]  # fmt: skip


def _best(points: Sequence[Point], metric: str) -> Point:
    """The point with the best mean: the lowest FID, say, or the highest precision."""
    return min(points, key=lambda point: point.mean if METRICS[metric].lower_is_better else -point.mean)


def _label(curve: Curve, curves: Curves) -> str:
    """A curve's name, and whatever tells it from others of its panel."""
    rivals = [dict(other.settings) for other in curves if other.panel == curve.panel]
    settings = [(name, value) for name, value in curve.settings[1:] if value]
    told = [_WORDS.get(name, "") + value for name, value in settings if len({rival[name] for rival in rivals}) > 1]
    return ", ".join([curve.name, *told])

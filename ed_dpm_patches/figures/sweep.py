"""A metric over the strength of guidance (supplement Fig. 1-4): a curve a rule, from the runs.csv of `ed-dpm report`.

Entropy-driven and constant guidance vary gamma, the other rules vary C. These have different units, hence a
panel for each. Points are means over seeds, bars half the range. A ring marks the best point of a curve.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from guided_diffusion.errors import InputError

from . import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS = {
    "fid": "FID", "sfid": "sFID", "inception_score": "inception score", "precision": "precision",
    "recall": "recall", "accuracy": "accuracy",
}  # fmt: skip
LOWER_IS_BETTER = ("fid", "sfid")
PANELS = {
    "scale \N{GREEK SMALL LETTER GAMMA}": ("constant", "entropy"),
    "C, rule range": ("range",),
    "C, rule timestep": ("timestep",),
    "C, rule gradnorm": ("gradnorm",),
}  # axis: rules
_GAMMA_RULES = next(iter(PANELS.values()))
_RULES = [rule for rules in PANELS.values() for rule in rules]
_COLUMNS = ("run", "seed", "n", "classifier", "guidance", "classifier_scale", "guidance_factor", "rehearsal")
# What points of one curve share, by the words before its value in a legend; the optional columns may be absent.
_SETTINGS = {
    "classifier": "", "model": "", "sampler": "", "n": "n = ", "classifier_scale": "\N{GREEK SMALL LETTER GAMMA} = ",
    "guidance_until": "t up to ", "guidance_norm": "M = ",
}  # fmt: skip
_LOG_RATIO = 4  # from this ratio of the largest to the smallest value on, the axis is logarithmic


@dataclass(frozen=True)
class Curve:
    """The points that differ in nothing but gamma or C. `settings`: the values of _SETTINGS, "" where it has none."""

    rule: str
    settings: tuple[str, ...]

    @property
    def setting(self) -> dict[str, str]:
        return dict(zip(_SETTINGS, self.settings, strict=True))


@dataclass(frozen=True)
class Point:
    """One value of gamma or C."""

    value: float
    runs: tuple[str, ...]  # one a seed
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.scores) / len(self.scores)

    @property
    def half_range(self) -> float:
        """Half the difference between the largest and the smallest; 0 for a single seed."""
        return (max(self.scores) - min(self.scores)) / 2


Curves = dict[Curve, list[Point]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The figure's own options."""
    parser.add_argument("table", type=Path, metavar="RUNS.csv", help="as `ed-dpm report` writes it")
    parser.add_argument("--metric", choices=METRICS, default="fid", help="on the y axis (fid)")
    parser.add_argument("--runs", default="*", metavar="PATTERN", help="only runs of this name, as in 'uadm-5k-*'")


def draw(args: argparse.Namespace) -> list[Path]:
    """Write the figure and its points; returns their paths."""
    data = style.beside(args.out)
    if data.resolve() == args.table.resolve():
        raise InputError(f"--out: found {args.out}, whose data would replace {args.table}; expected another name")
    rows = [row for row in read_table(args.table, args.metric) if fnmatchcase(row["run"], args.runs)]
    curves = collect(rows, args.table, args.metric)
    if not curves:
        raise InputError(f"{args.table}: found no guided run {args.runs} with a value of {args.metric}, expected some")
    rehearsal = any(row["rehearsal"] not in ("", "False") for row in rows)
    panels = {axis: rules for axis, rules in PANELS.items() if any(curve.rule in rules for curve in curves)}
    width = max(4.0, 0.5 + min(2.4, 8.6 / len(panels)) * len(panels))
    with style.new_figure(args.out, width, 2.6 + 0.2 * math.ceil(len(curves) / 2)) as figure:
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, rules) in zip(all_axes, panels.items(), strict=True):
            _panel(axes, curves, rules, args.metric)
            axes.set_xlabel(title)
        all_axes[0].set_ylabel(METRICS[args.metric])
        handles = [handle for axes in all_axes for handle in axes.get_legend_handles_labels()[0]]
        labels = [label for axes in all_axes for label in axes.get_legend_handles_labels()[1]]
        figure.legend(handles, labels, loc="outside lower center", ncols=1 if width < 5 else 2)
        if rehearsal:
            figure.suptitle("REHEARSAL", fontsize=14, fontweight="bold", color="#c2410c")
    style.write_csv(data, [row for curve, points in curves.items() for row in _csv_rows(curve, points, args.metric)])
    return [args.out, data]


def read_table(path: Path, metric: str) -> list[dict[str, str]]:
    """The lines of runs.csv. InputError when it is none, or misses a column."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, restval="")
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read, expected the runs.csv of `ed-dpm report`") from error
    missing = [name for name in (*_COLUMNS, metric) if name not in (reader.fieldnames or ())]
    if missing:
        raise InputError(f"{path}: found no column {', '.join(missing)}, expected the runs.csv of `ed-dpm report`")
    return rows


def collect(rows: Sequence[dict[str, str]], path: Path, metric: str) -> Curves:
    """The points of every curve by increasing value. InputError when one point has two runs, or a run a seed twice."""
    lines = defaultdict(list)
    for row in rows:
        if row["guidance"] and row[metric]:
            lines[_place(row, path)].append(row)
    curves = defaultdict(list)
    for curve, value in sorted(lines, key=lambda place: (_RULES.index(place[0].rule), place[0].settings, place[1])):
        curves[curve].append(one_point(value, lines[curve, value], curve.rule, path, metric))
    return dict(curves)


def one_point(value: float, rows: Sequence[dict[str, str]], curve: str, path: Path, metric: str) -> Point:
    """The lines of one run, one a seed, as a point of `curve`. InputError for two runs or a seed twice."""
    names = {row["run"] for row in rows}
    if len(names) > 1:
        raise InputError(
            f"{path}: runs {' and '.join(sorted(names)[:2])} are the same point of one curve ({curve} at "
            f"{value:g}), expected one run a point: choose with --runs PATTERN"
        )
    seeds = [row["seed"] for row in rows]
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{path}: found run {rows[0]['run']} with one seed twice, expected a line for each seed")
    return Point(value, tuple(row["run"] for row in rows), tuple(_number(row, metric, path) for row in rows))


def best(points: Sequence[Point], metric: str) -> Point:
    """The point with the lowest mean FID or sFID, the highest of the other metrics."""
    return min(points, key=lambda point: point.mean if metric in LOWER_IS_BETTER else -point.mean)


def _place(row: dict[str, str], path: Path) -> tuple[Curve, float]:
    rule = row["guidance"]
    if rule not in _RULES:
        found = f"run {row['run']}: found guidance {rule}"
        raise InputError(f"{path}: {found}, expected one of {', '.join(_RULES)} or nothing")
    varied = "classifier_scale" if rule in _GAMMA_RULES else "guidance_factor"
    settings = tuple("" if name == varied else row.get(name) or "" for name in _SETTINGS)
    return Curve(rule, settings), _number(row, varied, path)


def _number(row: dict[str, str], name: str, path: Path) -> float:
    try:
        value = float(row[name])
    except (ValueError, TypeError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}: run {row['run']}: found {name} {row[name]!r}, expected a number")
    return value


def _panel(axes: Axes, curves: Curves, rules: Sequence[str], metric: str) -> None:
    values = [point.value for curve, points in curves.items() if curve.rule in rules for point in points]
    for index, (curve, points) in enumerate(curves.items()):
        if curve.rule not in rules:
            continue
        look, top = style.line(index), best(points, metric)
        label = f"{_label(curve, curves)}: {'best ' * (len(points) > 1)}{top.mean:.4g} at {top.value:g}"
        x, y = [point.value for point in points], [point.mean for point in points]
        axes.errorbar(x, y, yerr=[point.half_range for point in points], capsize=3, label=style.plain(label), **look)
        if len(points) > 1:
            axes.plot(top.value, top.mean, "o", markersize=11, markerfacecolor="none", color=look["color"], zorder=4)
    logarithmic = min(values) > 0 and max(values) / min(values) >= _LOG_RATIO
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xticks(*ticks(sorted(set(values)), logarithmic))
    axes.minorticks_off()
    axes.margins(x=0.12, y=0.1)


def ticks(values: Sequence[float], logarithmic: bool) -> tuple[list[float], list[str]]:
    """A tick for every value that there are runs of, with its number where that does not touch the next."""
    places = [math.log(value) if logarithmic else value for value in values]
    span = places[-1] - places[0] or 1
    labels, last, last_length = [], math.inf, 0
    for value, place in zip(reversed(values), reversed(places), strict=True):  # crowded to the right if logarithmic
        text = f"{value:g}"
        # 0.055 inches a digit at 8 pt, of the 1.4 inches between the outermost points of a narrow panel
        needed = ((len(text) + last_length) / 2 + 0.7) * 0.055 / 1.4
        fits = (last - place) / span >= needed
        labels.insert(0, text if fits else "")
        if fits:
            last, last_length = place, len(text)
    return list(values), labels


def _label(curve: Curve, curves: Curves) -> str:
    """The rule, and whatever tells this curve from others."""
    parts = [curve.rule]
    for name, value in curve.setting.items():
        if len({other.setting[name] for other in curves if other.setting[name]}) > 1 and value:
            parts.append(_SETTINGS[name] + value)
    return ", ".join(parts)


def _csv_rows(curve: Curve, points: Sequence[Point], metric: str) -> list[dict]:
    """A row a point: the settings, gamma and C, run, number of seeds, mean of the metric, half range, best or not."""
    top = best(points, metric)
    return [
        {
            "rule": curve.rule,
            **curve.setting,
            "classifier_scale": point.value if curve.rule in _GAMMA_RULES else curve.setting["classifier_scale"],
            "guidance_factor": None if curve.rule in _GAMMA_RULES else point.value,
            "run": point.runs[0],
            "seeds": len(point.scores),
            metric: point.mean,
            "half_range": point.half_range,
            "best": point is top,
        }
        for point in points
    ]

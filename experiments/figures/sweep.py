"""A metric over the strength of guidance (supplement Fig. 1-4): a curve a rule, from the runs.csv of `ed-dpm report`.

Entropy-driven and constant guidance vary gamma, the other rules vary C. These have different units, hence a
panel for each. Points are means over seeds, bars half the range. A ring marks the best point of a curve.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ed_dpm_patches.config import rule_flags
from ed_dpm_patches.rules import RULES
from evaluations.metrics.registry import METRICS
from experiments.figures import style
from experiments.figures.runs_table import Point, add_arguments, mark_rehearsal, number, one_point, read_rows, ticks
from guided_diffusion.errors import InputError

__all__ = ["add_arguments", "draw"]

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


Curves = dict[Curve, list[Point]]


def draw(args: argparse.Namespace) -> list[Path]:
    """Write the figure and its points; returns their paths."""
    data = style.beside(args.out)
    rows = read_rows(args)
    curves = collect(rows, args.table, args.metric)
    if not curves:
        raise InputError(f"{args.table}: found no guided run {args.runs} with a value of {args.metric}, expected some")
    panels = {axis: rules for axis, rules in _panels().items() if any(curve.rule in rules for curve in curves)}
    width = max(4.0, 0.5 + min(2.4, 8.6 / len(panels)) * len(panels))
    with style.new_figure(args.out, width, 2.6 + 0.2 * math.ceil(len(curves) / 2)) as figure:
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, rules) in zip(all_axes, panels.items(), strict=True):
            _panel(axes, curves, rules, args.metric)
            axes.set_xlabel(title)
        all_axes[0].set_ylabel(METRICS[args.metric].label)
        handles = [handle for axes in all_axes for handle in axes.get_legend_handles_labels()[0]]
        labels = [label for axes in all_axes for label in axes.get_legend_handles_labels()[1]]
        figure.legend(handles, labels, loc="outside lower center", ncols=1 if width < 5 else 2)
        mark_rehearsal(figure, rows)
    style.write_csv(data, [row for curve, points in curves.items() for row in _csv_rows(curve, points, args.metric)])
    return [args.out, data]


def collect(rows: Sequence[dict[str, str]], path: Path, metric: str) -> Curves:
    """The points of every curve by increasing value. InputError when one point has two runs, or a run a seed twice."""
    lines = defaultdict(list)
    for row in rows:
        if row["guidance"] and row[metric]:
            lines[_place(row, path)].append(row)
    rules = [rule for panel in _panels().values() for rule in panel]
    curves = defaultdict(list)
    for curve, value in sorted(lines, key=lambda place: (rules.index(place[0].rule), place[0].settings, place[1])):
        curves[curve].append(one_point(value, lines[curve, value], curve.rule, path, metric))
    return dict(curves)


def best(points: Sequence[Point], metric: str) -> Point:
    """The point with the best mean: the lowest FID, say, or the highest precision."""
    return min(points, key=lambda point: point.mean if METRICS[metric].lower_is_better else -point.mean)


def _panels() -> dict[str, list[str]]:
    """The rules that share an axis, by its label: those without C have gamma's, the others one each."""
    shared = [rule for rule in RULES if _varied(rule) == "classifier_scale"]
    return {"scale \N{GREEK SMALL LETTER GAMMA}": shared} | {
        f"C, rule {rule}": [rule] for rule in RULES if rule not in shared
    }


def _varied(rule: str) -> str:
    """The flag that a curve of the rule varies."""
    return "guidance_factor" if "guidance_factor" in rule_flags(rule) else "classifier_scale"


def _place(row: dict[str, str], path: Path) -> tuple[Curve, float]:
    rule = row["guidance"]
    if rule not in RULES:
        found = f"run {row['run']}: found guidance {rule}"
        raise InputError(f"{path}: {found}, expected one of {', '.join(RULES)} or nothing")
    varied = _varied(rule)
    settings = tuple("" if name == varied else row.get(name) or "" for name in _SETTINGS)
    return Curve(rule, settings), number(row, varied, path)


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
            "guidance_factor": None,
            _varied(curve.rule): point.value,
            "run": point.runs[0],
            "seeds": len(point.scores),
            metric: point.mean,
            "half_range": point.half_range,
            "best": point is top,
        }
        for point in points
    ]

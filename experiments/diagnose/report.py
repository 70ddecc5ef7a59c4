"""A diagnosis as files: diagnose.json, figures with the CSVs that they are drawn from, and a self-contained page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.diagnose.statistics import BINS, CONSTANT, CONSTANT_1, PAIR, SURE, Estimate
from experiments.diagnose.verdict import flags, said
from experiments.documents import Column, Line, render, write_text
from experiments.figures import style
from experiments.figures.vanishing_points import CERTAIN_ENTROPY, VANISHED_NORM
from guided_diffusion.io.atomic import write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The quantities of a classifier, with the heads of their columns.
TITLES = {
    "accuracy": "top-1", "top5": "top-5", "cross_entropy": "cross entropy", "ece": "ECE", "temperature": "temperature",
    "entropy": "H / log K", "certain_wrong": "certain, wrong", "gradient": "gradient norm", "vanished": "vanished",
    "cosine": "cosine with the pair", "s_star": "s*",
}  # fmt: skip
_CERTAINTY = {  # the panels of a figure
    "accuracy": "top-1 accuracy", "temperature": "temperature that calibrates", "entropy": "H / log K",
    "gradient": "gradient norm",
}  # fmt: skip
_GAINS = {CONSTANT: "constant, best for t", CONSTANT_1: "constant at 1", "entropy": "EDS, best for t"}


def write_report(result: dict[str, Any], out: Path, about: Sequence[str] = ()) -> Path:
    """Write all files of a result of `diagnose` into a folder; return the page. :param about: text on its run."""
    write_json(out / "diagnose.json", result, allow_nan=False)
    figures = [_draw(out / "certainty.png", _points(result, _CERTAINTY), _CERTAINTY)]
    if result["unguided"] is not None:
        scales = _points(result, {"s_star": "s*"}, with_pair=True)
        figures.append(_draw(out / "scale.png", scales, {"s_star": "s*(t), the scale with the smallest L"}))
        figures.append(_draw_gains(out / "gain.png", result))
    style.write_csv(out / "levels.csv", list(_rows(result)))
    names = [name for name in TITLES if any(name in entry["overall"] for entry in result["classifiers"].values())]
    page = out / "diagnose.html"
    write_text(page, render(
        "diagnose.html", result=result, about=about, figures=figures, names=names, bins=BINS, sure=SURE,
        norm=VANISHED_NORM, certain=CERTAIN_ENTROPY, said=said, overall=_overall(result, names), rules=_rules(result),
        levels=_levels(result, names), columns=[Column(TITLES[name], "number") for name in names],
    ))  # fmt: skip
    return page


def _overall(result: dict[str, Any], names: list[str]) -> Iterator[tuple[str, list[Line]]]:
    for name, entry in result["classifiers"].items():
        yield name, [Line([said(entry["overall"][column]) for column in names])]


def _levels(result: dict[str, Any], names: list[str]) -> Iterator[tuple[str, list[Line]]]:
    for name, entry in result["classifiers"].items():
        lines = zip(result["times"], *(entry["levels"][column] for column in names), strict=True)
        yield name, [Line([str(t), *map(said, values)]) for t, *values in reversed(list(lines))]


def _rules(result: dict[str, Any]) -> Iterator[tuple[str, list[Line]]]:
    pair = {"conditional model": result[PAIR]} if PAIR in result else {}
    for name, entry in (result["classifiers"] | pair).items():
        best = max((found["gain"][0] for found in entry["rules"].values()), default=0.0)
        yield name, [
            Line(
                [rule, *(said(found[key]) for key in ("gamma", "gain", "share", "over_constant")),
                 flags(rule, found["gamma"][0]) if name not in pair else ""],
                "strong" if found["gain"][0] == best else "",
            )
            for rule, found in entry["rules"].items()
        ]  # fmt: skip


def _rows(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every estimate at every level, a line each."""
    pair = {"conditional model": result[PAIR]} if PAIR in result else {}
    for name, entry in (result["classifiers"] | pair).items():
        for quantity, values in entry["levels"].items():
            yield from (_row(name, quantity, t, value) for t, value in zip(result["times"], values, strict=True))
    for t, value in zip(result["times"], result["unguided"] or (), strict=False):
        yield _row("", "loss without guidance", t, value)


def _row(series: str, quantity: str, t: int, value: Estimate) -> dict[str, Any]:
    return {"series": series, "quantity": quantity, "t": t} | dict(zip(("value", "low", "high"), value, strict=True))


def _points(result: dict[str, Any], names: dict[str, str], with_pair: bool = False) -> list[dict[str, Any]]:
    """The lines of `_rows` that a figure shows."""
    pair = set() if with_pair else {"conditional model"}
    return [row for row in _rows(result) if row["quantity"] in names and row["series"] not in pair]


def _draw(path: Path, rows: list[dict[str, Any]], panels: dict[str, str]) -> Path:
    """Draw a panel for each quantity, with a line for each series, and write the rows beside the figure."""
    style.write_csv(path.with_suffix(".csv"), rows)
    count = len(panels)
    across = min(2, count)
    with style.new_figure(path, style.WIDTH, 0.6 + 2.4 * -(-count // across)) as figure:
        grid = figure.subplots(-(-count // across), across, sharex=True, squeeze=False).flat
        for axes, (quantity, title) in zip(grid, panels.items(), strict=True):
            _lines(axes, [row for row in rows if row["quantity"] == quantity], "series")
            axes.set_title(title)
            if quantity in ("temperature", "s_star"):
                axes.axhline(1, color="black", linewidth=0.8)
            if quantity in ("temperature", "gradient"):
                style.log_axis(axes)
        handles = axes.get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=3, title="bands: 95 % bootstrap intervals")
    return path


def _draw_gains(path: Path, result: dict[str, Any]) -> Path:
    """Draw a panel for each classifier: the gain of a level at its own best scale, and at scale 1."""
    wanted = {f"gain/{rule}": title for rule, title in _GAINS.items()}
    rows = [row | {"quantity": wanted[row["quantity"]]} for row in _points(result, wanted)]
    style.write_csv(path.with_suffix(".csv"), rows)
    series = list(result["classifiers"])
    with style.new_figure(path, style.WIDTH, 0.6 + 2.4 * -(-len(series) // 2)) as figure:
        grid = figure.subplots(-(-len(series) // 2), min(2, len(series)), sharex=True, squeeze=False).flat
        for name, axes in zip(series, grid, strict=False):
            _lines(axes, [row for row in rows if row["series"] == name], "quantity")
            handles = axes.get_legend_handles_labels()
            axes.set_title(style.plain(name))
            axes.axhline(0, color="black", linewidth=0.8)
            highest = max(row["high"] for row in rows)
            axes.set_ylim(bottom=max(axes.get_ylim()[0], -highest))  # scale 1 may be far too much
            axes.set_ylabel("reduction of L / (1 - abar)")
        for axes in grid:
            axes.set_axis_off()
        figure.legend(*handles, loc="outside lower center", ncols=3)
    return path


def _lines(axes: Axes, rows: list[dict[str, Any]], key: str) -> None:
    """Draw a line with its interval for each value of a column."""
    for index, name in enumerate(dict.fromkeys(row[key] for row in rows)):
        mine = [row for row in rows if row[key] == name]
        t, value, low, high = (np.array([row[c] for row in mine], float) for c in ("t", "value", "low", "high"))
        look = style.line(index)
        axes.plot(t, value, label=style.plain(name), **look)
        axes.fill_between(t, low, high, color=look["color"], alpha=0.15, linewidth=0)
    style.sampling_axis(axes, np.array([row["t"] for row in rows]))

"""A diagnosis as files: diagnose.json, figures with the CSVs that they are drawn from, and a self-contained page."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.diagnose.statistics import BINS, CONSTANT, CONSTANT_1, PAIR, SURE, Estimate
from experiments.diagnose.verdict import flags, said
from experiments.documents import Column, Line, render, write_text
from experiments.figures import style
from experiments.figures.vanishing_points import CERTAIN_ENTROPY, VANISHED_NORM
from guided_diffusion.io.atomic import write_json

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
_SCALE = {"s_star": "s*(t), the scale with the smallest L"}
_GAINS = {
    f"gain/{CONSTANT}": "constant, best for t", f"gain/{CONSTANT_1}": "constant at 1",
    "gain/entropy": "EDS, best for t",
}  # fmt: skip
PAIR_NAME = "conditional model"


def write_report(result: dict[str, Any], out: Path, about: Sequence[str] = ()) -> Path:
    """Write all files of a result of `diagnose` into a folder; return the page. :param about: text on its run."""
    write_json(out / "diagnose.json", result, allow_nan=False)
    figures = [_draw(out / "certainty.png", _rows(result, _CERTAINTY, False), "quantity", "series", _CERTAINTY)]
    if result["unguided"] is not None:
        figures.append(_draw(out / "scale.png", _rows(result, _SCALE), "quantity", "series", _SCALE))
        gains = [row | {"quantity": _GAINS[row["quantity"]]} for row in _rows(result, _GAINS, False)]
        names = {name: name for name in result["classifiers"]}
        figures.append(_draw(out / "gain.png", gains, "series", "quantity", names, "reduction of L / (1 - abar)"))
    style.write_csv(out / "levels.csv", _rows(result))
    names = [name for name in TITLES if name in next(iter(result["classifiers"].values()))["overall"]]
    if result["classes"] <= 5:
        names.remove("top5")
    page = out / "diagnose.html"
    write_text(page, render(
        "diagnose.html", result=result, about=about, figures=figures, bins=BINS, sure=SURE, norm=VANISHED_NORM,
        certain=CERTAIN_ENTROPY, pair=PAIR_NAME if PAIR in result else "",
        overall=_overall(result, names), rules=_rules(result), levels=_levels(result, names),
        columns=[Column(TITLES[name], "number") for name in names],
    ))  # fmt: skip
    return page


def _overall(result: dict[str, Any], names: list[str]) -> Iterator[tuple[str, list[Line]]]:
    for name, entry in result["classifiers"].items():
        yield name, [Line([_cell(entry["overall"][column]) for column in names])]


def _levels(result: dict[str, Any], names: list[str]) -> Iterator[tuple[str, list[Line]]]:
    for name, entry in result["classifiers"].items():
        lines = zip(result["times"], *(entry["levels"][column] for column in names), strict=True)
        yield name, [Line([str(t), *map(_cell, values)]) for t, *values in reversed(list(lines))]


def _cell(found: Estimate) -> str:
    """An estimate as the two lines of a narrow cell."""
    return said(found).replace(" (", "\n(")


def _rules(result: dict[str, Any]) -> Iterator[tuple[str, list[Line]]]:
    pair = {PAIR_NAME: result[PAIR]} if PAIR in result else {}
    for name, entry in (result["classifiers"] | pair).items():
        best = max((found["gain"][0] for found in entry["rules"].values()), default=0.0)
        yield name, [
            Line(
                [rule, *(_cell(found[key]) for key in ("gamma", "gain", "share", "over_constant")),
                 flags(rule, found["gamma"][0], result["steps"]) if name not in pair else ""],
                "strong" if found["gain"][0] == best else "",
            )
            for rule, found in entry["rules"].items()
        ]  # fmt: skip


def _rows(result: dict[str, Any], quantities: Collection[str] = (), pair: bool = True) -> list[dict[str, Any]]:
    """The estimates at every level, a line each; of all quantities by default, with those of the pair of models."""
    entries = {"": {"levels": {"unguided": result["unguided"] or ()}}, **result["classifiers"]}
    entries |= {PAIR_NAME: result[PAIR]} if pair and PAIR in result else {}
    return [
        {"series": name, "quantity": quantity, "t": t, "value": value, "low": low, "high": high}
        for name, entry in entries.items()
        for quantity, values in entry["levels"].items()
        for t, (value, low, high) in zip(result["times"], values, strict=False)
        if not quantities or quantity in quantities
    ]


def _draw(path: Path, rows: list[dict[str, Any]], panel: str, line: str, titles: dict[str, str], y: str = "") -> Path:
    """Draw a panel for each value of one column, in it a line for each value of another; the rows go beside the figure.

    :param titles: of the panels; y: of their y axes.
    """
    style.write_csv(path.with_suffix(".csv"), rows)
    across = min(2, len(titles))
    down = -(-len(titles) // across)
    with style.new_figure(path, style.WIDTH, 0.7 + 2.4 * down) as figure:
        grid = figure.subplots(down, across, squeeze=False).flat
        for (name, title), axes in zip(titles.items(), grid, strict=False):
            mine = [row for row in rows if row[panel] == name]
            for index, label in enumerate(dict.fromkeys(row[line] for row in mine)):
                columns = ([row[key] for row in mine if row[line] == label] for key in ("t", "value", "low", "high"))
                t, value, low, high = (np.array(column, float) for column in columns)
                look = style.line(index)
                axes.plot(t, value, label=style.plain(label), **look)
                axes.fill_between(t, low, high, color=look["color"], alpha=0.15, linewidth=0)
            axes.set(title=style.plain(title), ylabel=y)
            style.sampling_axis(axes, np.array([row["t"] for row in mine]))
            if name in ("temperature", "s_star"):
                axes.axhline(1, color="black", linewidth=0.8)
            if name in ("temperature", "gradient"):
                style.log_axis(axes)
            if panel == "series":  # gains: scale 1 may be far too much
                axes.axhline(0, color="black", linewidth=0.8)
                axes.set_ylim(bottom=max(axes.get_ylim()[0], -max(row["high"] for row in rows)))
            shown = axes.get_legend_handles_labels()
        for axes in grid:
            axes.set_axis_off()
        figure.legend(*shown, loc="outside lower center", ncols=3, title="bands: 95 % bootstrap intervals")
    return path

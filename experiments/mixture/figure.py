"""The study's figure: each rule's distance as a multiple of the best constant scale's, a row for each condition."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from experiments.figures.style import WIDTH, line, log_axis, new_figure
from experiments.mixture.report import CLIPPED, DATA_TITLES, KEY_METHODS, METRIC_TITLES, Entries, change, conditions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAR = 8.0  # what is farther from 1 is drawn at this multiple, or at its inverse


def draw(path: Path, entries: Entries, titles: dict[str, str]) -> None:
    """Write the figure: a column for each data and metric, bars the 95 % interval over the seeds.

    InputError where matplotlib is not installed.
    """
    data = [name for name in DATA_TITLES if conditions(entries, name)]
    places = dict.fromkeys(place for name in data for place in conditions(entries, name))
    rows = [place for place in places if not place.endswith(CLIPPED)]  # which makes little difference
    panels = [(metric, name) for metric in METRIC_TITLES for name in data]
    with new_figure(path, WIDTH, 1.1 + 0.14 * len(rows)) as figure:
        for axes, panel in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
            _panel(axes, entries, titles, rows, *panel)
        figure.axes[0].set_yticks(range(len(rows)), rows, fontsize=6)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        figure.supxlabel("distance / that of the best constant scale", fontsize=8)
    with Image.open(path) as picture:  # with a palette it takes a third of the bytes
        small = io.BytesIO()
        picture.convert("RGB").quantize(16).save(small, format="png", optimize=True)
    path.write_bytes(small.getvalue())


def _panel(axes: Axes, entries: Entries, titles: dict[str, str], rows: Sequence[str], metric: str, data: str) -> None:
    axes.axvline(1, color="#888888", linewidth=1)
    for index, method in enumerate(KEY_METHODS[1:]):
        look = line(index + 1) | {"linestyle": "", "elinewidth": 0.9, "markersize": 3}
        middles, heights, below, above = [], [], [], []
        for y, place in enumerate(rows):
            found, baseline = (entries.get((data, place, name, metric)) for name in (method, KEY_METHODS[0]))
            if found and baseline:
                share, half = change(found, baseline)
                low, middle, high = (min(max(1 + share + part, 1 / FAR), FAR) for part in (-half, 0, half))
                middles.append(middle)
                heights.append(y + 0.25 * (index - 1))
                below.append(middle - low)
                above.append(high - middle)
        if middles:
            axes.errorbar(middles, heights, xerr=[below, above], label=titles[method], **look)
    axes.set_title(f"{METRIC_TITLES[metric].partition(',')[0]}\n{DATA_TITLES[data]}", fontsize=7.5)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0.9 / FAR, 1.1 * FAR))
    log_axis(axes, "x")
    axes.tick_params(axis="x", which="minor", length=0)
    axes.tick_params(axis="x", labelsize=7)

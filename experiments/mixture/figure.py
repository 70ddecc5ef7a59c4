"""The study's figure: each rule's distance as a multiple of the best constant scale's, a row for each condition."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from experiments.figures.style import WIDTH, line, log_axis, new_figure
from experiments.mixture.report import DATA_TITLES, KEY_METHODS, METRIC_TITLES, Entries, change, conditions

FAR = 8.0  # what is farther from 1 is drawn at this multiple, or at its inverse


def draw(path: Path, entries: Entries, titles: dict[str, str]) -> None:
    """Write the figure: columns data and metric, bars the 95 % interval over the seeds.

    InputError where matplotlib is not installed.
    """
    rows = list(dict.fromkeys(place for data in DATA_TITLES for place in conditions(entries, data)))
    panels = [(metric, data) for metric in METRIC_TITLES for data in DATA_TITLES]
    with new_figure(path, WIDTH, 1.2 + 0.2 * len(rows)) as figure:
        for axes, (metric, data) in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
            axes.axvline(1, color="#888888", linewidth=1)
            for index, method in enumerate(KEY_METHODS[1:]):
                points = []
                for y, place in enumerate(rows):
                    found, baseline = (entries.get((data, place, name, metric)) for name in (method, KEY_METHODS[0]))
                    if found and baseline:
                        share, half = change(found, baseline)
                        ends = [min(max(1 + share + part, 1 / FAR), FAR) for part in (-half, 0, half)]
                        points.append((y + 0.22 * (index - 1), *ends))
                if points:
                    y, low, middle, high = zip(*points, strict=True)
                    bars = [[m - a for m, a in zip(middle, low)], [b - m for m, b in zip(middle, high)]]
                    axes.errorbar(middle, y, xerr=bars, capsize=0, label=titles[method],
                                  **line(index + 1) | {"linestyle": "", "elinewidth": 0.9, "markersize": 3.5})  # fmt: skip
            axes.set_title(f"{METRIC_TITLES[metric].partition(',')[0]}\n{DATA_TITLES[data]}", fontsize=8)
            axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0.9 / FAR, 1.1 * FAR))
            log_axis(axes, "x")
        figure.axes[0].set_yticks(range(len(rows)), rows, fontsize=6.5)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        figure.supxlabel("distance / that of the best constant scale", fontsize=8)
    with Image.open(path) as picture:  # a palette takes a third of the bytes
        small = io.BytesIO()
        picture.convert("RGB").quantize(256).save(small, format="png", optimize=True)
    path.write_bytes(small.getvalue())

"""The study's tables, made of raw.csv alone."""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from experiments.documents import Line, markdown_table, write_text
from experiments.figures.style import write_csv
from experiments.mixture.study import CHOSEN_BY, METRICS, Cell
from guided_diffusion.errors import InputError

KEY_METHODS = ("constant", "timestep", "eds", "eds-cap")  # those of every condition
METRIC_TITLES = {"within": "Within classes, energy distance", "frechet": "Without labels, Frechet distance"}
DATA_TITLES = {"plane": "2-D", "directions": "64-D"}
CLASSIFIERS = {
    "exact": "exact", "sharp4": "logits x4", "sharp8": "logits x8", "soft2": "logits x0.5", "ect0.2": "ECT-optimal",
    "learned": "learned", "learned-sharp4": "learned, logits x4", "learned-ect0.2": "learned with ECT", "none": "none",
}  # fmt: skip
DENOISERS = {
    "exact": "", "learned": "learned denoiser", "blurred0.1": "denoiser blurred by 0.1",
    "blurred0.2": "denoiser blurred by 0.2",
}  # fmt: skip
MAIN = ("exact", "logits x4", "learned")  # classifiers that all methods had
SETTINGS = ("", "; 10 steps", "; learned denoiser")  # with all methods
OVERVIEW = ("exact", "exact; 10 steps", "logits x4", "learned; learned denoiser")
CLIPPED = "x_0 clipped"
SAMPLERS = {"ddim": "", "ddpm": "DDPM", "dpmpp2m": "DPM-Solver++"}


@dataclass(frozen=True)
class Entry:
    """A cell at the scale that one metric chose.

    :param values: each metric's, by reporting seed.
    """

    cell: Cell
    chosen_by: str
    scale: float
    values: dict[str, list[float]]

    @property
    def place(self) -> tuple[str, str]:
        """What is guided: the data, and the condition in words."""
        cell, steps = self.cell, f"{self.cell.steps} steps"
        parts = (
            CLASSIFIERS[cell.classifier], DENOISERS[cell.denoiser], SAMPLERS[cell.sampler],
            steps if cell.steps != 25 else "", CLIPPED if cell.clip else "",
        )  # fmt: skip
        return cell.data, "; ".join(filter(None, parts))

    def mean(self, metric: str) -> float:
        """The mean over the seeds."""
        return statistics.mean(self.values[metric])

    def deviation(self, metric: str) -> float:
        """The standard deviation over the seeds."""
        return statistics.stdev(self.values[metric])


Entries = dict[tuple[str, str, str, str], Entry]  # by data, condition, method, chosen_by


def read(path: Path) -> Entries:
    """Return the entries of raw.csv. InputError without it."""
    if not path.is_file():
        raise InputError(f"{path}: not found, expected the samplings; run without --report")
    entries = []
    for line in csv.DictReader(path.read_text().splitlines()):
        texts = (line[name] for name in ("data", "classifier", "denoiser", "method", "sampler"))
        cell = Cell(*texts, int(line["steps"]), float(line["clip"]))
        values = {
            name: [float(value) for column, value in line.items() if column.rpartition("_")[0] == name]
            for name in METRICS
        }
        for metric in CHOSEN_BY if line["chosen_by"] == "both" else (line["chosen_by"],):
            entries.append(Entry(cell, metric, float(line["scale"]), values))
    return {(*entry.place, entry.cell.method, entry.chosen_by): entry for entry in entries}


def change(entry: Entry, baseline: Entry) -> tuple[float, float]:
    """Return the change of a distance against a baseline's, as a share of that, and half its 95 % interval.

    A paired t interval over the seeds; the metric is the one that chose the scales.
    """
    pairs = zip(entry.values[entry.chosen_by], baseline.values[entry.chosen_by], strict=True)
    differences = [ours - theirs for ours, theirs in pairs]
    count, size = len(differences), abs(baseline.mean(entry.chosen_by))
    half = float(student.ppf(0.975, count - 1)) * statistics.stdev(differences) / count**0.5
    return statistics.mean(differences) / size, half / size


def methods_table(entries: Entries, titles: dict[str, str], places: Sequence[tuple[str, str]], metric: str) -> str:
    """A table in Markdown: rows methods, a column for each (data, condition), distances times 1000, the best in bold.

    Methods without a classifier are in the columns of the exact one.
    """
    rows = {}
    for method in titles:
        row = [
            entries.get((data, condition, method, metric))
            or entries.get((data, re.sub("^exact", CLASSIFIERS["none"], condition), method, metric))
            for data, condition in places
        ]
        if any(row):
            rows[method] = row
    columns = zip(*rows.values(), strict=True)
    best = [min(filter(None, column), key=lambda entry: entry.mean(metric)) for column in columns]
    groups = [
        (titles[method], [Line([_distance(entry, metric, entry is best[i]) for i, entry in enumerate(row)])])
        for method, row in rows.items()
    ]
    return markdown_table(groups, ["method", *(f">{DATA_TITLES[data]}: {condition}" for data, condition in places)])


def ingredients_table(entries: Entries, titles: dict[str, str], metric: str) -> str:
    """A table in Markdown: rows conditions, the constant scale's distance times 1000, and changes against it in %.

    Bold: better, as the 95 % interval has it.
    """
    groups = []
    for data in DATA_TITLES:
        lines = []
        for condition in conditions(entries, data):
            baseline, *others = (entries.get((data, condition, method, metric)) for method in KEY_METHODS)
            if baseline:
                shown = [_distance(baseline, metric, False), *(_change(other, baseline) for other in others)]
                lines.append(Line([condition, *shown]))
        groups.append((DATA_TITLES[data], lines))
    columns = ["data", "classifier; what else is not exact", *(f">{titles[method]}" for method in KEY_METHODS)]
    return markdown_table([group for group in groups if group[1]], columns)


def conditions(entries: Entries, data: str) -> list[str]:
    """Return the conditions of the key methods on the data, from few to many steps, else in the order of the file."""
    found = sorted(entries.values(), key=lambda entry: entry.cell.steps)
    return list(dict.fromkeys(e.place[1] for e in found if e.cell.data == data and e.cell.method in KEY_METHODS))


def _distance(entry: Entry | None, metric: str, strong: bool) -> str:
    if entry is None:
        return ""
    mean, deviation = (1000 * value for value in (entry.mean(metric), entry.deviation(metric)))
    places = 0 if abs(mean) >= 100 else 1
    text = f"{mean:.{places}f} ± {deviation:.{places}f}"
    return f"**{text}**" if strong else text


def _change(entry: Entry | None, baseline: Entry) -> str:
    if entry is None:
        return ""
    share, half = change(entry, baseline)
    text = f"{100 * share:+.0f} ± {100 * half:.0f} %"
    return f"**{text}**" if share + half < 0 else text


def table(entries: Entries) -> list[dict[str, Any]]:
    """Return the lines of table.csv: means and deviations over the reporting seeds of every entry."""
    rows = []
    for entry in entries.values():
        row = vars(entry.cell) | {"chosen_by": entry.chosen_by, "scale": entry.scale}
        for name in METRICS:
            row |= {name: entry.mean(name), f"{name}_sd": entry.deviation(name)}
        rows.append(row)
    return rows


def overview(entries: Entries, titles: dict[str, str]) -> str:
    """Return the table of all methods within classes, in the conditions that tell most."""
    found = dict.fromkeys(entry.place for entry in entries.values())
    places = [(data, condition) for data in DATA_TITLES for condition in OVERVIEW if (data, condition) in found]
    return methods_table(entries, titles, places, "within")


def markdown(entries: Entries, titles: dict[str, str]) -> str:
    """Return all tables, each under its heading."""
    parts = []
    for metric, title in METRIC_TITLES.items():
        parts += [f"### {title}: the ingredients", ingredients_table(entries, titles, metric)]
    found = dict.fromkeys(entry.place for entry in entries.values())
    for (metric, title), data in product(METRIC_TITLES.items(), DATA_TITLES):
        places = [(data, f"{c}{rest}") for rest in SETTINGS for c in MAIN if (data, f"{c}{rest}") in found]
        if places:
            heading = f"### {title}: all methods, {DATA_TITLES[data]}"
            parts += [heading, methods_table(entries, titles, places, metric)]
    return "\n\n".join(parts) + "\n"


def write(out: Path, entries: Entries, titles: dict[str, str]) -> None:
    """Write table.csv and table.md."""
    write_csv(out / "table.csv", table(entries))
    write_text(out / "table.md", markdown(entries, titles))

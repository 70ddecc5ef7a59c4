"""Does what a diagnosis measures predict FID? Rank correlations over classifiers, each guiding at its best scale.

    python -m experiments.cifar10.prediction runs/diagnose/diagnose.json results/cifar10/training

Writes prediction.md (every kind of training, then the correlations), prediction.png and its CSV beside the JSON.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from experiments.cli import Parser
from experiments.documents import Line, markdown_table, write_text
from experiments.figures import style
from experiments.rerun import read_rows
from guided_diffusion.distributed import shutdown
from guided_diffusion.errors import InputError
from guided_diffusion.io.reading import read_json

# What may predict FID: a title, and a number of a classifier's entry in a diagnosis, of which more should be better.
MEASURES = {
    "mean gain at the best constant scale": lambda entry: entry["rules"]["constant"]["gain"][0],
    "top-1 accuracy": lambda entry: entry["overall"]["accuracy"][0],
    "minus cross entropy": lambda entry: -entry["overall"]["cross_entropy"][0],
    "minus ECE": lambda entry: -entry["overall"]["ece"][0],
    "minus the distance of log s* from 0": lambda entry: -abs(_log(entry["overall"]["s_star"][0])),
}
# Columns of the table of trainings: of a classifier's entry.
SHOWN = {
    "top-1": lambda entry: entry["overall"]["accuracy"][0],
    "ECE": lambda entry: entry["overall"]["ece"][0],
    "s*": lambda entry: entry["overall"]["s_star"][0],
    "cosine": lambda entry: entry["overall"].get("cosine", [math.nan])[0],
    "gain": MEASURES["mean gain at the best constant scale"],
}
RULES = {"constant": "constant", "entropy": "EDS"}
REPLICATES = 10_000


def main(argv: list[str] | None = None) -> None:
    """Write the correlations of a diagnosis with a report. InputError where they have too few classifiers in common."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("diagnosis", type=Path, metavar="JSON", help="of `ed-dpm diagnose`")
    parser.add_argument("report", type=Path, metavar="DIR", help="with the runs.csv of the same classifiers")
    args = parser.parse_args(argv)
    entries, runs = read_json(args.diagnosis).get("classifiers"), args.report / "runs.csv"
    if not entries or not all("constant" in entry["rules"] for entry in entries.values()):
        raise InputError(
            f"{args.diagnosis}: found no gains of classifiers, expected diagnose.json of "
            "`ed-dpm diagnose` with an unconditional model"
        )
    points = list(_points(entries, read_rows(runs)))
    if len({point["classifier"] for point in points}) < 4:
        raise InputError(f"{runs}: found fewer than four classifiers of {args.diagnosis}, expected the same names")
    out = args.diagnosis.parent
    lines = []
    for rule in dict.fromkeys(point["rule"] for point in points):
        mine = [point for point in points if point["rule"] == rule]
        fid = [point["fid"] for point in mine]
        lines.append((RULES[rule], [_line(measure, [point[measure] for point in mine], fid) for measure in MEASURES]))
    trainings = markdown_table(_trainings(points, entries), ["training", *(f">{title}" for title in _titles(points))])
    correlations = markdown_table(lines, ["rule", "measure", ">Spearman's correlation with minus FID", ">classifiers"])
    text = f"{trainings}\n\n{correlations}"
    write_text(out / "prediction.md", text + "\n")
    _draw(out / "prediction.png", points)
    print(f"{text}\nreport: {(out / 'prediction.md').absolute()}")


def _log(value: float) -> float:
    """The logarithm; nan where there is none."""
    return math.log(value) if value > 0 else math.nan


def correlation(x: Sequence[float], y: Sequence[float], replicates: int = REPLICATES) -> tuple[float, float, float]:
    """Return Spearman's rank correlation and its 95 % interval, from pairs drawn again; nan for constants."""
    draws = np.random.default_rng(0).integers(len(x), size=(replicates, len(x)))
    draws = np.concatenate([np.arange(len(x))[None], draws])
    ranks = [rankdata(np.asarray(values, np.float64)[draws], axis=1) - (len(x) + 1) / 2 for values in (x, y)]
    size = np.sqrt((ranks[0] ** 2).sum(axis=1) * (ranks[1] ** 2).sum(axis=1))
    both = (ranks[0] * ranks[1]).sum(axis=1)
    found = np.divide(both, size, out=np.full(len(draws), np.nan), where=size > 0)
    known = found[1:][np.isfinite(found[1:])]
    low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (math.nan, math.nan)
    return float(found[0]), float(low), float(high)


def _points(entries: Mapping[str, Any], runs: Sequence[Mapping[str, str]]) -> Iterator[dict[str, Any]]:
    """Yield a row of measures for every classifier and rule, its FID being the mean over the seeds."""
    fids = defaultdict(lambda: defaultdict(list))  # by classifier and rule, then by run
    for run in runs:
        fids[run["classifier"], run["guidance"]][run["run"]].append(run["fid"])
    for name, rule in product(entries, RULES):
        found = fids[name, rule]
        if len(found) > 1:
            raise InputError(f"runs.csv: found {', '.join(sorted(found))}, expected one run of {name} and {rule}")
        for values in found.values():
            measures = {measure: of(entries[name]) for measure, of in MEASURES.items()}
            yield {"classifier": name, "rule": rule, "fid": float(np.mean(np.array(values, float))), **measures}


def _titles(points: Sequence[Mapping[str, Any]]) -> list[str]:
    return [*SHOWN, *(f"FID, {RULES[rule]}" for rule in dict.fromkeys(point["rule"] for point in points))]


def _trainings(points: Sequence[Mapping[str, Any]], entries: Mapping[str, Any]) -> Iterator[tuple[str, list[Line]]]:
    """Yield the means over the classifiers of each kind, with the smallest and largest."""
    for kind in dict.fromkeys(map(_kind, points)):
        mine = [point for point in points if _kind(point) == kind]
        names = dict.fromkeys(point["classifier"] for point in mine)
        columns = [[of(entries[name]) for name in names] for of in SHOWN.values()]
        columns += [[p["fid"] for p in mine if p["rule"] == rule] for rule in dict.fromkeys(p["rule"] for p in points)]
        cells = [f"{np.mean(found):.3f} ({min(found):.3f} to {max(found):.3f})" if found else "" for found in columns]
        yield kind, [Line(cells)]


def _line(measure: str, values: Sequence[float], fid: Sequence[float]) -> Line:
    value, low, high = correlation(values, [-number for number in fid])
    return Line([measure, f"{value:+.2f} ({low:+.2f} to {high:+.2f})", str(len(fid))])


def _draw(path: Path, points: Sequence[Mapping[str, Any]]) -> None:
    """Draw FID over the gain, a panel for each rule, a mark for each kind of training (the name without its number)."""
    style.write_csv(path.with_suffix(".csv"), list(points))
    measure, rules = next(iter(MEASURES)), list(dict.fromkeys(point["rule"] for point in points))
    kinds = list(dict.fromkeys(map(_kind, points)))
    with style.new_figure(path, style.WIDTH, 3.2) as figure:
        for rule, axes in zip(rules, figure.subplots(1, len(rules), squeeze=False, sharey=True).flat, strict=True):
            for index, kind in enumerate(kinds):
                mine = [point for point in points if point["rule"] == rule and _kind(point) == kind]
                look = style.line(index) | {"linestyle": ""}
                axes.plot([p[measure] for p in mine], [p["fid"] for p in mine], label=style.plain(kind), **look)
            axes.set(title=RULES[rule], xlabel=measure, ylabel="FID")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(kinds))


def _kind(point: Mapping[str, Any]) -> str:
    return point["classifier"].rpartition("-")[0] or point["classifier"]


if __name__ == "__main__":
    shutdown.run_main(main)

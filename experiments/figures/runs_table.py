"""runs.csv, as `ed-dpm report` writes it: its lines, and the points that a figure draws from them."""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from evaluations.metrics.registry import METRICS
from experiments.figures import style
from guided_diffusion.errors import InputError
from guided_diffusion.io.reading import decoding, open_regular

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = ("run", "seed", "n", "classifier", "guidance", "classifier_scale", "guidance_factor", "rehearsal")


@dataclass(frozen=True)
class Point:
    """A run at one value of what a curve varies: gamma, C, a number of steps."""

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of all figures that are made from a table of runs."""
    parser.add_argument("table", type=_table, metavar="RUNS.csv", help="as `ed-dpm report` writes it, or its folder")
    parser.add_argument("--metric", choices=METRICS, default="fid", help="on the y axis (fid)")
    parser.add_argument("--runs", default="*", metavar="PATTERN", help="only runs of this name, as in 'uadm-5k-*'")


def _table(text: str) -> Path:
    path = Path(text)
    return path / "runs.csv" if path.is_dir() else path


def read_rows(args: argparse.Namespace) -> list[dict[str, str]]:
    """The lines of the runs that the options choose. InputError as `read_table`, or if --out would replace it."""
    if style.beside(args.out).resolve() == args.table.resolve():
        raise InputError(f"--out: found {args.out}, whose data would replace {args.table}; expected another name")
    return [row for row in read_table(args.table, args.metric) if fnmatchcase(row["run"], args.runs)]


def mark_rehearsal(figure: Figure, rows: Sequence[dict[str, str]]) -> None:
    """The word above the figure if any of its runs is a rehearsal's."""
    if any(row["rehearsal"] not in ("", "False") for row in rows):
        figure.suptitle("REHEARSAL", fontsize=14, fontweight="bold", color="#c2410c")


def read_table(path: Path, metric: str) -> list[dict[str, str]]:
    """The lines of runs.csv. InputError when it is none, or misses a column."""
    with decoding(path, "expected the runs.csv of `ed-dpm report`"), open_regular(path) as file:
        reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline=""), restval="")
        rows = list(reader)
    missing = [name for name in (*_COLUMNS, metric) if name not in (reader.fieldnames or ())]
    if missing:
        raise InputError(f"{path}: found no column {', '.join(missing)}, expected the runs.csv of `ed-dpm report`")
    return rows


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
    return Point(value, tuple(row["run"] for row in rows), tuple(number(row, metric, path) for row in rows))


def number(row: dict[str, str], name: str, path: Path) -> float:
    """A field as a number. InputError for anything else."""
    try:
        value = float(row[name])
    except (ValueError, TypeError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}: run {row['run']}: found {name} {row[name]!r}, expected a number")
    return value


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

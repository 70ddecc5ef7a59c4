"""The study's tables and figure, made of raw.csv alone."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.figures.style import write_csv
from experiments.mixture.study import CHOSEN_BY, METRICS, Cell
from guided_diffusion.errors import InputError

AXES = tuple(Cell.__dataclass_fields__)


def read_raw(path: Path) -> list[dict[str, Any]]:
    """Return the lines of raw.csv. InputError without it."""
    if not path.is_file():
        raise InputError(f"{path}: not found, expected the samplings; run without --report")
    return list(csv.DictReader(path.read_text().splitlines()))


def summary(raw: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield, for each cell and metric to choose by, the scale, and mean and deviation over the reporting seeds."""
    lines: dict[tuple, list[dict[str, Any]]] = {}
    for line in raw:
        for metric in CHOSEN_BY if line["chosen_by"] == "both" else (line["chosen_by"],):
            lines.setdefault((*(line[axis] for axis in AXES), metric), []).append(line)
    for (*axes, metric), found in lines.items():
        row = dict(zip(AXES, axes, strict=True)) | {"chosen_by": metric, "scale": float(found[0]["scale"])}
        for name in METRICS:
            values = [float(line[name]) for line in found]
            row |= {name: statistics.mean(values), f"{name}_sd": statistics.stdev(values)}
        yield row


def write(out: Path, spec: dict[str, Any]) -> None:
    """Write table.csv, table.md and figure.png of the folder's raw.csv."""
    write_csv(out / "table.csv", list(summary(read_raw(out / "raw.csv"))))

"""Which guidance is nearest to the truth? Every cell of the study, tuned over its scale, then on other seeds.

    python -m experiments.mixture --out runs/quick --quick      # minutes: one mixture, few samples, few steps
    python -m experiments.mixture --out runs/mixture --jobs 2
    python -m experiments.mixture --out runs/mixture --report   # of what is done; of raw.csv where there is no more

Writes raw.csv (a line for each cell and scale, a column for each metric and reporting seed), table.csv, table.md and
figure.png into the folder. After an interruption the same command resumes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments.figures.style import write_csv
from experiments.mixture import figure, report
from experiments.mixture.study import CHOSEN_BY, METRICS, Cell, Laboratory, cells, read_spec, tune
from experiments.steps import claim
from guided_diffusion.distributed.shutdown import run_main
from guided_diffusion.errors import InputError


class Results:
    """The samplings of one cell so far, and a file that keeps them, with a line for each (scale, seed).

    :param laboratory: does those that are not there; None: KeyError for them.
    """

    def __init__(self, folder: Path, cell: Cell, laboratory: Laboratory | None = None):
        self.path, self.cell, self.laboratory = folder / f"{str(cell).replace('/', '_')}.csv", cell, laboratory
        self.done: dict[tuple[float, int], dict[str, float]] = {}
        if self.path.exists():
            for row in csv.DictReader(self.path.read_text().splitlines()):
                self.done[float(row["scale"]), int(row["seed"])] = {name: float(row[name]) for name in METRICS}

    def get(self, scale: float, seed: int) -> dict[str, float]:
        """Return the distances of a sampling, with six significant digits."""
        if (scale, seed) not in self.done and self.laboratory is not None:
            found = self.laboratory.run(self.cell, scale, seed)
            self.done[scale, seed] = {name: float(f"{found[name]:.6g}") for name in METRICS}
            write_csv(self.path, [{"scale": a, "seed": b} | values for (a, b), values in self.done.items()])
        return self.done[scale, seed]

    def chosen(self, spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield a line for the scale that is best on the tuning seed by each of CHOSEN_BY, with all reporting seeds.

        Where both choose the same scale, it comes once, with chosen_by "both".
        """
        search = spec["methods"][self.cell.method].get("scales", spec["scales"])
        bounds, tuning = (spec["smallest_scale"], spec["largest_scale"]), spec["tuning_seed"]
        scales = {
            metric: tune(search, *bounds, lambda scale, metric=metric: self.get(scale, tuning)[metric])
            for metric in CHOSEN_BY
        }
        if len(set(scales.values())) == 1:
            scales = {"both": scales[CHOSEN_BY[0]]}
        for metric, scale in scales.items():
            found = {seed: self.get(scale, seed) for seed in spec["reporting_seeds"]}
            values = {f"{name}_{seed}": found[seed][name] for name in METRICS for seed in found}
            yield asdict(self.cell) | {"chosen_by": metric, "scale": scale} | values


def work(cell: Cell, spec: dict[str, Any], folder: Path) -> None:
    """Do all samplings of a cell that are not there."""
    torch.set_num_threads(1)
    for _ in Results(folder, cell, _laboratory(json.dumps(spec))).chosen(spec):
        pass


@cache
def _laboratory(spec: str) -> Laboratory:
    """Return this process's laboratory: learned networks are trained once a process."""
    return Laboratory(json.loads(spec))


def collect(spec: dict[str, Any], folder: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the lines of all cells that are done, and how many cells are not."""
    rows, missing = [], 0
    for cell in cells(spec):
        try:
            rows += list(Results(folder, cell).chosen(spec))
        except KeyError:
            missing += 1
    return rows, missing


def run(spec: dict[str, Any], out: Path, jobs: int) -> None:
    """Do all cells, resuming what is in the folder. InputError where that is of another study."""
    out.mkdir(parents=True, exist_ok=True)
    claim(out / "spec.json", {name: value for name, value in spec.items() if name != "grids"})  # they may grow
    (out / "cells").mkdir(exist_ok=True)
    with ProcessPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, cell, spec, out / "cells") for cell in cells(spec)]
        for future in tqdm(as_completed(futures), total=len(futures), unit=" cells"):
            future.result()


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m experiments.mixture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/mixture"), help="folder of all files (runs/mixture)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (one a core)")
    parser.add_argument("--quick", action="store_true", help="few samples, one mixture: minutes")
    parser.add_argument("--report", action="store_true", help="sample nothing, write the tables and the figure anew")
    args = parser.parse_args()
    spec = read_spec(quick=args.quick)
    if not args.report:
        run(spec, args.out, args.jobs)
    if (args.out / "cells").is_dir():
        rows, missing = collect(spec, args.out / "cells")
        if not rows:
            raise InputError(f"{args.out / 'cells'}: found no finished cell, expected some; run without --report")
        write_csv(args.out / "raw.csv", rows)
        if missing:
            print(f"not done: {missing} of {len(cells(spec))} cells")
    entries = report.read(args.out / "raw.csv")
    titles = {name: values["title"] for name, values in spec["methods"].items()}
    report.write(args.out, entries, titles)
    figure.draw(args.out / "figure.png", entries, titles)
    print(f"table: {(args.out / 'table.md').absolute()}")


if __name__ == "__main__":
    run_main(main)

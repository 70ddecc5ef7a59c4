"""Which guidance is nearest to the truth? Every cell of the study, tuned over its scale, then on other seeds.

    python -m experiments.mixture --quick                 # minutes, one mixture, few samples
    python -m experiments.mixture --out runs/mixture --jobs 2

Writes raw.csv (one line for each sampling), table.csv and table.md into the folder. After an interruption the same
command resumes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments.mixture.study import Cell, Laboratory, cells, read_spec, tune
from experiments.steps import claim
from guided_diffusion.distributed.shutdown import run_main
from guided_diffusion.io.atomic import write_atomically

METRICS = ("within", "marginal", "frechet", "right", "finite")
CHOSEN_BY = ("within", "frechet")


class Results:
    """The samplings of one cell so far, and a file that keeps them.

    :param folder: where the cell has its CSV file, with a line for each (scale, seed).
    """

    def __init__(self, folder: Path, cell: Cell, laboratory: Laboratory):
        self.path, self.cell, self.laboratory = folder / f"{str(cell).replace('/', '_')}.csv", cell, laboratory
        self.done: dict[tuple[float, int], dict[str, float]] = {}
        if self.path.exists():
            for row in csv.DictReader(self.path.read_text().splitlines()):
                self.done[float(row["scale"]), int(row["seed"])] = {name: float(row[name]) for name in METRICS}

    def get(self, scale: float, seed: int) -> dict[str, float]:
        """Return the distances of a sampling, which is done and kept if it is not there."""
        if (scale, seed) not in self.done:
            self.done[scale, seed] = self.laboratory.run(self.cell, scale, seed)
            rows = [{"scale": a, "seed": b} | values for (a, b), values in self.done.items()]
            write(self.path, rows)
        return self.done[scale, seed]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows as a CSV file with a header, floats with six significant digits."""
    lines = [",".join(rows[0])]
    lines += [",".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in row.values()) for row in rows]
    with write_atomically(path) as file:
        file.write(("\n".join(lines) + "\n").encode())


def work(cell: Cell, spec: dict[str, Any], folder: Path) -> None:
    """Tune a cell by each of CHOSEN_BY and sample at the chosen scales with the reporting seeds."""
    torch.set_num_threads(1)
    results = Results(folder, cell, _laboratory(json.dumps(spec)))
    for metric in CHOSEN_BY:
        scale = choose(results, metric, spec)
        for seed in spec["reporting_seeds"]:
            results.get(scale, seed)


def choose(results: Results, metric: str, spec: dict[str, Any]) -> float:
    """Return the scale that is best by a metric on the tuning seed."""
    bounds = spec["smallest_scale"], spec["largest_scale"]
    return tune(spec["scales"], *bounds, lambda scale: results.get(scale, spec["tuning_seed"])[metric])


@cache
def _laboratory(spec: str) -> Laboratory:
    """Return this process's laboratory: learned networks are trained once a process."""
    return Laboratory(json.loads(spec))


def summary(spec: dict[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a line for each finished cell and metric to choose by: the scale, and means over the reporting seeds."""
    laboratory = Laboratory(spec)
    for cell in cells(spec):
        results = Results(folder, cell, laboratory)
        for metric in CHOSEN_BY if results.done else ():
            scale = choose(results, metric, spec)
            rows = [results.get(scale, seed) for seed in spec["reporting_seeds"]]
            row = asdict(cell) | {"chosen_by": metric, "scale": scale}
            for name in METRICS:
                values = [found[name] for found in rows]
                row |= {name: statistics.mean(values), f"{name}_sd": statistics.stdev(values)}
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m experiments.mixture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/mixture"), help="folder of all files (runs/mixture)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (one a core)")
    parser.add_argument("--quick", action="store_true", help="few samples, one mixture: minutes")
    args = parser.parse_args()
    spec = read_spec(quick=args.quick)
    args.out.mkdir(parents=True, exist_ok=True)
    claim(args.out / "spec.json", spec)
    folder = args.out / "cells"
    folder.mkdir(exist_ok=True)
    todo = cells(spec)
    with ProcessPoolExecutor(args.jobs) as pool:
        futures = [pool.submit(work, cell, spec, folder) for cell in todo]
        for future in tqdm(as_completed(futures), total=len(futures), unit=" cells"):
            future.result()
    rows = list(summary(spec, folder))
    write(args.out / "table.csv", rows)
    print(f"table: {(args.out / 'table.csv').absolute()}")


if __name__ == "__main__":
    run_main(main)

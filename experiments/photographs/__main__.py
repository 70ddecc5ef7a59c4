"""Where should a classifier of clean images look: at x_t, at the predicted x_0, or through the prediction?

    python -m experiments.photographs --photographs FOLDER --out runs/photographs

Needs the extra "photographs", whose wheels hold the networks, and a folder of ImageNet photographs named
CLASSINDEX_name.jpg. Takes about five minutes of one core a seed. Writes raw.csv (one line for each photograph,
timestep, place, ...), table.csv and table.md into the folder, and prints the table.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from scipy.stats import binomtest

from experiments.documents import Line, csv_text, markdown_table, write_text
from experiments.photographs.study import PLACES, Study, classifiers, measure, read_photographs
from guided_diffusion.distributed.shutdown import run_main

CELL = ("t", "guide", "size")
CONTRASTS = tuple(f"{later} - {place}" for place, later in itertools.combinations(PLACES, 2))


def summary(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the median of the judge's change and its two-sided sign test, over photographs, of each cell and place.

    Also of the differences between two places, and ("all") of everything together. Only photographs are independent:
    each counts once, with its mean. `positive` of `count` changes are above 0; a change of 0 does not count.
    """
    cells: dict[tuple, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for axes, row in itertools.product((CELL, ()), rows):
        cell = tuple(row[name] if name in axes else "all" for name in CELL)
        cells[cell][row["place"], row["photograph"]].append(row["change"])
    for cell, changes in cells.items():
        photographs = list(dict.fromkeys(photograph for _, photograph in changes))
        of = {place: [mean(changes[place, photograph]) for photograph in photographs] for place in PLACES}
        for name in CONTRASTS:
            of[name] = [a - b for a, b in zip(*(of[place] for place in name.split(" - ")), strict=True)]
        for name, values in of.items():
            positive, count = sum(value > 0 for value in values), sum(value != 0 for value in values)
            p = float(f"{binomtest(positive, count).pvalue:.3g}") if count else 1.0
            found = {"median": round(median(values), 5), "positive": positive, "count": count, "p": p}
            yield dict(zip(CELL, cell, strict=True)) | {"place": name} | found


def markdown(table: Sequence[dict[str, Any]]) -> str:
    """Return the summary as a table, one line for each timestep, guide and size, and one for all."""
    groups: dict[str, list[Line]] = defaultdict(list)
    for cell, rows in itertools.groupby(table, key=lambda row: tuple(row[name] for name in CELL)):
        texts = [f"{row['median']:+.2f} ({row['positive']}/{row['count']}, p {row['p']:.2g})" for row in rows]
        groups[str(cell[0])].append(Line([cell[1], str(cell[2]), *texts]))
    return markdown_table(list(groups.items()), [*CELL, *PLACES, *CONTRASTS])


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m experiments.photographs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, required=True, help="folder of files CLASSINDEX_name.jpg")
    parser.add_argument("--out", type=Path, default=Path("runs/photographs"), help="folder of all files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of noise and target classes (0)")
    args = parser.parse_args()
    study = Study(seeds=tuple(args.seeds))
    photographs = read_photographs(args.photographs, study.side)
    for name, network in classifiers(study).items():
        right = int((network(photographs.images).argmax(dim=1) == photographs.labels).sum())
        print(f"{name}: recognises {right} of {len(photographs.names)} photographs")
    rows = list(measure(photographs, study))
    table = list(summary(rows))
    text = markdown(table)
    write_text(args.out / "raw.csv", csv_text(list(rows[0]), rows))
    write_text(args.out / "table.csv", csv_text(list(table[0]), table))
    write_text(args.out / "table.md", f"{text}\n")
    print(f"{text}\ntable: {(args.out / 'table.csv').absolute()}")


if __name__ == "__main__":
    run_main(main)

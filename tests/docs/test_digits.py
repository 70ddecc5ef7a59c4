"""docs/digits.md shows the figures of results/digits, and only those."""

from __future__ import annotations

import csv
import re

import pytest

from experiments.results import digits
from experiments.spec_files import load
from tests.support.helpers import ROOT

METRICS = ("fid", "inception_score", "precision", "recall", "accuracy")


def table(name: str) -> list[str]:
    """The lines of a table of the document, from the report's CSV file."""
    book = load(ROOT / "experiments" / "digits" / "recipes")
    with (ROOT / "results" / "digits" / "report.csv").open(newline="") as file:
        records = [record for record in csv.DictReader(file) if record["table"] == name]
    lines = []
    for row in book.tables[name].rows:
        values = {record["metric"]: record for record in records if record["row"] == row.name}
        run = book.runs[values["fid"]["run"]]
        shown = [row.method, parameter(run.flags) if row.sweep else ""]
        for metric in METRICS:
            if metric not in values:
                shown.append("")
                continue
            mean, spread = (float(values[metric][column]) for column in ("ours", "half_range"))
            places = digits(metric, mean)
            shown.append(f"{mean:.{places}f} ± {spread:.{places}f}")
        lines.append(f"| {' | '.join(shown)} |")
    return lines


def parameter(flags: dict) -> str:
    factor = flags.get("guidance_factor")
    return f"C = {factor:g}" if factor is not None else f"γ = {flags['classifier_scale']:g}"


@pytest.mark.parametrize("name", ["rules", "schemes"])
def test_the_tables_are_those_of_the_results(name):
    text = (ROOT / "docs" / "digits.md").read_text()
    for line in table(name):
        assert line in text


def test_the_figures_exist():
    text = (ROOT / "docs" / "digits.md").read_text()
    pictures = re.findall(r"\]\((figures/[^)]+)\)", text)
    made = re.findall(r"--out docs/(figures/\S+\.png)", text)
    assert pictures == made and len(made) >= 5
    for picture in pictures:
        assert (ROOT / "docs" / picture).is_file() and (ROOT / "docs" / picture).with_suffix(".csv").is_file()


if __name__ == "__main__":
    for name in ("rules", "schemes"):
        print("\n".join(table(name)))

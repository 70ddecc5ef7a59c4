"""What an evaluation found: as lines, as a row of a Markdown table, as JSON."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from evaluations.metrics_record import Metrics
from evaluations.per_class import FIGURES
from guided_diffusion.files import remove_leftovers, write_json

_TITLES = {
    "inception_score": "Inception Score",
    "fid": "FID",
    "sfid": "sFID",
    "precision": "Precision",
    "recall": "Recall",
    "accuracy": "Accuracy",
    "reference_accuracy": "Reference accuracy",
    "kid": "KID",
    "kid_deviation": "KID deviation",
    "density": "Density",
    "coverage": "Coverage",
}


def format_metrics(metrics: Metrics) -> list[str]:
    """The lines for stdout: upstream's five (less what reference or network cannot give), then the accuracy on the
    samples and on the reference if there is one, then what flags asked for."""
    lines = [f"{title}: {getattr(metrics, name)}" for name, title in _found(metrics).items()]
    for name, (low, high) in (metrics.intervals or {}).items():
        lines.append(f"{_TITLES[name]} 95% interval: {low} {high}")
    for name, found in (metrics.paired or {}).items():
        lines.append(f"{_TITLES[name]} paired difference: {found['difference']} p: {found['p']}")
    for label, found in (metrics.per_class or {}).items():
        title = f"Class {label}" + (f" ({found['name']})" if found["name"] else "")
        lines += [f"{title} {_TITLES[name]}: {found[name]}" for name in FIGURES if found[name] is not None]
    return lines


def format_markdown(metrics: Metrics) -> list[str]:
    """Head, rule and row of a table; intervals in brackets behind their figures, p behind paired differences.

    The figures by class, if there are some, are another table after an empty line.
    """
    cells = {"Samples": ", ".join(Path(name).stem for name in metrics.samples.split(",")), "N": str(metrics.n_samples)}
    for name, title in _found(metrics).items():
        cells[title] = f"{getattr(metrics, name):.4g}"
        if interval := (metrics.intervals or {}).get(name):
            cells[title] += f" [{interval[0]:.4g}, {interval[1]:.4g}]"
    for name, found in (metrics.paired or {}).items():
        cells[f"{_TITLES[name]} difference"] = f"{found['difference']:+.3g} (p = {found['p']:.2g})"
    lines = _table([list(cells), list(cells.values())])
    if not metrics.per_class:
        return lines
    rows = [["Class", "N reference", "N", *(_TITLES[name] for name in FIGURES)]]
    for label, found in metrics.per_class.items():
        figures = ["" if found[name] is None else f"{found[name]:.4g}" for name in FIGURES]
        rows.append([found["name"] or label, str(found["n_reference"]), str(found["n_samples"]), *figures])
    return [*lines, "", *_table(rows)]


def _table(rows: list[list[str]]) -> list[str]:
    """Rows of cells, the first of which is the head, as Markdown."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]


def write_metrics(metrics: Metrics, path: str | os.PathLike) -> None:
    """All of it as JSON, atomically."""
    remove_leftovers(Path(path).parent, Path(path).name)
    write_json(path, asdict(metrics))


def _found(metrics: Metrics) -> dict[str, str]:
    """Names and titles of the metrics that there are."""
    return {name: title for name, title in _TITLES.items() if getattr(metrics, name) is not None}

"""Results of an evaluation: the record, lines, Markdown table and JSON file; a place for what cannot be written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evaluations.metrics.registry import METRICS
from guided_diffusion.errors import InputError
from guided_diffusion.io.atomic import remove_leftovers, write_json


@dataclass(frozen=True)
class Metrics:
    """The quality of a set of samples against a reference set.

    ``values`` holds every metric of the registry by name, and what it adds (``class_accuracy``, label to share;
    ``kid_deviation``; ...), which are attributes too: ``metrics.fid``. They are None where they were not asked for, or
    the sets or the network lack what they need: precision and recall of statistics only, sFID without spatial features,
    the inception score without probabilities, the accuracy without a classifier and labels. ``n_reference`` and
    ``n_samples`` count images.

    Only where asked for: ``intervals`` (metric to its 95 % interval); ``paired`` (metric to difference and p);
    ``per_class`` (label to metrics, see ``per_class.by_class``). Hashes are sha256, hex; ``network_config`` is what
    decides beside the weights. ``warnings`` are the lines that went to stderr. ``chosen`` says which images were taken
    where not all were; ``quantisation``, ``resize_before`` and ``resize`` what was done to the images on their way into
    the network, ``reading`` how files became 8 bits where not as usual.
    """

    values: dict[str, Any]
    n_reference: int
    n_samples: int
    engine: str
    reference: str
    samples: str
    intervals: dict[str, tuple[float, float]] | None = None
    paired: dict[str, dict[str, float]] | None = None
    per_class: dict[str, dict[str, Any]] | None = None
    paired_with: str | None = None
    paired_rounds: int = 0
    bootstrap: int = 0
    seed: int = 0
    half_precision: bool = False
    chosen: str | None = None
    quantisation: str = "none: uint8, 0..255, as stored"
    resize_before: str | None = None
    resize: str | None = None
    reading: dict[str, Any] | None = None
    network_sha256: str | None = None
    network_config: dict[str, Any] | None = None
    reference_sha256: str | None = None
    samples_sha256: str | None = None
    paired_sha256: str | None = None
    warnings: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        try:
            return vars(self)["values"][name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no attribute {name}") from None

    def titled(self) -> dict[str, float]:
        """Return the printed values that are not None, by title, in order."""
        pairs = [pair for metric in METRICS.values() for pair in ((metric.name, metric.title), *metric.adds.items())]
        found = {title: self.values.get(name) for name, title in pairs if title}
        return {title: value for title, value in found.items() if value is not None}


def format_metrics(metrics: Metrics) -> list[str]:
    """Return the lines for stdout: upstream's five (without what reference or network cannot give), then the accuracy
    on the samples and on the reference if there is one, then what flags asked for."""
    lines = [f"{title}: {value}" for title, value in metrics.titled().items()]
    for name, (low, high) in (metrics.intervals or {}).items():
        lines.append(f"{METRICS[name].title} 95% interval: {low} {high}")
    for name, found in (metrics.paired or {}).items():
        lines.append(f"{METRICS[name].title} paired difference: {found['difference']} p: {found['p']}")
    for label, found in (metrics.per_class or {}).items():
        title = f"Class {label}" + (f" ({found['name']})" if found["name"] else "")
        shown = [metric for metric in METRICS.values() if found.get(metric.name) is not None]
        lines += [f"{title} {metric.title}: {found[metric.name]}" for metric in shown]
    return lines


def format_markdown(metrics: Metrics) -> list[str]:
    """Return head, rule and row of a table; intervals in brackets behind their values, p behind paired differences.

    The metrics by class, if there are some, are another table after an empty line.
    """
    cells = {"Samples": ", ".join(Path(name).stem for name in metrics.samples.split(",")), "N": str(metrics.n_samples)}
    cells |= {title: f"{value:.4g}" for title, value in metrics.titled().items()}
    for name, (low, high) in (metrics.intervals or {}).items():
        cells[METRICS[name].title] += f" [{low:.4g}, {high:.4g}]"
    for name, found in (metrics.paired or {}).items():
        cells[f"{METRICS[name].title} difference"] = f"{found['difference']:+.3g} (p = {found['p']:.2g})"
    lines = _table([list(cells), list(cells.values())])
    if not metrics.per_class:
        return lines
    shown = [metric for metric in METRICS.values() if metric.name in next(iter(metrics.per_class.values()))]
    rows = [["Class", "N reference", "N", *(metric.title for metric in shown)]]
    for label, found in metrics.per_class.items():
        values = [found[metric.name] for metric in shown]
        texts = ["" if value is None else f"{value:.4g}" for value in values]
        rows.append([found["name"] or label, str(found["n_reference"]), str(found["n_samples"]), *texts])
    return [*lines, "", *_table(rows)]


def _table(rows: list[list[str]]) -> list[str]:
    """Return rows of cells, the first of which is the head, as Markdown."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]


def write_metrics(metrics: Metrics, path: str | os.PathLike) -> None:
    """Write all of the record as JSON, atomically."""
    remove_leftovers(Path(path).parent, Path(path).name)
    found = asdict(metrics)
    write_json(path, found.pop("values") | found)


def check_writable(flag: str, path: str) -> None:
    """Raise ``InputError`` before the work if a flag's file cannot be written; no folder is made yet."""
    target = Path(path).absolute()
    parent = next(ancestor for ancestor in target.parents if ancestor.exists())
    if target.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{flag} {path}: expected a file that can be written")


def write_or_keep(
    path: str | os.PathLike, write: Callable[[Path], None], keep: Callable[[Path], None] | None, what: str
) -> None:
    """Call ``write`` with a path; where that fails, ``keep`` with another one, in the error.

    The other one is in the same folder (``keep`` may need less room), the working directory, or the folder for
    temporary files. ``keep`` is None where there is nothing to keep.

    :param what: what is kept, for the error.
    :raises InputError: the file could not be written; with the path of what is kept, if it could be.
    """
    target = Path(path)
    try:
        return write(target)
    except InputError as error:
        folders = (target.absolute().parent, Path.cwd(), Path(tempfile.gettempdir())) if keep else ()
        for folder in dict.fromkeys(folders):
            other = folder / f"{target.stem}-kept-{os.getpid()}{target.suffix}"
            with suppress(InputError):
                keep(other)
                break
        else:
            raise
        raise InputError(f"{error}; {what} in {other}") from error

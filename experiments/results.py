"""What a folder of finished steps holds: the evaluator's values of every run, and what they were made from.

    results = read_results(book, Path("runs/paper"))
    results.runs["cadm-g-ddim25"].mean("fid")

Nothing has to be there: a run without metrics is missing from the results, a value without its step's record has
no hashes, commit or speed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluations.metrics.registry import METRICS, in_tables
from experiments.spec import Book, short
from guided_diffusion.errors import InputError
from guided_diffusion.io.reading import read_json

ROLES = ("model", "classifier", "reference", "judge")  # of the files that a result is made from
RUN_NAME = re.compile(r"(?P<run>.+)-seed(?P<seed>\d+)-(?P<n>\d+)")


@dataclass(frozen=True)
class HashedFile:
    """A file that a step read: path as the step's record has it, sha256 in hexadecimal."""

    path: str
    sha256: str

    @property
    def name(self) -> str:
        """File name; with its folder for what training leaves, whose file names are all alike."""
        path = Path(self.path)
        return f"{path.parent.name}/{path.name}" if re.fullmatch(r"(model|ema_.+_)\d+\.pt", path.name) else path.name


@dataclass(frozen=True)
class StepRecord:
    """The record of a finished step.

    :param seconds: wall time of all `processes` together, None for a step that was interrupted; inputs: path to
        sha256.
    """

    command: tuple[str, ...]
    commit: str | None
    device: str
    seconds: float | None
    processes: int
    inputs: dict[str, str]

    def input(self, path: str) -> HashedFile | None:
        """The input of that path, or the only one of that file name."""
        matches = [path] if path in self.inputs else [p for p in self.inputs if Path(p).name == Path(path).name]
        return HashedFile(matches[0], self.inputs[matches[0]]) if len(matches) == 1 else None

    def flag(self, name: str) -> HashedFile | None:
        """The input that a flag of the command names."""
        where = self.command.index(f"--{name}") + 1 if f"--{name}" in self.command else len(self.command)
        return self.input(self.command[where]) if where < len(self.command) else None


@dataclass(frozen=True)
class Evaluation:
    """One evaluated set of samples.

    :param seed: None for samples published by others.
    :param values: metric to value, without those that the evaluator left out.
    :param engine: the network that judged; samples: path of the samples.
    :param images_per_second: of sampling, over all processes together.
    """

    seed: int | None
    values: dict[str, float]
    engine: str
    samples: str
    commit: str | None = None
    model: HashedFile | None = None
    classifier: HashedFile | None = None
    reference: HashedFile | None = None
    judge: HashedFile | None = None
    images_per_second: float | None = None

    @property
    def files(self) -> dict[str, HashedFile | None]:
        """By role: "model", "classifier", "reference" or "judge"."""
        return {role: getattr(self, role) for role in ROLES}


@dataclass(frozen=True)
class RunResult:
    """All seeds of a run at its largest number of samples, or one published batch.

    :param run: name of the run, file name of the batch; n: samples a seed.
    """

    run: str
    n: int
    evaluations: tuple[Evaluation, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Ascending; empty for a published batch."""
        return tuple(e.seed for e in self.evaluations if e.seed is not None)

    def values(self, metric: str) -> tuple[float, ...]:
        """One a seed. Empty unless every seed has the metric."""
        values = tuple(e.values[metric] for e in self.evaluations if metric in e.values)
        return values if len(values) == len(self.evaluations) else ()

    def mean(self, metric: str) -> float | None:
        """Over the seeds; None where the metric was not computed."""
        values = self.values(metric)
        return sum(values) / len(values) if values else None

    def half_range(self, metric: str) -> float | None:
        """Half the difference between largest and smallest; None for fewer than two seeds."""
        values = self.values(metric)
        return (max(values) - min(values)) / 2 if len(values) > 1 else None

    def commits(self) -> tuple[str, ...]:
        """Every commit once."""
        return tuple(dict.fromkeys(e.commit for e in self.evaluations if e.commit))

    def files(self, role: str) -> tuple[HashedFile, ...]:
        """The contents used in a role, each once: more than one if they changed between the seeds."""
        found = (evaluation.files[role] for evaluation in self.evaluations)
        return tuple({file.sha256: file for file in found if file}.values())


@dataclass(frozen=True)
class Results:
    """Results by name of the run, and by file name of the published batch."""

    runs: dict[str, RunResult]
    batches: dict[str, RunResult]

    def all(self) -> Iterable[RunResult]:
        """Runs first."""
        return (*self.runs.values(), *self.batches.values())

    def metrics(self) -> list[str]:
        """Names of the metrics to show, in the order of columns: all but extra ones that no result has."""
        known = {name for result in self.all() for evaluation in result.evaluations for name in evaluation.values}
        return [metric.name for metric in in_tables() if not metric.extra or metric.name in known]


def digits(metric: str, value: float) -> int:
    """Behind the point: two of what papers print with two, more of a distance that is small in other features."""
    if METRICS[metric].lower_is_better:
        return 2 if value >= 1 else 4
    return 2 if metric == "inception_score" else 3


def read_results(book: Book, out: Path, seeds: Collection[int] | None = None) -> Results:
    """What `out` holds for the runs and batches of a book.

    :param seeds: of the samples that count; None: all.
    InputError, naming the file, for a damaged one.
    """
    found: dict[str, dict[int, list[tuple[int, Path]]]] = {}
    for path in sorted((out / "metrics").glob("*.json")):
        match = RUN_NAME.fullmatch(path.stem)
        if match and match["run"] in book.runs and (seeds is None or int(match["seed"]) in seeds):
            by_n = found.setdefault(match["run"], {})
            by_n.setdefault(int(match["n"]), []).append((int(match["seed"]), path))
    runs = {}
    for name in book.runs:
        if name in found:
            n = max(found[name])
            evaluations = [_evaluation(path, out, name, seed, n) for seed, path in sorted(found[name][n])]
            runs[name] = RunResult(name, n, tuple(evaluations))
    batches = {}
    for row in (row for table in book.tables.values() for row in table.rows if row.batch):
        path = out / "metrics" / f"batch-{Path(row.batch).stem}.json"
        if path.exists():
            values, metrics = _metrics(path)
            step = read_record(out / "steps" / f"evaluate-{path.stem}.json")
            commit = step.commit if step else None
            origin = _judged_by(step, metrics)
            samples = str(short(Path(metrics["samples"])))
            evaluation = Evaluation(None, values, metrics["engine"], samples, commit, **origin)
            batches[row.batch] = RunResult(row.batch, metrics["n_samples"], (evaluation,))
    return Results(runs, batches)


def _evaluation(path: Path, out: Path, run: str, seed: int, n: int) -> Evaluation:
    values, metrics = _metrics(path)
    if metrics["n_samples"] != n:
        raise InputError(f"{path}: n_samples: found {metrics['n_samples']}, expected {n} as in the file's name")
    sample = read_record(out / "steps" / f"sample-{run}-seed{seed}-{n}.json")
    evaluate = read_record(out / "steps" / f"evaluate-{run}-seed{seed}-{n}.json")
    return Evaluation(
        seed=seed,
        values=values,
        engine=metrics["engine"],
        samples=str(short(Path(metrics["samples"]))),
        # The samples' commit is what made the result; the evaluator's stands in where that is unknown.
        commit=next((step.commit for step in (sample, evaluate) if step and step.commit), None),
        model=sample.flag("model_path") if sample else None,
        classifier=sample.flag("classifier_path") if sample else None,
        **_judged_by(evaluate, metrics),
        images_per_second=n / sample.seconds if sample and sample.seconds else None,
    )


def _judged_by(step: StepRecord | None, metrics: dict[str, Any]) -> dict[str, HashedFile | None]:
    """Reference and network of an evaluation."""
    if step is None:
        return {}
    return {"reference": step.input(metrics["reference"]), "judge": step.flag("features") or step.flag("inception")}


def _metrics(path: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """The checked numbers of an evaluator's file, and all of it."""
    content = read_json(path)
    values = {}
    for metric in in_tables():
        value = content.get(metric.name)
        if value is None and (not metric.upstream or (metric.name != "fid" and metric.name in content)):
            continue  # what reference or network cannot give is null
        if type(value) not in (int, float) or not math.isfinite(value):
            raise InputError(f"{path}: {metric.name}: found {value!r}, expected a finite number")
        values[metric.name] = float(value)
    for key, kind in {"n_samples": int, "engine": str, "reference": str, "samples": str}.items():
        if type(content.get(key)) is not kind:
            raise InputError(f"{path}: {key}: found {content.get(key)!r}, expected {_NAMES[kind]}")
    return values, content


def read_record(path: Path) -> StepRecord | None:
    """The record of a step; None if it was not finished. InputError for a damaged file."""
    if not path.exists():
        return None
    content = read_json(path)
    for key, kinds in _RECORD_KINDS.items():
        if type(content.get(key)) not in kinds:
            raise InputError(f"{path}: {key}: found {content.get(key)!r}, expected {_NAMES[kinds[0]]}")
    for file, digest in content["inputs"].items():
        if type(digest) is not str:
            raise InputError(f"{path}: inputs: {file}: found {digest!r}, expected a sha256")
    return StepRecord(
        command=tuple(map(str, content["command"])),
        **{key: content[key] for key in _RECORD_KINDS if key != "command"},
    )


_RECORD_KINDS = {
    "command": (list,), "commit": (str, type(None)), "device": (str,), "seconds": (float, int, type(None)),
    "processes": (int,), "inputs": (dict,),
}  # fmt: skip
_NAMES = {str: "text", int: "a whole number", float: "a number", dict: "an object", list: "a list"}

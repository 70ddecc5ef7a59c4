"""Results of finished steps: the evaluator's values of every run, and the files that they were made from.

    results = read_results(spec, Path("runs/paper"))
    results.runs["cadm-g-ddim25"].mean("fid")

Nothing has to be there: a run without metrics is missing from the results, a value without its step's record has
no hashes, commit or speed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluations.metrics.registry import METRICS, in_tables
from experiments.spec import Spec, short
from guided_diffusion.errors import InputError
from guided_diffusion.io.reading import read_json

ROLES = ("model", "classifier", "reference", "judge")  # of the files that a result is made from
_RUN_NAME = re.compile(r"(?P<run>.+)-seed(?P<seed>\d+)-(?P<n>\d+)")
_METRICS_KEYS = {"n_samples": (int,), "engine": (str,), "reference": (str,), "samples": (str,)}
_RECORD_KEYS = {"command": (list,), "commit": (str, type(None)), "seconds": (float, int, type(None)), "inputs": (dict,)}
_KIND_NAMES = {str: "text", int: "a whole number", float: "a number", dict: "an object", list: "a list"}


@dataclass(frozen=True)
class HashedFile:
    """A file that a step read: path as the step's record has it, sha256 in hexadecimal."""

    path: str
    sha256: str

    @property
    def name(self) -> str:
        """File name; with its folder for what training writes, whose file names are all alike."""
        path = Path(self.path)
        return f"{path.parent.name}/{path.name}" if re.fullmatch(r"(model|ema_.+_)\d+\.pt", path.name) else path.name


@dataclass(frozen=True)
class Evaluation:
    """One evaluated set of samples.

    :param seed: None for samples published by others.
    :param values: metric to value, without those that the evaluator left out.
    :param engine: the network that extracted the features; samples: path of the samples.
    :param files: by role, those that are known; images_per_second: of sampling, over all processes together.
    :param alone: whether no other step could run beside the sampling.
    """

    seed: int | None
    values: dict[str, float]
    engine: str
    samples: str
    commit: str | None = None
    files: dict[str, HashedFile] = field(default_factory=dict)
    images_per_second: float | None = None
    alone: bool = False


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
        """One value a seed. Empty unless every seed has the metric."""
        values = tuple(e.values[metric] for e in self.evaluations if metric in e.values)
        return values if len(values) == len(self.evaluations) else ()

    def mean(self, metric: str) -> float | None:
        """Mean over the seeds; None where the metric was not computed."""
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
        found = (evaluation.files[role] for evaluation in self.evaluations if role in evaluation.files)
        return tuple({file.sha256: file for file in found}.values())


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
    """Digits behind the point: two where papers print two, more of a distance that is small in other features."""
    if METRICS[metric].lower_is_better:
        return 2 if value >= 1 else 4
    return 2 if metric == "inception_score" else 3


def read_results(spec: Spec, out: Path, seeds: Collection[int] | None = None) -> Results:
    """Read the results in `out` for the runs and batches of a spec.

    :param seeds: of the samples that count; None: all.
    InputError, naming the file, for a damaged one.
    """
    found: dict[str, dict[int, dict[int, Path]]] = {}
    for path in sorted((out / "metrics").glob("*.json")):
        match = _RUN_NAME.fullmatch(path.stem)
        if match and match["run"] in spec.runs and (seeds is None or int(match["seed"]) in seeds):
            found.setdefault(match["run"], {}).setdefault(int(match["n"]), {})[int(match["seed"])] = path
    runs, batches = {}, {}
    for name in (name for name in spec.runs if name in found):
        n, paths = max(found[name].items())
        evaluations = [_evaluation(path, out, seed, n)[0] for seed, path in sorted(paths.items())]
        runs[name] = RunResult(name, n, tuple(evaluations))
    for batch in {row.batch: None for row in spec.rows("all") if row.batch}:
        path = out / "metrics" / f"batch-{Path(batch).stem}.json"
        if path.exists():
            evaluation, n = _evaluation(path, out)
            batches[batch] = RunResult(batch, n, (evaluation,))
    return Results(runs, batches)


def _evaluation(path: Path, out: Path, seed: int | None = None, n: int | None = None) -> tuple[Evaluation, int]:
    """Read the evaluator's file and the steps' records; returns also the number of samples. n: as expected."""
    values, metrics = _read_metrics(path)
    if n not in (None, metrics["n_samples"]):
        raise InputError(f"{path}: n_samples: found {metrics['n_samples']}, expected {n} as in the file's name")
    sample, evaluate = (read_record(out / "steps" / f"{step}-{path.stem}.json") for step in ("sample", "evaluate"))
    files: dict[str, HashedFile | None] = {}
    if sample:
        files = {role: _flag(sample, f"{role}_path") for role in ("model", "classifier")}
    if evaluate:
        files["reference"] = _input(evaluate, metrics["reference"])
        files["judge"] = _flag(evaluate, "features") or _flag(evaluate, "inception")
    evaluation = Evaluation(
        seed=seed,
        values=values,
        engine=metrics["engine"],
        samples=str(short(Path(metrics["samples"]))),
        # The samples' commit is what made the result; the evaluator's stands in where that is unknown.
        commit=next((step["commit"] for step in (sample, evaluate) if step and step["commit"]), None),
        files={role: file for role, file in files.items() if file},
        images_per_second=n / sample["seconds"] if n and sample and sample["seconds"] else None,
        alone=sample is not None and sample.get("jobs") == 1,
    )
    return evaluation, metrics["n_samples"]


def _read_metrics(path: Path) -> tuple[dict[str, float], dict[str, Any]]:
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
    _check_kinds(path, content, _METRICS_KEYS)
    return values, content


def read_record(path: Path) -> dict[str, Any] | None:
    """The record of a step; None if it was not finished. InputError for a damaged file."""
    if not path.exists():
        return None
    content = read_json(path)
    _check_kinds(path, content, _RECORD_KEYS)
    for file, digest in content["inputs"].items():
        if type(digest) is not str:
            raise InputError(f"{path}: inputs: {file}: found {digest!r}, expected a sha256")
    return content


def _input(record: dict[str, Any], path: str) -> HashedFile | None:
    """The input of that path, or the only one of that file name."""
    inputs = record["inputs"]
    matches = [path] if path in inputs else [name for name in inputs if Path(name).name == Path(path).name]
    return HashedFile(matches[0], inputs[matches[0]]) if len(matches) == 1 else None


def _flag(record: dict[str, Any], name: str) -> HashedFile | None:
    """The input that a flag of the command names."""
    words = list(map(str, record["command"]))
    value = dict(zip(words, words[1:], strict=False)).get(f"--{name}")
    return value and _input(record, value)


def _check_kinds(path: Path, content: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> None:
    for key, allowed in kinds.items():
        if type(content.get(key)) not in allowed:
            raise InputError(f"{path}: {key}: found {content.get(key)!r}, expected {_KIND_NAMES[allowed[0]]}")

"""A table's rows with their results: which run of a sweep counts, and which differences are more than noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from experiments.results import Results, RunResult
from experiments.spec import Book, Row, Run, Table
from experiments.verdict import compare

_LABELS = {"guidance_factor": "C", "classifier_scale": "gamma", "guidance_until": "until", "guidance_norm": "M"}


@dataclass(frozen=True)
class Outcome:
    """A row and what became of it.

    :param run: what makes the row, of a sweep the best run; None where nothing is to run.
    :param result: of the run; batch: of the published samples. None where there is none.
    :param choice: how the run of a sweep was chosen; edge: why a wider sweep might do better.
    """

    row: Row
    run: Run | None
    result: RunResult | None
    batch: RunResult | None
    choice: str = ""
    edge: str = ""


def guidance_name(run: Run) -> str:
    """The rule of a run: "entropy", "constant", ...; "" without a classifier, or with one that has no say."""
    if not run.classifier or run.flags.get("classifier_scale") == 0:
        return ""
    return "entropy" if run.flags.get("eds") else str(run.flags.get("guidance", "constant"))


def outcomes(book: Book, results: Results, table: Table) -> list[Outcome]:
    """The rows of a table, in order."""
    return [_outcome(book, results, row) for row in table.rows]


def _outcome(book: Book, results: Results, row: Row) -> Outcome:
    batch = results.batches.get(row.batch)
    if not row.sweep:
        return Outcome(row, book.runs.get(row.run), results.runs.get(row.run), batch)
    tried = _comparable(results, row.sweep)
    if not tried:
        return Outcome(row, book.runs[row.sweep[0]], None, batch, f"best of {len(row.sweep)}")
    best = min(tried, key=lambda result: result.mean("fid"))
    varied = _varied(book, row.sweep)
    label = ", ".join(f"{_LABELS.get(flag, flag)} = {_value(book, best.run, flag)}" for flag in varied)
    count = f"{len(tried)}" if len(tried) == len(row.sweep) else f"{len(tried)} of the {len(row.sweep)} asked for"
    choice = f"best of {count}: {label or best.run}"
    at_edge = [flag for flag in varied if len(tried) > 1 and _at_edge(book, best, tried, flag)]
    edge = f"its best, {label}, is at the edge of the values tried" if at_edge else ""
    return Outcome(row, book.runs[best.run], best, batch, choice, edge)


def _comparable(results: Results, names: tuple[str, ...]) -> list[RunResult]:
    """Results of the largest number of samples among them: FID falls with that number, whatever the samples."""
    found = [results.runs[name] for name in names if name in results.runs]
    largest = max((result.n for result in found), default=0)
    return [result for result in found if result.n == largest]


def _varied(book: Book, names: tuple[str, ...]) -> list[str]:
    """Flags in which the runs of a sweep differ."""
    flags = dict.fromkeys(flag for name in names for flag in book.runs[name].flags)
    return [flag for flag in flags if len({book.runs[name].flags.get(flag) for name in names}) > 1]


def _value(book: Book, name: str, flag: str) -> str:
    value = book.runs[name].flags.get(flag, "default")
    return f"{value:g}" if type(value) is float else str(value)


def _at_edge(book: Book, best: RunResult, tried: list[RunResult], flag: str) -> bool:
    values = [book.runs[result.run].flags.get(flag) for result in tried]
    if not all(type(value) in (int, float) for value in values):
        return False
    return book.runs[best.run].flags[flag] in (min(values), max(values))


def findings(book: Book, results: Results, rows: list[Outcome]) -> Iterator[str]:
    """Sentences below a table that compares sweeps: edges, and each rule against the constant one."""
    for outcome in rows:
        if outcome.edge:
            yield f"{outcome.row.method}: {outcome.edge}; a better one may lie beyond."
    if any(outcome.row.sweep for outcome in rows):
        yield from _against_constant(results, rows)


def _against_constant(results: Results, rows: list[Outcome]) -> Iterator[str]:
    done = [outcome for outcome in rows if outcome.run and outcome.result]
    constants = [outcome for outcome in done if guidance_name(outcome.run) == "constant"]
    if not constants:
        return
    names = {name for outcome in rows for name in outcome.row.run_names}
    pool = [results.runs[name] for name in sorted(names) if name in results.runs]
    uneven = set()
    for outcome in done:
        base = _base(outcome, constants)
        if base is not outcome:
            yield f"{outcome.row.method} against {base.row.method}: {_said(outcome, base, pool)}."
            if len(outcome.row.run_names) > len(base.row.run_names):
                uneven.add(base.row.method)
    for method in sorted(uneven):
        yield f"{method} had fewer values tried than what is compared with it, which favours the others."
    if any(len(run.evaluations) > 1 for run in pool):
        yield (
            "Noise is one standard deviation of the difference of two means over seeds, from the seeds' relative "
            "spread pooled over all runs of this table; up to two of them count as the same. That the best of "
            "several values was chosen by the same figures is not part of it."
        )


def _base(outcome: Outcome, constants: list[Outcome]) -> Outcome:
    """The constant rule with the same networks, else the table's first, with which other constant ones compare."""
    if outcome not in constants:
        networks = (outcome.run.model, outcome.run.classifier)
        for constant in constants:
            if (constant.run.model, constant.run.classifier) == networks:
                return constant
    return constants[0]


def _said(outcome: Outcome, base: Outcome, pool: list[RunResult]) -> str:
    ours, theirs = outcome.result, base.result
    if ours.n != theirs.n:
        return f"not compared, {ours.n:,} samples against {theirs.n:,}"
    return str(compare(ours, theirs, pool))

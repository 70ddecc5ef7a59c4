"""The step from tuning to reporting: every sweep becomes the one run that was best at the tuning seed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from experiments.commands import Commands
from experiments.comparison import outcomes
from experiments.figures.inputs import Labelled, read_trace
from experiments.results import Results
from experiments.spec import ROOT, Row, Run, Spec, Table
from guidance_methods.config import SECOND_MODELS

MATCHED = "matched"
# EDS against a constant scale of the same time-averaged guidance norm: name, sweep of each.
PAIRS = {
    "medium": ("uncond-plain-entropy", "uncond-plain-constant"),
    "strong": ("uncond-strong-entropy", "uncond-strong-constant"),
    "sharpened medium": ("uncond-sharpened-entropy", "uncond-sharpened-constant"),
}
WIDER = (2, 4, 8)  # times the largest constant scale tried: these only show where its norm is that of EDS


@dataclass(frozen=True)
class Choice:
    """The decisions of tuning.

    :param spec: with rows of one run each, where tuning is done; the others are as they were.
    :param edges: by name of a row, a sentence on why it does not count or is not there.
    """

    spec: Spec
    edges: dict[str, str]


def refine(spec: Spec, tuning: Results) -> Spec:
    """The spec with two more values for every sweep that is done, a factor of sqrt(2) either side of its best."""

    def refined(runs: list[Run], best: Run, flag: str) -> list[Run]:
        return [*runs, *(scaled(best, flag, factor) for factor in (0.5**0.5, 2**0.5))]

    return _with_sweeps(spec, tuning, refined)


def move(spec: Spec, tuning: Results, names: Collection[str]) -> Spec:
    """The spec with some tables' sweeps that are done and have their best at an edge moved by one value, times two."""

    def moved(runs: list[Run], best: Run, flag: str) -> list[Run]:
        runs = sorted(runs, key=lambda run: run.flags[flag])
        if best == runs[-1]:
            return [*runs[1:], scaled(best, flag, 2)]
        if best == runs[0]:
            return [scaled(best, flag, 0.5), *runs[:-1]]
        return runs

    found = _with_sweeps(spec, tuning, moved)
    return replace(found, tables=spec.tables | {name: found.tables[name] for name in names})


def _with_sweeps(spec: Spec, tuning: Results, change: Callable[[list[Run], Run, str], list[Run]]) -> Spec:
    """The spec with the sweeps that are done replaced: change(runs, the best by FID, the flag that varies) -> runs."""
    added = dict(spec.runs)

    def changed(row: Row) -> Row:
        if not _is_tuned(row, tuning):
            return row
        runs = [spec.runs[name] for name in row.sweep]
        (flag,) = (name for name in runs[0].flags if len({run.flags[name] for run in runs}) > 1)
        best = min(runs, key=lambda run: tuning.runs[run.name].mean("fid"))
        own = {run.name: run for run in change(runs, best, flag)}
        added.update(own)
        return replace(row, sweep=tuple(own))

    return replace(_with_rows(spec, changed), runs=added)


def _with_rows(spec: Spec, change: Callable[[Row], Row]) -> Spec:
    tables = {name: replace(table, rows=tuple(map(change, table.rows))) for name, table in spec.tables.items()}
    return replace(spec, tables=tables)


def _is_tuned(row: Row, tuning: Results) -> bool:
    return bool(row.sweep) and all(name in tuning.runs for name in row.sweep)


def with_value(run: Run, flag: str, value: float) -> Run:
    """A run of the same sweep, with another value of its flag, in three digits."""
    value, old = float(f"{value:.3g}"), run.flags[flag]
    return replace(run, name=f"{run.name.removesuffix(f'-{old:g}')}-{value:g}", flags=run.flags | {flag: value})


def scaled(run: Run, flag: str, factor: float) -> Run:
    """A run of the same sweep, with its flag's value times a factor; of two models' w, w - 1 counts."""
    base = 1 if flag in SECOND_MODELS.values() else 0
    return with_value(run, flag, base + (run.flags[flag] - base) * factor)


def choose(spec: Spec, tuning: Results) -> Choice:
    """Each sweep's best run by FID takes its row."""
    found = {o.row.name: o for table in spec.tables.values() for o in outcomes(spec, tuning, table)}
    edges = {}

    def chosen(row: Row) -> Row:
        if not _is_tuned(row, tuning):
            return row
        outcome = found[row.name]
        method = f"{row.method}, {outcome.choice.partition(': ')[2]}"
        if outcome.edge:
            edges[row.name] = f"{row.name.partition('/')[0]}, {method}: at the edge of the values tried."
        return replace(row, run=outcome.run.name, sweep=(), method=method)

    return Choice(_with_rows(spec, chosen), edges)


@dataclass(frozen=True)
class Match:
    """A pair of ``PAIRS``: the tuned run of EDS, its norm, and the norms of constant runs."""

    pair: str
    entropy: str
    target: float
    norms: dict[str, float]
    scales: dict[str, float]  # of every constant run of the spec, made or not

    @property
    def scale(self) -> float | None:
        return matched_scale({self.scales[run]: norm for run, norm in self.norms.items()}, self.target)

    @property
    def next_run(self) -> str | None:
        """The smallest constant scale not made yet, while all that are made guide less than EDS."""
        if not self.norms or max(self.norms.values()) >= self.target:
            return None
        largest = max(self.scales[run] for run in self.norms)
        return min((run for run in self.scales if self.scales[run] > largest), key=self.scales.get, default=None)


def with_wider_scales(spec: Spec) -> Spec:
    """The spec with larger constant scales, in no row and so never chosen, for ``Match.next_run``."""
    runs = dict(spec.runs)
    for _, sweep in PAIRS.values():
        if scales := _scales(spec, sweep):
            largest = runs[max(scales, key=scales.get)]
            for factor in WIDER:
                run = with_value(largest, "classifier_scale", largest.flags["classifier_scale"] * factor)
                runs[run.name] = run
    return replace(spec, runs=runs)


def matches(choice: Choice, commands: Commands, tuning: Results) -> Iterator[Match]:
    """Every pair of which EDS has been tuned and some constant scales are made.

    :param commands: of the tuning runs, whose traces are read.
    """
    for pair, (entropy, constant) in PAIRS.items():
        guided, scales = _scales(commands.spec, entropy), _scales(commands.spec, constant)
        chosen = next((row.run for row in choice.spec.rows("all") if row.run in guided), None)
        norms = {run: _tuning_norm(commands, run) for run in scales if run in tuning.runs}
        if chosen and norms:
            yield Match(pair, chosen, _tuning_norm(commands, chosen), norms, scales)


def with_matched_rows(choice: Choice, found: Iterable[Match]) -> Choice:
    """The spec with a table of EDS against constant scales of the same guidance norm, as far as tuning is done."""
    spec, runs, rows, edges = choice.spec, dict(choice.spec.runs), [], dict(choice.edges)
    for match in found:
        if match.scale is None:
            norms, gammas = match.norms.values(), [match.scales[run] for run in match.norms]
            edges[f"{MATCHED}/{match.pair}"] = (
                f"{MATCHED}, {match.pair}: EDS has the guidance norm {match.target:.2f}, constant scales of "
                f"{min(gammas):g} to {max(gammas):g} have {min(norms):.2f} to {max(norms):.2f}: none has the same."
            )
            continue
        entropy, constant = spec.runs[match.entropy], spec.runs[next(iter(match.norms))]
        constant = with_value(constant, "classifier_scale", match.scale)
        runs[constant.name] = constant
        for key, title, run in (("constant", "constant", constant), ("entropy", "EDS", entropy)):
            method = f"{match.pair}: {title}, gamma = {run.flags['classifier_scale']:g}"
            rows.append(Row(f"{MATCHED}/{match.pair}-{key}", method, run=run.name))
    tables = dict(spec.tables)
    if rows:
        title = "Is EDS more than a larger scale? The same time-averaged guidance norm, UADM, DDIM"
        tables[MATCHED] = Table(MATCHED, title, tuple(rows))
    return Choice(replace(spec, runs=runs, tables=tables), edges)


def matched_scale(norms: Mapping[float, float], target: float) -> float | None:
    """The smallest gamma at which the norm is the target, between the gammas of which it is known.

    Straight lines between logarithms; None where the target is outside of all norms.
    """
    points = sorted(norms.items())
    for (low, below), (high, above) in zip(points, points[1:], strict=False):
        if min(below, above) <= target <= max(below, above):
            share = math.log(target / below) / math.log(above / below) if above != below else 0.0
            return low * (high / low) ** share
    return None


def guidance_norm(trace: Path) -> float:
    """Mean of |scale * gradient| over the steps and samples of a trace."""
    series = read_trace(Labelled(trace.parent.name, trace)).series
    return float(np.mean(series["scale"] * series["grad_norm"]))


def _tuning_norm(commands: Commands, run: str) -> float:
    return guidance_norm(ROOT / commands.trace_file(commands.spec.runs[run], commands.seeds[0]))


def _scales(spec: Spec, sweep: str) -> dict[str, float]:
    """Gamma of every run of a sweep; that of another sampler, whose name is longer, is another sweep."""
    names = (run for run in spec.runs if re.fullmatch(rf"{re.escape(sweep)}-[\d.e+-]+", run))
    return {run: spec.runs[run].flags["classifier_scale"] for run in names}

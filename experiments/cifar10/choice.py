"""From tuning to reporting: every sweep becomes the one run that was best at the tuning seed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from experiments.commands import Commands
from experiments.comparison import outcomes
from experiments.figures.inputs import Labelled, read_trace
from experiments.results import Results
from experiments.spec import ROOT, Book, Figures, Row, Run, Table

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
    """What tuning decided.

    :param book: with rows of one run each, where tuning is done; the others are as they were.
    :param edges: by name of a row, a sentence on why it does not count or is not there.
    """

    book: Book
    edges: dict[str, str]


def refine(book: Book, tuning: Results) -> Book:
    """The book with two more values for every sweep that is done, a factor of sqrt(2) either side of its best."""

    def refined(sweep: tuple[str, ...], best: Run, flag: str) -> list[Run]:
        around = (best.flags[flag] / math.sqrt(2), best.flags[flag] * math.sqrt(2))
        return [book.runs[name] for name in sweep] + [with_value(best, flag, value) for value in around]

    return _with_sweeps(book, tuning, refined)


def move(book: Book, tuning: Results) -> Book:
    """The book with every sweep that is done and has its best at an edge moved by one value, a factor of two."""

    def moved(sweep: tuple[str, ...], best: Run, flag: str) -> list[Run]:
        runs = sorted((book.runs[name] for name in sweep), key=lambda run: run.flags[flag])
        if best == runs[-1]:
            return [*runs[1:], with_value(best, flag, best.flags[flag] * 2)]
        if best == runs[0]:
            return [with_value(best, flag, best.flags[flag] / 2), *runs[:-1]]
        return runs

    return _with_sweeps(book, tuning, moved)


def _with_sweeps(book: Book, tuning: Results, change: Callable[[tuple[str, ...], Run, str], list[Run]]) -> Book:
    """The book with the sweeps that are done replaced: change(sweep, its best run by FID, its flag) -> runs."""
    runs, tables = dict(book.runs), {}
    for table in book.tables.values():
        rows = []
        for row in table.rows:
            if row.sweep and all(name in tuning.runs for name in row.sweep):
                best = book.runs[min(row.sweep, key=lambda name: tuning.runs[name].mean("fid"))]
                flag = swept_flag([book.runs[name] for name in row.sweep])
                changed = {run.name: run for run in change(row.sweep, best, flag)}
                runs |= changed
                row = replace(row, sweep=tuple(changed))
            rows.append(row)
        tables[table.name] = replace(table, rows=tuple(rows))
    return replace(book, runs=runs, tables=tables)


def swept_flag(runs: Sequence[Run]) -> str:
    """The one flag in which the runs of a sweep differ."""
    (flag,) = (name for name in runs[0].flags if len({run.flags[name] for run in runs}) > 1)
    return flag


def with_value(run: Run, flag: str, value: float) -> Run:
    """Of the same sweep, with another value of its flag."""
    value, old = float(f"{value:.3g}"), run.flags[flag]
    return replace(run, name=f"{run.name.removesuffix(f'-{old:g}')}-{value:g}", flags=run.flags | {flag: value})


def choose(book: Book, tuning: Results) -> Choice:
    """Each sweep's best run by FID takes its row."""
    tables, edges = {}, {}
    for table in book.tables.values():
        rows = []
        for outcome in outcomes(book, tuning, table):
            row = outcome.row
            if row.sweep and all(name in tuning.runs for name in row.sweep):
                value = outcome.choice.partition(": ")[2]
                row = replace(row, run=outcome.run.name, sweep=(), method=f"{row.method}, {value}")
                if outcome.edge:
                    edges[row.name] = f"{table.name}, {row.method}: at the edge of the values tried."
            rows.append(row)
        tables[table.name] = replace(table, rows=tuple(rows))
    return Choice(replace(book, tables=tables), edges)


@dataclass(frozen=True)
class Match:
    """What is known of a pair of ``PAIRS``: the tuned run of EDS, its norm, and the norms of constant runs."""

    pair: str
    entropy: str
    target: float
    norms: dict[str, float]
    scales: dict[str, float]  # of every constant run of the book, made or not

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


def with_wider_scales(book: Book) -> Book:
    """The book with larger constant scales, in no row and so never chosen, for ``Match.next_run``."""
    runs = dict(book.runs)
    for _, sweep in PAIRS.values():
        if scales := _scales(book, sweep):
            largest = runs[max(scales, key=scales.get)]
            for factor in WIDER:
                gamma = largest.flags["classifier_scale"] * factor
                flags = largest.flags | {"classifier_scale": gamma}
                runs[f"{sweep}-{gamma:g}"] = replace(largest, name=f"{sweep}-{gamma:g}", flags=flags)
    return replace(book, runs=runs)


def matches(choice: Choice, commands: Commands, tuning: Results) -> Iterator[Match]:
    """Every pair of which EDS has been tuned and some constant scales are made.

    :param commands: of the tuning runs, whose traces are read.
    """
    for pair, (entropy, constant) in PAIRS.items():
        guided, scales = _scales(commands.book, entropy), _scales(commands.book, constant)
        rows = (row for table in choice.book.tables.values() for row in table.rows)
        chosen = next((row.run for row in rows if row.run in guided), None)
        norms = {run: _tuning_norm(commands, run) for run in scales if run in tuning.runs}
        if chosen and norms:
            yield Match(pair, chosen, _tuning_norm(commands, chosen), norms, scales)


def with_matched_rows(choice: Choice, commands: Commands, tuning: Results) -> Choice:
    """The book with a table of EDS against constant scales of the same guidance norm, as far as tuning is done."""
    book, runs, rows, edges = choice.book, dict(choice.book.runs), [], dict(choice.edges)
    for match in matches(choice, commands, tuning):
        norms, scale = match.norms, match.scale
        gammas = [match.scales[run] for run in norms]
        if scale is None:
            edges[f"{MATCHED}/{match.pair}"] = (
                f"{MATCHED}, {match.pair}: EDS has the guidance norm {match.target:.2f}, constant scales of "
                f"{min(gammas):g} to {max(gammas):g} have {min(norms.values()):.2f} to {max(norms.values()):.2f}: "
                "none has the same."
            )
            continue
        scale = float(f"{scale:.3g}")
        run = book.runs[next(iter(norms))]
        run = replace(run, name=f"{PAIRS[match.pair][1]}-{scale:g}", flags=run.flags | {"classifier_scale": scale})
        runs[run.name] = run
        gamma = book.runs[match.entropy].flags["classifier_scale"]
        for key, text, made_by in (
            ("constant", f"constant, gamma = {scale:g}", run.name),
            ("entropy", f"EDS, gamma = {gamma:g}", match.entropy),
        ):
            rows.append(Row(f"{MATCHED}/{match.pair}-{key}", f"{match.pair}: {text}", Figures(), Figures(), made_by))
    if not rows:
        return replace(choice, edges=edges)
    title = "Is EDS more than a larger scale? The same time-averaged guidance norm, UADM, DDIM"
    table = Table(MATCHED, title, tuple(rows))
    return Choice(replace(book, runs=runs, tables=book.tables | {MATCHED: table}), edges)


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
    return guidance_norm(ROOT / commands.trace(commands.book.runs[run], commands.seeds[0]))


def _scales(book: Book, sweep: str) -> dict[str, float]:
    """Gamma of every run of a sweep; that of another sampler, whose name goes on, is another sweep."""
    names = (run for run in book.runs if re.fullmatch(rf"{re.escape(sweep)}-[\d.e+-]+", run))
    return {run: book.runs[run].flags["classifier_scale"] for run in names}

"""A table's rows with their results: which run of a sweep counts, and which differences are more than noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from experiments.results import Results, RunResult
from experiments.spec import Row, Run, Spec, Table
from experiments.toml_entry import FlagValue
from experiments.verdict import compare

_LABELS = {
    "guidance_factor": "C", "classifier_scale": "gamma", "guidance_until": "until", "guidance_norm": "M",
    "cfg_scale": "w", "autoguidance_scale": "w",
}  # fmt: skip
# C, by the steps T of the process, of the rules that have one: timestep's has C (T - t) of mean 1 over t, so that gamma
# means about the same for all rules.
UNIT_FACTORS = {"range": lambda steps: 2.0, "gradnorm": lambda steps: 2.0, "timestep": lambda steps: 2.0 / steps}
_PAIRS = {"uncond_model_path": "cfg", "weak_model_path": "autoguidance"}


@dataclass(frozen=True)
class Outcome:
    """A row and its results.

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
    """The guidance of a run: its rule ("entropy", "constant", ...) and, with " + " before each, what acts on it.

    "cfg" or "autoguidance" for a second diffusion model; "" without guidance, or with a classifier that has no say.
    """
    flags, parts = run.flags, []
    if run.classifier and flags.get("classifier_scale") != 0:
        rule, place = flags.get("guidance", "constant"), flags.get("guidance_at", "noisy")
        if flags.get("eds"):
            parts.append("entropy")
        if rule != "constant" and rule not in parts or not parts:
            parts.append(str(rule))
        if place != "noisy":
            parts.append(f"at {place}")
        if flags.get("stabilizer"):
            parts.append(str(flags["stabilizer"]))
        if flags.get("guidance_every", 1) > 1:
            parts.append(f"every {flags['guidance_every']}")
    parts += [_PAIRS[flag] for flag in _PAIRS if flag in run.others]
    return " + ".join(parts)


def outcomes(spec: Spec, results: Results, table: Table) -> list[Outcome]:
    """The rows of a table, in order."""
    return [_outcome(spec, results, row) for row in table.rows]


def _outcome(spec: Spec, results: Results, row: Row) -> Outcome:
    batch = results.batches.get(row.batch)
    if not row.sweep:
        return Outcome(row, spec.runs.get(row.run), results.runs.get(row.run), batch)
    # Of the largest number of samples: FID falls with that number, whatever the samples.
    found = [results.runs[name] for name in row.sweep if name in results.runs]
    tried = [result for result in found if result.n == max(other.n for other in found)]
    if not tried:
        return Outcome(row, spec.runs[row.sweep[0]], None, batch, f"best of {len(row.sweep)}")
    best = min(tried, key=lambda result: result.mean("fid"))
    flags = {name: spec.runs[name].flags for name in row.sweep}
    varied = [flag for flag in flags[best.run] if len({own.get(flag) for own in flags.values()}) > 1]
    label = ", ".join(f"{_LABELS.get(flag, flag)} = {_value(flags[best.run][flag])}" for flag in varied)
    count = f"{len(tried)}" if len(tried) == len(row.sweep) else f"{len(tried)} of the {len(row.sweep)} asked for"
    values = {flag: [flags[result.run].get(flag) for result in tried] for flag in varied}
    at_edge = any(
        len(tried) > 1 and all(type(value) in (int, float) for value in own)
        and flags[best.run][flag] in (min(own), max(own))
        for flag, own in values.items()
    )  # fmt: skip
    edge = f"its best, {label}, is at the edge of the values tried" if at_edge else ""
    return Outcome(row, spec.runs[best.run], best, batch, f"best of {count}: {label or best.run}", edge)


def _value(value: FlagValue) -> str:
    return f"{value:g}" if type(value) is float else str(value)


def findings(spec: Spec, results: Results, rows: list[Outcome]) -> Iterator[str]:
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
        if base is outcome:
            continue
        ours, theirs = outcome.result, base.result
        said = f"not compared, {ours.n:,} samples against {theirs.n:,}"
        yield (
            f"{outcome.row.method} against {base.row.method}: "
            f"{compare(ours, theirs, pool) if ours.n == theirs.n else said}."
        )
        if len(outcome.row.run_names) > len(base.row.run_names):
            uneven.add(base.row.method)
    for method in sorted(uneven):
        yield f"{method} had fewer values tried than what is compared with it, which favours the others."
    if any(len(run.evaluations) > 1 for run in pool):
        yield (
            "Noise is one standard deviation of the difference of two means over seeds, from the seeds' relative "
            "spread pooled over all runs of this table; up to two of them count as the same. That the best of "
            "several values was chosen by the same values is not part of it."
        )


def _base(outcome: Outcome, constants: list[Outcome]) -> Outcome:
    """The constant rule with the same networks, else the table's first, with which other constant ones compare."""
    networks = (outcome.run.model, outcome.run.classifier)
    alike = [each for each in constants if (each.run.model, each.run.classifier) == networks]
    return constants[0] if outcome in constants or not alike else alike[0]

"""`ed-dpm report`: every table with the paper's metrics, ours and the difference, and what ours were made from.

    write_report(load(), Path("runs/paper"))

writes report.md and report.html to read, report.csv (a line a value) and runs.csv (a line a run and seed).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ed_dpm_patches.config import rule_flags
from evaluations.metrics.registry import METRICS
from experiments.comparison import Outcome, findings, guidance_name, outcomes
from experiments.documents import Column, Line, Section, csv_text, render, write_text
from experiments.results import ROLES, Results, RunResult, digits, read_results
from experiments.smoke import MARK, WARNING
from experiments.spec import REPORTED, Run, Spec, Table
from guidance_methods.config import SECOND_MODELS
from guided_diffusion.errors import some_of

TABLE_COLUMNS = (
    "table", "row", "method", "metric", "paper", "release", "ours", "half_range", "difference", "n", "asked", "seeds",
    "run", "commit", *(f"{role}_sha256" for role in ROLES), "rehearsal",
)  # fmt: skip
_ORIGIN = (
    Column("samples", "number"), Column("seeds"), Column("commit", "code"), Column("model", "code"),
    Column("classifier", "code"),
)  # fmt: skip
_HASH_DIGITS = 12


def write_report(spec: Spec, out: Path) -> list[Path]:
    """Write the four files into `out` and return their paths. InputError, naming the file, for a damaged result."""
    results = read_results(spec, out)
    document = build(spec, results)
    texts = {
        "report.md": render("report.md", **document),
        "report.html": render("page.html", **document),
        "report.csv": tables_csv(spec, results),
        "runs.csv": runs_csv(spec, results),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    return [out / name for name in texts]


def build(spec: Spec, results: Results) -> dict[str, Any]:
    """The report as its templates take it: title, warning, text, sections."""
    papers = "Difference: ours less the paper's. Release: the authors' README, where it prints something else. "
    text = [
        f"{len(results.runs)} of {len(spec.runs)} runs have results. Ours: mean over the seeds, ± half the difference "
        f"between the largest and the smallest. {papers * any(row.paper for row in spec.rows('all'))}FID falls as the "
        "number of samples grows: where there are fewer than the recipe asks for, the line is marked FEWER, and its "
        "difference is not one of quality."
    ]
    if engines := dict.fromkeys(e.engine for result in results.all() for e in result.evaluations):
        text.append(f"Evaluated with: {', '.join(engines)}.")
    sections = [_section(spec, results, table) for table in spec.tables.values()]
    return {
        "title": spec.title, "warning": WARNING if spec.smoke else "", "text": [*text, *_left_out(results)],
        "sections": [*sections, *_provenance(results)],
    }  # fmt: skip


def _left_out(results: Results) -> Iterator[str]:
    """A line for each metric that some results lack."""
    everything = list(results.all())
    for metric in (metric for metric in results.metrics() if METRICS[metric].upstream):
        if lacking := [result.run for result in everything if not result.values(metric)]:
            yield (
                f"Without {METRICS[metric].column}: {len(lacking)} of {len(everything)} results ({some_of(lacking)}), "
                "as their reference or feature network cannot give it; the warnings in metrics/*.json say why."
            )


def _section(spec: Spec, results: Results, table: Table) -> Section:
    rows = outcomes(spec, results, table)
    shown = [result for outcome in rows for result in (outcome.result, outcome.batch) if result]
    metrics = [m for m in results.metrics() if METRICS[m].upstream or any(result.values(m) for result in shown)]
    groups = [(outcome.row.method, list(_lines(spec, outcome, metrics))) for outcome in rows]
    columns = (Column("method"), Column("values"), *(Column(METRICS[m].column, "number") for m in metrics), *_ORIGIN)
    return Section(table.title, columns, groups, [table.note] * bool(table.note), list(findings(spec, results, rows)))


def _sources(spec: Spec, outcome: Outcome) -> Iterator[tuple[str, Run | None, RunResult | None]]:
    """The results that a row can have, by name: those of our run, and those of samples that others publish."""
    if outcome.run:
        yield "ours", outcome.run, outcome.result
    if outcome.row.batch:
        yield spec.batch_title, None, outcome.batch


def _lines(spec: Spec, outcome: Outcome, metrics: list[str]) -> Iterator[Line]:
    """A row's values: paper, release, ours, difference, published samples, their difference."""
    row = outcome.row
    quoted = "" if outcome.run or row.batch else " (quoted)"
    blank = ("",) * len(_ORIGIN)
    for name, values in (("paper", row.paper), ("release", row.release)):
        if values:  # papers give two digits of everything
            yield Line((name + quoted, *(f"{values[m]:.2f}" if m in values else "" for m in metrics), *blank), "weak")
    for name, run, result in _sources(spec, outcome):
        name += f" ({outcome.choice})" if outcome.choice and run else ""
        if result is None:
            yield Line((f"{name}: not run", *("" for _ in metrics), *blank), "weak")
            continue
        origin, marked = _origin(spec, result)
        cells = (name, *(measured(result, m) for m in metrics), *origin)
        yield Line(cells, "strong", [1 + len(metrics) + place for place in marked])
        if row.paper:
            yield Line(("difference", *(_difference(outcome, result, m) for m in metrics), *blank))


def _origin(spec: Spec, result: RunResult) -> tuple[tuple[str, ...], list[int]]:
    """Cells below `_ORIGIN`, and the places of those to mark."""
    samples, seeds, marked = f"{result.n:,}", ", ".join(map(str, result.seeds)), []
    if run := spec.runs.get(result.run):
        if result.n < run.num_samples:
            samples = f"FEWER: {result.n:,} of {run.num_samples:,}"
            marked.append(0)
        if len(result.seeds) < len(spec.seeds):
            seeds = f"{seeds} (FEWER: {len(result.seeds)} of {len(spec.seeds)})"
            marked.append(1)
    roles = ("model", "classifier")
    hashes = [", ".join(file.sha256[:_HASH_DIGITS] for file in result.files(role)) for role in roles]
    return (samples, seeds, ", ".join(result.commits()), *hashes), marked


def _provenance(results: Results) -> Iterator[Section]:
    """Every checkpoint and reference that a result was made from, by its content."""
    files = {role: {(f.name, f.sha256) for result in results.all() for f in result.files(role)} for role in ROLES}
    if groups := [(role, [Line(file) for file in sorted(found)]) for role, found in files.items() if found]:
        columns = (Column("used as"), Column("file"), Column("sha256", "code"))
        yield Section("Provenance", columns, groups, ["Files that the results were made from."])


def measured(result: RunResult, metric: str) -> str:
    """The mean over the seeds, ± half the difference between the largest and the smallest."""
    mean, spread = result.mean(metric), result.half_range(metric)
    if mean is None:
        return ""
    places = digits(metric, mean)
    return f"{mean:.{places}f}" + ("" if spread is None else f" ± {spread:.{places}f}")


def difference(outcome: Outcome, result: RunResult, metric: str) -> float | None:
    """Mean of the result less the paper's value; None where one of them is missing."""
    paper, ours = outcome.row.paper.get(metric), result.mean(metric)
    return None if paper is None or ours is None else ours - paper


def _difference(outcome: Outcome, result: RunResult, metric: str) -> str:
    value = difference(outcome, result, metric)
    # z: what rounds to nothing has no sign of its own.
    return "" if value is None else f"{value:+z.{digits(metric, result.mean(metric))}f}"


def tables_csv(spec: Spec, results: Results) -> str:
    """A line for every value of every row."""
    return csv_text(TABLE_COLUMNS, _table_records(spec, results))


def _table_records(spec: Spec, results: Results) -> Iterator[dict]:
    """A record for every value of every row; published samples are records of their own."""
    for outcome in (outcome for table in spec.tables.values() for outcome in outcomes(spec, results, table)):
        row = outcome.row
        for name, run, result in list(_sources(spec, outcome)) or [("ours", None, None)]:
            common = {
                "table": row.name.partition("/")[0], "row": row.name, "asked": run and run.num_samples,
                "method": row.method if name == "ours" else f"{row.method} ({name})",
                "run": run.name if run and not row.sweep else None, "rehearsal": MARK * spec.smoke,
            }  # fmt: skip
            if result:
                common |= {f"{role}_sha256": " ".join(f.sha256 for f in result.files(role)) for role in ROLES} | {
                    "n": result.n, "seeds": " ".join(map(str, result.seeds)), "run": result.run,
                    "commit": " ".join(result.commits()),
                }  # fmt: skip
            for metric in results.metrics():
                values = {"metric": metric, "paper": row.paper.get(metric), "release": row.release.get(metric)}
                if result:
                    values |= {"ours": result.mean(metric), "half_range": result.half_range(metric)}
                    values["difference"] = difference(outcome, result, metric)
                if metric in REPORTED or values.get("ours") is not None:
                    yield common | values


def runs_csv(spec: Spec, results: Results) -> str:
    """A line for every run and seed."""
    pairs = [flag for flag in SECOND_MODELS.values() if any(flag in spec.runs[name].flags for name in results.runs)]
    columns = (
        "run", "seed", "n", "asked", "model", "classifier", "guidance", "classifier_scale", "guidance_factor",
        "guidance_until", "guidance_norm", *pairs, "sampler", *results.metrics(), "images_per_second", "commit",
        *(f"{role}_sha256" for role in ROLES), "samples", "rehearsal",
    )  # fmt: skip
    return csv_text(columns, _run_records(spec, results, pairs))


def _run_records(spec: Spec, results: Results, pairs: Sequence[str]) -> Iterator[dict]:
    for name, result in results.runs.items():
        run = spec.runs[name]
        rule = guidance_name(run)
        flags = [*pairs, *(rule_flags(rule.partition(" + ")[0]) if run.classifier and rule else ())]
        for e in result.evaluations:
            hashes = {f"{role}_sha256": file.sha256 for role, file in e.files.items()}
            yield {flag: run.flags.get(flag) for flag in flags} | hashes | e.values | {
                "run": name, "seed": e.seed, "n": result.n, "asked": run.num_samples, "model": run.model,
                "classifier": run.classifier, "guidance": rule, "sampler": run.sampler,
                "images_per_second": e.images_per_second, "commit": e.commit, "samples": e.samples,
                "rehearsal": MARK * spec.smoke,
            }  # fmt: skip

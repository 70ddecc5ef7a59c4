"""`ed-dpm report`: every table with the paper's figures, ours and the difference, and what ours were made from.

    write_report(load(), Path("runs/paper"), rehearsal=False)

leaves report.md and report.html to read, report.csv (a line a figure) and runs.csv (a line a run and seed).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from ed_dpm_patches.config import rule_flags
from evaluations.metrics.registry import METRICS
from experiments.comparison import Outcome, findings, guidance_name, outcomes
from experiments.describe import batch_name
from experiments.report_formats import Column, Document, Group, Line, Section, to_html, to_markdown
from experiments.results import ROLES, HashedFile, Results, RunResult, digits, read_results
from experiments.spec import Book, Figures, Table
from guided_diffusion.errors import InputError, some_of
from guided_diffusion.io.atomic import write_atomically

REHEARSAL = "REHEARSAL"
WARNING = (
    f"{REHEARSAL}: made by small stand-ins of the networks, to try the whole way through. The figures mean nothing, "
    "and neither do their differences."
)
TABLE_COLUMNS = (
    "table", "row", "method", "metric", "paper", "release", "ours", "half_range", "difference", "n", "asked", "seeds",
    "run", "commit", *(f"{role}_sha256" for role in ROLES), "rehearsal",
)  # fmt: skip
_ORIGIN = (
    Column("samples", "number"), Column("seeds"), Column("commit", "code"), Column("model", "code"),
    Column("classifier", "code"),
)  # fmt: skip
_HASH_DIGITS = 12


def write_report(book: Book, out: Path, rehearsal: bool) -> list[Path]:
    """Write the four files into `out` and return their paths.

    :param rehearsal: the results are those of stand-ins; every table then says so.
    InputError, naming the file, for a damaged result or a folder that is not there.
    """
    if not out.is_dir():
        raise InputError(f"{out}: no such folder, expected the one that `ed-dpm run` left its results in")
    results = read_results(book, out)
    document = build(book, results, rehearsal)
    texts = {
        "report.md": to_markdown(document),
        "report.html": to_html(document),
        "report.csv": tables_csv(book, results, rehearsal),
        "runs.csv": runs_csv(book, results, rehearsal),
    }
    for name, text in texts.items():
        with write_atomically(out / name) as file:
            file.write(text.encode(errors="backslashreplace"))
    return [out / name for name in texts]


def tables_csv(book: Book, results: Results, rehearsal: bool = False) -> str:
    """A line for every figure of every row."""
    return csv_text(TABLE_COLUMNS, _table_records(book, results, rehearsal))


def runs_csv(book: Book, results: Results, rehearsal: bool = False) -> str:
    """A line for every run and seed."""
    columns = (
        "run", "seed", "n", "asked", "model", "classifier", "guidance", "classifier_scale", "guidance_factor",
        "guidance_until", "guidance_norm", "sampler", *results.metrics(), "images_per_second", "commit",
        *(f"{role}_sha256" for role in ROLES), "samples", "rehearsal",
    )  # fmt: skip
    return csv_text(columns, _run_records(book, results, rehearsal))


def build(book: Book, results: Results, rehearsal: bool) -> Document:
    """The report without a format."""
    title = f"{REHEARSAL}: {book.title}" if rehearsal else book.title
    sections = [_section(book, results, table, rehearsal) for table in book.tables.values()]
    published = any(row.paper != Figures() for row in book.rows("all"))
    papers = "Difference: ours less the paper's. Release: the authors' README, where it prints something else. "
    text = [
        f"{len(results.runs)} of {len(book.runs)} runs have results. Ours: mean over the seeds, ± half the difference "
        f"between the largest and the smallest. {papers * published}FID falls as the number of samples grows: where "
        "there are fewer than the recipe asks for, the line is marked FEWER, and its difference is not one of quality."
    ]
    engines = dict.fromkeys(e.engine for result in results.all() for e in result.evaluations)
    if engines:
        text.append(f"Judged by: {', '.join(engines)}.")
    text += _left_out(results)
    return Document(title, WARNING if rehearsal else "", tuple(text), (*sections, *_provenance(results)))


def _left_out(results: Results) -> Iterator[str]:
    """A line for each metric that some results lack."""
    everything = list(results.all())
    for metric in (metric for metric in results.metrics() if METRICS[metric].upstream):
        if lacking := [result.run for result in everything if not result.values(metric)]:
            yield (
                f"Without {METRICS[metric].column}: {len(lacking)} of {len(everything)} results ({some_of(lacking)}), "
                "as their reference or feature network cannot give it; the warnings in metrics/*.json say why."
            )


def _section(book: Book, results: Results, table: Table, rehearsal: bool) -> Section:
    rows = outcomes(book, results, table)
    shown = [result for outcome in rows for result in (outcome.result, outcome.batch) if result]
    metrics = [m for m in results.metrics() if METRICS[m].upstream or any(result.values(m) for result in shown)]
    text = [table.note] if table.note else []
    if rehearsal:
        text.insert(0, WARNING)
    groups = [Group(outcome.row.method, tuple(_lines(book, outcome, metrics))) for outcome in rows]
    columns = (Column("method"), Column("figures"), *(Column(METRICS[m].column, "number") for m in metrics), *_ORIGIN)
    title = f"{REHEARSAL}: {table.title}" if rehearsal else table.title
    return Section(title, columns, tuple(groups), tuple(text), tuple(findings(book, results, rows)))


def _lines(book: Book, outcome: Outcome, metrics: list[str]) -> Iterator[Line]:
    """What a row's figures are: paper, release, ours, difference, published samples, their difference."""
    row = outcome.row
    quoted = "" if outcome.run or row.batch else " (quoted)"
    blank = ("",) * len(_ORIGIN)
    for name, figures in (("paper", row.paper), ("release", row.release)):
        if figures != Figures():
            yield Line((name + quoted, *(_plain(paper_value(figures, m)) for m in metrics), *blank), "weak")
    sources = [(outcome.run is not None, "ours", outcome.result), (bool(row.batch), batch_name(book), outcome.batch)]
    for wanted, name, result in sources:
        if not wanted:
            continue
        choice = f" ({outcome.choice})" if outcome.choice and name == "ours" else ""
        if result is None:
            yield Line((f"{name}{choice}: not run", *("" for _ in metrics), *blank), "weak")
            continue
        origin, marked = _origin(book, result)
        first = 1 + len(metrics)
        cells = (name + choice, *(measured(result, m) for m in metrics), *origin)
        yield Line(cells, "strong", tuple(first + place for place in marked))
        if row.paper != Figures():
            yield Line(("difference", *(_difference(outcome, result, m) for m in metrics), *blank))


def _origin(book: Book, result: RunResult) -> tuple[tuple[str, ...], list[int]]:
    """Cells below `_ORIGIN`, and the places of those to mark."""
    samples, seeds, marked = f"{result.n:,}", ", ".join(map(str, result.seeds)), []
    if result.run in book.runs:
        asked = book.runs[result.run].num_samples
        if result.n < asked:
            samples = f"FEWER: {result.n:,} of {asked:,}"
            marked.append(0)
        if len(result.seeds) < len(book.seeds):
            seeds = f"{seeds} (FEWER: {len(result.seeds)} of {len(book.seeds)})"
            marked.append(1)
    commits, hashes = ", ".join(result.commits()), [_short(result.files(role)) for role in ("model", "classifier")]
    return (samples, seeds, commits, *hashes), marked


def _provenance(results: Results) -> Iterator[Section]:
    """Every checkpoint and reference that a result was made from, by its content."""
    groups = []
    for role in ROLES:
        files = {(f.name, f.sha256) for result in results.all() for f in result.files(role)}
        if files:
            groups.append(Group(role, tuple(Line(file) for file in sorted(files))))
    if groups:
        columns = (Column("used as"), Column("file"), Column("sha256", "code"))
        yield Section("Provenance", columns, tuple(groups), ("Files that the results were made from.",))


def paper_value(figures: Figures, metric: str) -> float | None:
    """A figure by the evaluator's name of the metric; papers print no accuracy."""
    return vars(figures).get(metric)


def difference(outcome: Outcome, result: RunResult, metric: str) -> float | None:
    """Mean of the result less the paper's figure; None where one of them is missing."""
    paper, ours = paper_value(outcome.row.paper, metric), result.mean(metric)
    return None if paper is None or ours is None else ours - paper


def _plain(value: float | None) -> str:
    """As printed: papers give two digits of everything."""
    return "" if value is None else f"{value:.2f}"


def measured(result: RunResult, metric: str) -> str:
    """The mean over the seeds, ± half the difference between the largest and the smallest."""
    mean, spread = result.mean(metric), result.half_range(metric)
    if mean is None:
        return ""
    places = digits(metric, mean)
    return f"{mean:.{places}f}" + ("" if spread is None else f" ± {spread:.{places}f}")


def _difference(outcome: Outcome, result: RunResult, metric: str) -> str:
    value = difference(outcome, result, metric)
    # z: what rounds to nothing has no sign of its own.
    return "" if value is None else f"{value:+z.{digits(metric, result.mean(metric))}f}"


def _short(files: tuple[HashedFile, ...]) -> str:
    return ", ".join(file.sha256[:_HASH_DIGITS] for file in files)


def _table_records(book: Book, results: Results, rehearsal: bool) -> Iterator[dict]:
    """A record for every figure of every row; published samples are records of their own."""
    for table in book.tables.values():
        for outcome in outcomes(book, results, table):
            sources = [(outcome.row.method, outcome.result, outcome.run)]
            if outcome.row.batch:
                published = (f"{outcome.row.method} ({batch_name(book)})", outcome.batch, None)
                sources = [*sources, published] if outcome.run else [published]
            for method, result, run in sources:
                common = {
                    "table": table.name, "row": outcome.row.name, "method": method, "asked": run and run.num_samples,
                    "run": run.name if run and (result or not outcome.row.sweep) else None,
                    "rehearsal": _mark(rehearsal),
                }  # fmt: skip
                if result:
                    hashes = {f"{role}_sha256": " ".join(f.sha256 for f in result.files(role)) for role in ROLES}
                    common |= hashes | {
                        "n": result.n, "seeds": " ".join(map(str, result.seeds)), "run": result.run,
                        "commit": " ".join(result.commits()),
                    }  # fmt: skip
                for metric in results.metrics():
                    paper, release = (paper_value(f, metric) for f in (outcome.row.paper, outcome.row.release))
                    ours = {}
                    if result:
                        ours = {"ours": result.mean(metric), "half_range": result.half_range(metric)}
                        ours["difference"] = difference(outcome, result, metric)
                    if metric in vars(outcome.row.paper) or ours.get("ours") is not None:
                        yield common | {"metric": metric, "paper": paper, "release": release} | ours


def _run_records(book: Book, results: Results, rehearsal: bool) -> Iterator[dict]:
    for name, result in results.runs.items():
        run = book.runs[name]
        rule = guidance_name(run)
        wanted = rule_flags(rule) if rule else []
        for e in result.evaluations:
            hashes = {f"{role}_sha256": file.sha256 for role, file in e.files.items() if file}
            yield {flag: run.flags.get(flag) for flag in wanted} | hashes | e.values | {
                "run": name, "seed": e.seed, "n": result.n, "asked": run.num_samples, "model": run.model,
                "classifier": run.classifier, "guidance": rule, "sampler": run.sampler,
                "images_per_second": e.images_per_second, "commit": e.commit, "samples": e.samples,
                "rehearsal": _mark(rehearsal),
            }  # fmt: skip


def _mark(rehearsal: bool) -> str:
    return REHEARSAL if rehearsal else ""


def csv_text(columns: tuple[str, ...], records: Iterable[dict]) -> str:
    """Text of a CSV file; what a record lacks or has as None is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()

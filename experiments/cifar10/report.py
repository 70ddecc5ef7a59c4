"""The report of a protocol: tables, paired differences, the diagnosis of the classifiers, figures and raw files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from experiments.cifar10.choice import MATCHED, Choice, guidance_norm
from experiments.cifar10.conclusion import Finding, judge, sentences
from experiments.cifar10.paired_tests import comparisons, differences
from experiments.commands import Commands
from experiments.comparison import guidance_name
from experiments.figures.inputs import Labelled, read_trace
from experiments.report import build, csv_text, runs_csv, tables_csv
from experiments.report_formats import Column, Group, Line, Section, to_markdown
from experiments.results import Results, read_json
from experiments.runner import Runner
from experiments.spec import ROOT, Book, Table
from guided_diffusion.io.atomic import write_atomically

CONCLUSION = "conclusion.md"
PAIRED_COLUMNS = ("table", "row", "run", "against", "base_run", "seed", "fid_difference", "base_fid", "p")
DIAGNOSIS_COLUMNS = ("classifier", "run", "seed", "t", "entropy_ratio", "grad_norm", "relative_guidance")
INTERVAL_COLUMNS = ("run", "seed", "metric", "value", "low", "high")
NORM_COLUMNS = ("run", "fid", "norm", "relative")
COMMAND_COLUMNS = ("run", "seed", "step", "command")
_MEASURES = DIAGNOSIS_COLUMNS[4:]
_SHOWN_TIMES = 6  # of the steps, in the report's table; the CSV has all
_PICTURES = ("tuning.png", "vanishing.png", "classifiers.png", "gradient-maps.png", "compare.png")


def write_results(
    choice: Choice, tuned: Commands, tuning: Results, results: Results, commands: Commands, runner: Runner, folder: Path
) -> list[Path]:
    """Write README.md, raw CSV files and figures of what there is; nothing before a first row has results.

    :param tuned: of the book with its sweeps, to which the `tuning` results belong.
    :param results: of the reporting seeds; commands: of `choice.book` with those seeds.
    """
    if not results.runs:
        return []
    found = list(_findings(choice, commands))
    traced = dict(_traced(choice.book, results, commands))
    diagnosis = list(_diagnosis(commands, traced))
    intervals, norms = list(_interval_records(results, commands)), list(_norm_records(tuned, tuning))
    texts = {
        "report.csv": tables_csv(choice.book, results),
        "runs.csv": runs_csv(choice.book, results),
        "tuning.csv": runs_csv(tuned.book, tuning),
        "norms.csv": csv_text(NORM_COLUMNS, norms),
        "paired.csv": csv_text(PAIRED_COLUMNS, paired_records(found)),
        "diagnosis.csv": csv_text(DIAGNOSIS_COLUMNS, diagnosis),
        "intervals.csv": csv_text(INTERVAL_COLUMNS, intervals),
        "commands.csv": csv_text(
            COMMAND_COLUMNS,
            [*_command_records(results, commands, runner.line), *_command_records(tuning, tuned, runner.line)],
        ),
    }
    document = build(choice.book, results, rehearsal=False)
    done = {table.title for table in choice.book.tables.values() if _is_done(table, results)}
    sections = [section for section in document.sections if section.title in done]
    provenance = [section for section in document.sections if section.title == "Provenance"]
    sections += [paired_section(found)] if found else []
    sections += _interval_sections(intervals)
    sections += [_matched_section(choice, commands)] if MATCHED in choice.book.tables else []
    sections += [_norm_section(tuned.book, norms)]
    sections += [_diagnosis_section(diagnosis)] if diagnosis else []
    texts[CONCLUSION] = conclusion_text(found, diagnosis)
    text = ["Conclusions, of what has been run:", texts[CONCLUSION].strip()]
    text += ["The protocol, written before: [PROTOCOL.md](../PROTOCOL.md). Commands of all rows: commands.csv."]
    text += ["Mean over the seeds, ± half the difference between the largest and the smallest.", *document.text[1:]]
    text += choice.edges.values()
    missing = [name for name, table in choice.book.tables.items() if table.title not in done]
    text += [f"Not run yet: {', '.join(missing)}."] if missing else []
    # The pooled noise of the general report is not what the protocol counts; its findings would be a second opinion.
    sections = [replace(section, findings=()) for section in sections]
    texts["README.md"] = to_markdown(replace(document, text=tuple(text), sections=(*sections, *provenance)))
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [name for name in _PICTURES if (ROOT / commands.out / "figures" / name).is_file()]
    for name in pictures:
        shutil.copy(ROOT / commands.out / "figures" / name, folder / name)
    texts["README.md"] += "".join(f"\n![{name.removesuffix('.png')}]({name})\n" for name in pictures)
    for name, content in texts.items():
        with write_atomically(folder / name) as file:
            file.write(content.encode())
    return [write_index(folder.parent), *(folder / name for name in (*texts, *pictures))]


def _is_done(table: Table, results: Results) -> bool:
    """Whether all of a table's rows have been run; tables share rows, so that one or two of them say nothing."""
    return all(any(name in results.runs for name in row.run_names) for row in table.rows)


def write_index(folder: Path) -> Path:
    """The page above the protocols' reports: what each concludes, and where it is."""
    blocks = ["# Does it help? Results on photographs", "The protocol, written before: [PROTOCOL.md](PROTOCOL.md)."]
    for path in sorted(folder.glob(f"*/{CONCLUSION}")):
        name = path.parent.name
        blocks += [f"## {name}", path.read_text().strip()]
        blocks.append(f"Tables, intervals, figures and raw files: [{name}/README.md]({name}/README.md).")
    with write_atomically(folder / "README.md") as file:
        file.write("\n\n".join([*blocks, ""]).encode())
    return folder / "README.md"


def figure_words(choice: Choice, results: Results, commands: Commands, folder: Path) -> dict[str, list[str]]:
    """By file name, the arguments of `ed-dpm figure` for what there is; the folder has tuning-runs.csv."""
    rows = {row.name: row.run for table in choice.book.tables.values() for row in table.rows}
    seed, found = commands.seeds[0], {}
    found["tuning.png"] = ["sweep", str(folder / "tuning-runs.csv"), "--runs", "uncond-plain-*"]
    pair = {"constant": rows.get("rules/constant"), "EDS": rows.get("rules/entropy")}
    if all(name in results.runs for name in pair.values()):
        traces = [f"{label}={ROOT / commands.trace(choice.book.runs[run], seed)}" for label, run in pair.items()]
        samples = [f"{label}={ROOT / commands.samples(choice.book.runs[run], seed)}" for label, run in pair.items()]
        found["vanishing.png"] = ["vanishing", *traces]
        found["gradient-maps.png"] = ["gradient-maps", *traces]
        found["compare.png"] = ["compare", *samples]
    traced = dict(_traced(choice.book, results, commands))
    if len(traced) > 1:
        labels = (f"{name}={ROOT / commands.trace(choice.book.runs[run], seed)}" for name, run in traced.items())
        found["classifiers.png"] = ["vanishing", *labels]
    return found


def _findings(choice: Choice, commands: Commands) -> Iterator[Finding]:
    for table in choice.book.tables.values():
        for comparison in comparisons(choice.book, table):
            if found := differences(commands, comparison):
                yield judge(choice, comparison, found)


def conclusion_text(findings: Sequence[Finding], diagnosis: list[dict]) -> str:
    """The sentences, each a line of a list. :param diagnosis: what `_diagnosis` yields, or its CSV file's numbers."""
    return "".join(f"- {sentence}\n" for sentence in sentences(findings, _certainty(diagnosis)))


def _certainty(diagnosis: list[dict]) -> dict[str, tuple[float, float]]:
    """By classifier, for the last third of the steps: mean entropy over log K; gradient norm as a share of its peak."""
    found = {}
    for classifier in dict.fromkeys(record["classifier"] for record in diagnosis):
        own = [record for record in diagnosis if record["classifier"] == classifier]
        late = own[-(len(own) // 3) :]
        entropy, norm = (np.mean([record[name] for record in late]) for name in ("entropy_ratio", "grad_norm"))
        found[classifier] = float(entropy), float(norm / max(record["grad_norm"] for record in own))
    return found


def paired_section(findings: list[Finding]) -> Section:
    columns = tuple(map(Column, ("table", "row", "against", "FID", "p, by seed", "verdict")))
    groups: dict[str, list[Line]] = {}
    for finding in findings:
        comparison, p = finding.comparison, ", ".join(f"{value.p:.2f}" for value in finding.differences)
        cells = (comparison.row.method, comparison.base.method, finding.size, p, finding.verdict)
        groups.setdefault(comparison.table.name, []).append(Line(cells))
    text = (
        "FID against another row with the same noise, image by image: mean over the seeds, smallest and largest, in "
        "percent of that row's. An effect has one direction and p up to 0.05 at every seed.",
    )
    tables = tuple(Group(name, tuple(lines)) for name, lines in groups.items())
    return Section("Paired differences", columns, tables, text)


def paired_records(findings: list[Finding]) -> Iterator[dict]:
    for finding in findings:
        comparison = finding.comparison
        for value in finding.differences:
            yield {
                "table": comparison.table.name, "row": comparison.row.name, "run": comparison.row.run,
                "against": comparison.base.name, "base_run": comparison.base.run, "seed": value.seed,
                "fid_difference": value.difference, "base_fid": value.base_fid, "p": value.p,
            }  # fmt: skip


def _interval_records(results: Results, commands: Commands) -> Iterator[dict]:
    """By run, seed and metric, what the evaluator found by resampling the samples."""
    for name, result in results.runs.items():
        for seed in result.seeds:
            content = read_json(ROOT / commands.metrics(commands.book.runs[name], seed))
            for metric, (low, high) in (content.get("intervals") or {}).items():
                yield {"run": name, "seed": seed, "metric": metric, "value": content[metric], "low": low, "high": high}


def _interval_sections(records: list[dict]) -> Iterator[Section]:
    groups: dict[str, list[str]] = {}
    for record in records:
        if record["metric"] == "fid":
            cell = f"{record['value']:.3f} ({record['low']:.3f} to {record['high']:.3f})"
            groups.setdefault(record["run"], []).append(cell)
    if groups:
        columns = (Column("run"), Column("FID and 95 % interval, by seed"))
        text = ("Resampled from a run's samples: the luck of its noise, not that of training. All: intervals.csv.",)
        lines = (Group(run, (Line((", ".join(cells),)),)) for run, cells in groups.items())
        yield Section("Intervals", columns, tuple(lines), text)


def _matched_section(choice: Choice, commands: Commands) -> Section:
    """Whether the norms of the matched rows came out alike."""
    groups = []
    for row in choice.book.tables[MATCHED].rows:
        paths = [ROOT / commands.trace(choice.book.runs[row.run], seed) for seed in commands.seeds]
        norms = [guidance_norm(path) for path in paths if path.is_file()]
        cells = (", ".join(f"{norm:.4f}" for norm in norms) or "not run",)
        groups.append(Group(row.method, (Line(cells),)))
    columns = (Column("row"), Column("guidance norm, by seed"))
    return Section("Time-averaged guidance norms of the matched rows", columns, tuple(groups))


def _norm_records(tuned: Commands, results: Results) -> Iterator[dict]:
    """Of every tuning run: FID, |scale * gradient| and that over eps, means over steps and samples."""
    for name, result in results.runs.items():
        path = ROOT / tuned.trace(tuned.book.runs[name], tuned.seeds[0])
        if path.is_file():
            relative = read_trace(Labelled(name, path)).series["relative_guidance"].mean()
            yield {"run": name, "fid": result.mean("fid"), "norm": guidance_norm(path), "relative": float(relative)}


def _norm_section(book: Book, records: list[dict]) -> Section:
    """How far a larger scale brings a larger guidance, for the table of the rules."""
    shown = ("rules", "logits")
    rows = [row for table in book.tables.values() for row in table.rows if table.name in shown and row.sweep]
    columns = ("rule", "run", "FID", "norm", "norm over eps")
    groups = []
    for row in rows:
        own = [record for record in records if record["run"] in row.sweep]
        cells = [(r["run"], *(f"{r[name]:.4g}" for name in NORM_COLUMNS[1:])) for r in own]
        groups += [Group(row.method, tuple(map(Line, cells)))] if own else []
    text = (
        "Tuning runs: |scale * gradient|, mean over steps and samples. Where the scale doubles and the norm hardly "
        "grows, the classifier has become certain and its gradient has vanished. All: norms.csv.",
    )
    titles = (Column(columns[0]), Column(columns[1]), *(Column(title, "number") for title in columns[2:]))
    return Section("Does a larger scale guide more?", titles, tuple(groups), text)


def _traced(book: Book, results: Results, commands: Commands) -> Iterator[tuple[str, str]]:
    """By classifier, the run with its best constant scale for UADM and DDIM, where there is a trace of it."""
    seen = set()
    for row in book.rows("all"):
        run = book.runs.get(row.run or "")
        if not run or run.name not in results.runs or guidance_name(run) != "constant" or run.classifier in seen:
            continue
        if (
            run.model == "uncond"
            and run.flags.get("use_ddim")
            and (ROOT / commands.trace(run, commands.seeds[0])).is_file()
        ):
            seen.add(run.classifier)
            yield run.classifier, run.name


def _diagnosis(commands: Commands, traced: dict[str, str]) -> Iterator[dict]:
    """Medians over the samples of the first reporting seed, step by step; of the entropy the mean."""
    seed = commands.seeds[0]
    for classifier, run in traced.items():
        path = ROOT / commands.trace(commands.book.runs[run], seed)
        trace = read_trace(Labelled(classifier, path))
        for step, t in enumerate(trace.t):
            values = {name: np.median(trace.series[name][:, step]) for name in _MEASURES}
            values["entropy_ratio"] = np.mean(trace.series["entropy_ratio"][:, step])
            yield {"classifier": classifier, "run": run, "seed": seed, "t": int(t)} | values


def _diagnosis_section(records: list[dict]) -> Section:
    groups = []
    for classifier in dict.fromkeys(record["classifier"] for record in records):
        own = [record for record in records if record["classifier"] == classifier]
        shown = sorted({round(place) for place in np.linspace(0, len(own) - 1, _SHOWN_TIMES)})
        lines = [(str(own[k]["t"]), *(f"{own[k][name]:.3g}" for name in _MEASURES)) for k in shown]
        groups.append(Group(classifier, tuple(map(Line, lines))))
    titles = ("t", "entropy H / log K, mean", "gradient norm, median", "guidance over eps, median")
    columns = (Column("classifier"), *(Column(title, "number") for title in titles))
    text = ("The best constant scale of each classifier, first reporting seed. All steps: diagnosis.csv.",)
    return Section("Does the guidance vanish?", columns, tuple(groups), text)


def _command_records(results: Results, commands: Commands, line: Callable[[list[str]], str]) -> Iterator[dict]:
    for name in results.runs:
        run = commands.book.runs[name]
        for seed in commands.seeds:
            for step, command in (("sample", commands.sample(run, seed)), ("evaluate", commands.evaluate(run, seed))):
                text = line(command).replace(" \\\n    ", " ")
                yield {"run": name, "seed": seed, "step": step, "command": " ".join(text.split())}

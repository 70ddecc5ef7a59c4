"""The report of a protocol: tables, paired differences, the diagnosis of the classifiers, figures and raw files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from experiments.cifar10.conclusion import Finding, judge, sentences
from experiments.cifar10.paired_tests import comparisons, differences
from experiments.cifar10.tuning import MATCHED, Choice, guidance_norm
from experiments.commands import Commands
from experiments.comparison import guidance_name
from experiments.documents import Groups, Line, csv_text, render, write_text
from experiments.figures.inputs import Labelled, read_trace
from experiments.report import build, runs_csv, tables_csv
from experiments.results import Results
from experiments.runner import Runner
from experiments.spec import ROOT, Spec
from experiments.verdict import MANY
from guided_diffusion.io.reading import read_json

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

    :param tuned: of the spec with its sweeps, to which the `tuning` results belong.
    :param results: of the reporting seeds; commands: of `choice.spec` with those seeds.
    """
    if not results.runs:
        return []
    spec = choice.spec
    found = list(_findings(choice, commands))
    diagnosis = list(_diagnosis(commands, dict(_traced(spec, results, commands))))
    intervals, norms = list(_interval_records(results, commands)), list(_norm_records(tuned, tuning))
    run_commands = [*_command_records(results, commands, runner.line), *_command_records(tuning, tuned, runner.line)]
    texts = {
        "report.csv": tables_csv(spec, results),
        "runs.csv": runs_csv(spec, results),
        "tuning.csv": runs_csv(tuned.spec, tuning),
        "norms.csv": csv_text(NORM_COLUMNS, norms),
        "paired.csv": csv_text(PAIRED_COLUMNS, _paired_records(found)),
        "diagnosis.csv": csv_text(DIAGNOSIS_COLUMNS, diagnosis),
        "intervals.csv": csv_text(INTERVAL_COLUMNS, intervals),
        "commands.csv": csv_text(COMMAND_COLUMNS, run_commands),
        CONCLUSION: conclusion_text(found, diagnosis),
    }
    document = build(spec, results)
    # Tables share rows, so that one or two of them say nothing.
    done = [t.title for t in spec.tables.values() if all(set(row.run_names) & set(results.runs) for row in t.rows)]
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [path for name in _PICTURES if (path := ROOT / commands.out / "figures" / name).is_file()]
    pictures = [Path(shutil.copy(path, folder)) for path in drawn]
    texts["README.md"] = render(
        "cifar10.md", title=spec.title, conclusion=texts[CONCLUSION].strip(), pictures=pictures,
        text=[*document["text"][1:], *choice.edges.values()],
        missing=[name for name, table in spec.tables.items() if table.title not in done],
        # The pooled noise of the general report is not what the protocol counts: without its findings.
        tables=[section._replace(findings=()) for section in document["sections"] if section.title in done],
        provenance=[section for section in document["sections"] if section.title == "Provenance"],
        paired=_paired_groups(found), intervals=_interval_groups(intervals), matched=_matched_groups(choice, commands),
        norms=_norm_groups(tuned.spec, norms), diagnosis=_diagnosis_groups(diagnosis),
        many_seeds=len(commands.seeds) >= MANY,
    )  # fmt: skip
    for name, content in texts.items():
        write_text(folder / name, content)
    return [write_index(folder.parent), *(folder / name for name in texts), *pictures]


def write_index(folder: Path) -> Path:
    """Write the page above the protocols' reports: what each concludes, and where it is."""
    reports = [(path.parent.name, path.read_text().strip()) for path in sorted(folder.glob(f"*/{CONCLUSION}"))]
    write_text(folder / "README.md", render("index.md", reports=reports))
    return folder / "README.md"


def figure_words(choice: Choice, results: Results, commands: Commands, folder: Path) -> dict[str, list[str]]:
    """The arguments of `ed-dpm figure` by file name, for what there is; the folder has tuning-runs.csv."""
    rows = {row.name: row.run for row in choice.spec.rows("all")}

    def labelled(path: Callable[..., Path], runs: dict[str, str]) -> list[str]:
        return [f"{label}={ROOT / path(choice.spec.runs[run], commands.seeds[0])}" for label, run in runs.items()]

    found = {"tuning.png": ["sweep", str(folder / "tuning-runs.csv"), "--runs", "uncond-plain-*"]}
    pair = {"constant": rows.get("rules/constant"), "EDS": rows.get("rules/entropy")}
    if all(name in results.runs for name in pair.values()):
        found["vanishing.png"] = ["vanishing", *labelled(commands.trace_file, pair)]
        found["gradient-maps.png"] = ["gradient-maps", *labelled(commands.trace_file, pair)]
        found["compare.png"] = ["compare", *labelled(commands.samples, pair)]
    traced = dict(_traced(choice.spec, results, commands))
    if len(traced) > 1:
        found["classifiers.png"] = ["vanishing", *labelled(commands.trace_file, traced)]
    return found


def _findings(choice: Choice, commands: Commands) -> Iterator[Finding]:
    for table in choice.spec.tables.values():
        for comparison in comparisons(choice.spec, table):
            if found := differences(commands, comparison):
                yield judge(choice, comparison, found)


def conclusion_text(findings: Sequence[Finding], diagnosis: list[dict]) -> str:
    """The sentences, each a line of a list. :param diagnosis: what `_diagnosis` yields, or its CSV file's numbers."""
    certainty = {}
    for classifier, records in groupby(diagnosis, key=lambda record: record["classifier"]):
        own = list(records)
        late = own[-(len(own) // 3) :]
        entropy, norm = (np.mean([record[name] for record in late]) for name in ("entropy_ratio", "grad_norm"))
        certainty[classifier] = float(entropy), float(norm / max(record["grad_norm"] for record in own))
    return "".join(f"- {sentence}\n" for sentence in sentences(findings, certainty))


def _paired_groups(findings: list[Finding]) -> Groups:
    groups: dict[str, list[Line]] = {}
    for finding in findings:
        comparison, p = finding.comparison, ", ".join(f"{value.p:.2f}" for value in finding.differences)
        cells = (comparison.row.method, comparison.base.method, finding.size, p, finding.verdict)
        groups.setdefault(comparison.table.name, []).append(Line(cells))
    return list(groups.items())


def _paired_records(findings: list[Finding]) -> Iterator[dict]:
    for finding in findings:
        comparison = finding.comparison
        for value in finding.differences:
            yield {
                "table": comparison.table.name, "row": comparison.row.name, "run": comparison.row.run,
                "against": comparison.base.name, "base_run": comparison.base.run, "seed": value.seed,
                "fid_difference": value.difference, "base_fid": value.base, "p": value.p,
            }  # fmt: skip


def _interval_records(results: Results, commands: Commands) -> Iterator[dict]:
    """The evaluator's intervals, by run, seed and metric."""
    for name, result in results.runs.items():
        for seed in result.seeds:
            content = read_json(ROOT / commands.evaluate(commands.spec.runs[name], seed).outputs[0])
            for metric, (low, high) in (content.get("intervals") or {}).items():
                yield {"run": name, "seed": seed, "metric": metric, "value": content[metric], "low": low, "high": high}


def _interval_groups(records: list[dict]) -> Groups:
    groups = []
    for run, own in groupby((r for r in records if r["metric"] == "fid"), key=lambda record: record["run"]):
        cells = (f"{record['value']:.3f} ({record['low']:.3f} to {record['high']:.3f})" for record in own)
        groups.append((run, [Line([", ".join(cells)])]))
    return groups


def _matched_groups(choice: Choice, commands: Commands) -> Groups:
    """The norms of the matched rows, which should be alike."""
    groups = []
    for row in choice.spec.tables[MATCHED].rows if MATCHED in choice.spec.tables else ():
        paths = [ROOT / commands.trace_file(choice.spec.runs[row.run], seed) for seed in commands.seeds]
        norms = [f"{guidance_norm(path):.4f}" for path in paths if path.is_file()]
        groups.append((row.method, [Line([", ".join(norms) or "not run"])]))
    return groups


def _norm_records(tuned: Commands, results: Results) -> Iterator[dict]:
    """Records of the tuning runs: FID, |scale * gradient| and that over eps, means over steps and samples."""
    for name, result in results.runs.items():
        path = ROOT / tuned.trace_file(tuned.spec.runs[name], tuned.seeds[0])
        if path.is_file():
            relative = read_trace(Labelled(name, path)).series["relative_guidance"].mean()
            yield {"run": name, "fid": result.mean("fid"), "norm": guidance_norm(path), "relative": float(relative)}


def _norm_groups(spec: Spec, records: list[dict]) -> Groups:
    """The guidance norm over the scale, for the table of the rules."""
    groups = []
    for row in (row for name in ("rules", "logits") if name in spec.tables for row in spec.tables[name].rows):
        own = [record for record in records if record["run"] in row.sweep]
        lines = [Line((record["run"], *(f"{record[name]:.4g}" for name in NORM_COLUMNS[1:]))) for record in own]
        groups += [(row.method, lines)] if own else []
    return groups


def _traced(spec: Spec, results: Results, commands: Commands) -> Iterator[tuple[str, str]]:
    """Pairs of a classifier and its run with the best constant scale at all t, UADM, DDIM, where there is a trace."""
    seen = set()
    for run in (spec.runs[row.run] for row in spec.rows("all") if row.run in results.runs):
        wanted = guidance_name(run) == "constant" and run.model == "uncond" and run.flags.get("use_ddim")
        wanted = wanted and not run.flags.get("guidance_interval")  # its gradient is 0 outside
        if wanted and run.classifier not in seen and (ROOT / commands.trace_file(run, commands.seeds[0])).is_file():
            seen.add(run.classifier)
            yield run.classifier, run.name


def _diagnosis(commands: Commands, traced: dict[str, str]) -> Iterator[dict]:
    """Medians over the samples of the first reporting seed, step by step; of the entropy the mean."""
    seed = commands.seeds[0]
    for classifier, run in traced.items():
        trace = read_trace(Labelled(classifier, ROOT / commands.trace_file(commands.spec.runs[run], seed)))
        for step, t in enumerate(trace.t):
            values = {name: np.median(trace.series[name][:, step]) for name in _MEASURES}
            values["entropy_ratio"] = np.mean(trace.series["entropy_ratio"][:, step])
            yield {"classifier": classifier, "run": run, "seed": seed, "t": int(t)} | values


def _diagnosis_groups(records: list[dict]) -> Groups:
    groups = []
    for classifier, own in groupby(records, key=lambda record: record["classifier"]):
        own = list(own)
        shown = sorted({round(place) for place in np.linspace(0, len(own) - 1, _SHOWN_TIMES)})
        lines = [Line((str(own[k]["t"]), *(f"{own[k][name]:.3g}" for name in _MEASURES))) for k in shown]
        groups.append((classifier, lines))
    return groups


def _command_records(results: Results, commands: Commands, line: Callable[[Sequence[str]], str]) -> Iterator[dict]:
    for run in (commands.spec.runs[name] for name in results.runs):
        for seed in commands.seeds:
            for name, step in (("sample", commands.sample(run, seed)), ("evaluate", commands.evaluate(run, seed))):
                text = line(step.command).replace(" \\\n    ", " ")
                yield {"run": run.name, "seed": seed, "step": name, "command": " ".join(text.split())}

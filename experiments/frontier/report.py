"""The study's report: a figure, the cheapest settings that are no worse than the references, a CSV of all settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments import paired
from experiments.commands import Commands, shell
from experiments.documents import Line, csv_text, markdown_table, render, write_text
from experiments.figures.style import line, log_axis, new_figure, plain
from experiments.frontier.known import TABLE
from experiments.frontier.settings import Setting, references, with_work
from experiments.report import runs_csv
from experiments.results import Results, RunResult
from experiments.spec import Run
from experiments.verdict import t_interval

MARGIN = 2.0  # percent of a reference's mean FID
GOAL = 1 / 3  # of the work of DDIM 25
COLUMNS = (
    "setting", "eds", "sampler", "cache_every", "guidance_every", "gflops", "work", "tuning_fid", "seeds", "n", "fid",
    "half_range", "ddim25_percent", "ddim25_low", "ddim25_high", "ddim250_percent", "ddim250_low", "ddim250_high",
    "time", "flags",
)  # fmt: skip
PAIRED_COLUMNS = ("run", "against", "seed", "fid_difference", "base_fid", "p")
_PREFIXES = ("ddim25", "ddim250")  # of the references' columns, in the order of the recipes' table
# Flags that make no setting.
_INDIFFERENT = ("num_samples", "batch_size", "balanced")
_RULES = {False: "without EDS", True: "with EDS"}

Record = dict[str, Any]


def write_results(settings: Sequence[Setting], commands: Commands, results: Results, folder: Path) -> list[Path]:
    """Write README.md, the figure and CSV files; nothing before the first reference has results.

    :param settings: all that have a FID at the tuning seed; results: of the reporting seeds, those of the commands.
    """
    bases = references(commands.spec)
    if bases[0].name not in results.runs:
        return []
    known = {setting.name for setting in settings}
    settings = [*settings, *with_work(commands.spec, [run for run in bases if run.name not in known])]
    records = [_record(setting, commands, results) for setting in sorted(settings, key=lambda one: one.work)]
    reported = [record for record in records if record["fid"] is not None]
    folder.mkdir(parents=True, exist_ok=True)
    draw(reported, {row.method: row.run for row in commands.spec.tables["references"].rows}, folder / "frontier.png")
    titles = [row.method for row in commands.spec.tables["references"].rows]
    texts = {
        TABLE: csv_text(COLUMNS, records),
        "runs.csv": runs_csv(commands.spec, results),
        "paired.csv": csv_text(PAIRED_COLUMNS, _tests(reported, commands)),
        "README.md": render(
            "frontier.md", title=commands.spec.title, findings=list(findings(reported, titles)), margin=f"{MARGIN:g}",
            table=markdown_table(*answers(reported, titles)), settings=markdown_table(*_lines(reported, titles)),
            screened=len(known), reported=len(reported), seeds=commands.seeds,
            timed=all(record["time"] for record in reported),
        ),
    }  # fmt: skip
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in (*texts, "frontier.png")]


def _record(setting: Setting, commands: Commands, results: Results) -> Record:
    """A line of the CSV file; None for what is not known."""
    flags, result = setting.run.flags, results.runs.get(setting.name)
    record = dict.fromkeys(COLUMNS) | {
        "setting": setting.name, "eds": setting.eds, "sampler": setting.run.sampler,
        "cache_every": flags.get("cache_every", 1), "guidance_every": flags.get("guidance_every", 1),
        "gflops": setting.flops / 1e9, "work": setting.work, "tuning_fid": setting.fid,
        "flags": " ".join(shell(_words(setting.run), width=10_000).split()),
    }  # fmt: skip
    if result is None or set(result.seeds) != set(commands.seeds):
        return record
    unit = results.runs[references(commands.spec)[0].name]
    record |= {
        "seeds": " ".join(map(str, result.seeds)), "n": result.n, "fid": result.mean("fid"),
        "half_range": result.half_range("fid"), "time": _time(result, unit),
    }  # fmt: skip
    for prefix, base in zip(_PREFIXES, references(commands.spec), strict=True):
        if percents := _percents(commands, setting.run, base):
            low, high = t_interval(percents)
            values = {"percent": sum(percents) / len(percents), "low": low, "high": high}
            record |= {f"{prefix}_{name}": value for name, value in values.items()}
    return record


def _words(run: Run) -> list[str]:
    flags = {name: value for name, value in run.flags.items() if name not in _INDIFFERENT}
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def _percents(commands: Commands, run: Run, base: Run) -> list[float]:
    """FID less the base's at every seed, in percent of the base's mean; [] before all are tested."""
    if run.name == base.name:
        return [0.0] * len(commands.seeds)
    found = paired.differences(commands, run, base)
    return paired.percents(found) if found else []


def _time(result: RunResult, unit: RunResult) -> float | None:
    """Seconds an image over the unit's, start of the program included; None unless all were sampled alone."""
    if not all(e.alone and e.images_per_second for one in (result, unit) for e in one.evaluations):
        return None
    own, base = (sum(1 / e.images_per_second for e in one.evaluations) / len(one.evaluations) for one in (result, unit))
    return own / base


def _tests(reported: Sequence[Record], commands: Commands) -> Iterator[Record]:
    runs = commands.spec.runs
    for record in reported:
        for base in references(commands.spec):
            if base.name != record["setting"]:
                for test in paired.differences(commands, runs[record["setting"]], base):
                    yield {
                        "run": record["setting"], "against": base.name, "seed": test.seed,
                        "fid_difference": test.difference, "base_fid": test.base, "p": test.p,
                    }  # fmt: skip


def cheapest(reported: Sequence[Record], prefix: str, eds: bool) -> Record | None:
    """The setting with the least work whose FID is not worse than a reference's by more than the margin, or None."""
    fits = [
        record for record in reported
        if record["eds"] == eds and record[f"{prefix}_high"] is not None and record[f"{prefix}_high"] <= MARGIN
    ]  # fmt: skip
    return min(fits, key=lambda record: record["work"], default=None)


def answers(reported: Sequence[Record], titles: Sequence[str]) -> tuple[list, list[str]]:
    """The table: for each reference, with and without EDS, the cheapest setting."""
    groups = []
    for prefix, title in zip(_PREFIXES, titles, strict=True):
        found = {rule: cheapest(reported, prefix, eds) for eds, rule in _RULES.items()}
        groups.append((title, [Line([rule, *(_cells(record, prefix) if record else ["none", "", "", "", ""])])
                               for rule, record in found.items()]))  # fmt: skip
    return groups, ["not worse than", "rule", "cheapest setting", ">work", ">times less work", ">time", ">FID, %"]


def _cells(record: Record, prefix: str) -> list[str]:
    time = f"{record['time']:.2f}" if record["time"] else ""
    return [record["setting"], f"{record['work']:.3f}", f"{1 / record['work']:.1f}", time, _change(record, prefix)]


def _change(record: Record, prefix: str) -> str:
    if record[f"{prefix}_percent"] is None:
        return ""
    return f"{record[f'{prefix}_percent']:+.1f} ({record[f'{prefix}_low']:+.1f} to {record[f'{prefix}_high']:+.1f})"


def _lines(reported: Sequence[Record], titles: Sequence[str]) -> tuple[list, list[str]]:
    """The table of all reported settings, by work."""
    groups = []
    for record in reported:
        setting, work, _, time, _ = _cells(record, _PREFIXES[0])
        spread = f" ± {record['half_range']:.4f}" if record["half_range"] is not None else ""
        changes = [_change(record, prefix) for prefix in _PREFIXES]
        groups.append((setting, [Line([work, time, f"{record['fid']:.4f}{spread}", *changes])]))
    return groups, ["setting", ">work", ">time", ">FID", *(f">change from {title}, %" for title in titles)]


def findings(reported: Sequence[Record], titles: Sequence[str]) -> Iterator[str]:
    """Sentences: whether the goal is reached, and if not what came nearest."""
    best = [record for eds in _RULES if (record := cheapest(reported, _PREFIXES[0], eds))]
    least = min(best, key=lambda record: record["work"], default=None)
    if least and least["work"] <= GOAL:
        yield f"Goal reached: {least['setting']} is not worse than {titles[0]} at {least['work']:.3f} of its work."
        return
    found = f"the cheapest that is not worse than {titles[0]} needs {least['work']:.3f}" if least else "none is so good"
    yield f"Goal missed, at most a third of the work of {titles[0]}: {found}."
    within = [record for record in reported if record["work"] <= GOAL and record["ddim25_high"] is not None]
    if within:
        near = min(within, key=lambda record: record["ddim25_high"])
        cause = "its FID is higher" if near["ddim25_low"] > 0 else "the seeds do not show that it is as good"
        yield f"Nearest with a third of the work: {near['setting']}, FID {_change(near, 'ddim25')} %: {cause}."
    else:
        yield "No Pareto-optimal setting has at most a third of the work."


def draw(reported: Sequence[Record], bases: dict[str, str], path: Path) -> None:
    """Draw FID over work with and without EDS, bars half the range of the seeds, and the references as lines."""
    by_name = {record["setting"]: record for record in reported}
    with new_figure(path, 5.6, 3.6) as figure:
        axes = figure.add_subplot()
        for eds, rule in _RULES.items():
            own = [record for record in reported if record["eds"] == eds and record["setting"] not in bases.values()]
            if own:
                x, y = [record["work"] for record in own], [record["fid"] for record in own]
                spread = [record["half_range"] or 0.0 for record in own]
                axes.errorbar(x, y, yerr=spread, capsize=2, label=rule, **line(int(eds)))
        for index, (title, name) in enumerate(bases.items(), 2):
            if name in by_name:
                look = line(index)
                axes.axhline(by_name[name]["fid"], color=look["color"], linestyle=look["linestyle"], linewidth=0.9)
                axes.plot(by_name[name]["work"], by_name[name]["fid"], label=plain(title), **look)
        axes.set(xlabel="FLOPs an image / those of DDIM 25", ylabel="FID")
        log_axis(axes, "x")
        axes.legend()

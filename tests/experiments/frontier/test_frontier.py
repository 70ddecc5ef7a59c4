"""The study of FID against work: its settings, what it concludes, and the whole way with tiny networks."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from experiments import cli
from experiments.commands import Commands
from experiments.documents import csv_text
from experiments.frontier import __main__ as frontier
from experiments.frontier import known, report, settings
from experiments.frontier.settings import Setting
from experiments.results import Evaluation, RunResult
from experiments.runner import Runner
from experiments.spec import Run
from experiments.spec_files import load
from experiments.steps import Step
from experiments.study import TUNING_SEEDS
from guidance_methods.config import SAMPLING_CONFIGS
from guided_diffusion.errors import InputError
from tests.support.experiments import parse_command
from tests.support.helpers import ROOT, clean_environment

DIGITS = ROOT / "experiments" / "digits" / "recipes"
FLAGS = {field.name for config in SAMPLING_CONFIGS for field in dataclasses.fields(config)}
SPECS = {name: load(frontier.RECIPES / name) for name in ("cifar10", "digits")}


def setting(name: str, work: float, fid: float, eds: bool = False) -> Setting:
    run = Run(name, "uncond", "heldout.npz", {"num_samples": 10, "timestep_respacing": "5", "eds": eds}, "plain")
    return Setting(run, int(work * 1e9), work, fid)


# ---- settings


@pytest.mark.parametrize("name", SPECS)
def test_the_recipes_are_few_settings_that_the_script_takes(name):
    spec = SPECS[name]
    first, bases = settings.grid(spec), settings.references(spec)
    assert len(first) + 2 * settings.VARIED * len(settings.VARIANTS) <= 80
    assert spec.seeds == (1, 2, 3, 4, 5) and not set(spec.seeds) & set(TUNING_SEEDS)
    for base, steps in zip(bases, ("ddim25", "ddim250"), strict=True):  # upstream's flags
        assert base.flags["use_ddim"] and base.flags["timestep_respacing"] == steps and not base.flags.get("eds")
    commands = Commands(spec, processes=1)
    for run in (*first, *bases):
        assert {run.model, run.classifier} == {"uncond", "plain"} and run.num_samples == bases[0].num_samples
        assert run.flags["classifier_scale"] == bases[0].flags["classifier_scale"]
        parse_command(commands.sample(run, 1).command, 1)
    assert len({tuple(sorted(run.flags.items())) for run in (*first, *bases)}) == len(first) + 1


def test_a_front_has_no_setting_that_another_beats():
    values = {"a": (0.2, 9), "b": (0.2, 8), "c": (0.3, 8), "d": (0.4, 5), "e": (1, 6)}
    points = [setting(name, *value) for name, value in values.items()]
    assert [one.name for one in settings.front(points)] == ["b", "d"]
    with_eds = setting("f", 0.5, 7, eds=True)
    assert [one.name for one in settings.fronts([*points, with_eds])] == ["b", "d", "f"]


def test_the_best_of_each_rule_get_cheaper_variants():
    points = [setting(str(step), step, 10 - step) for step in range(1, 6)] + [setting("eds", 1, 20, eds=True)]
    found = {run.name: run for run in settings.variants(points)}
    possible = [flags for flags in settings.VARIANTS if flags.keys() <= FLAGS]
    assert len(found) == len(possible) * (settings.VARIED + 1)
    assert {name.partition("-")[0] for name in found} == {"3", "4", "5", "eds"}
    assert found["5-guidance2"].flags == points[4].run.flags | {"guidance_every": 2}


# ---- what is concluded


def record(name: str, work: float, percent: float, high: float, eds: bool = False, **values) -> dict:
    interval = {"percent": percent, "low": 2 * percent - high, "high": high}
    changes = {f"{prefix}_{key}": value for prefix in ("ddim25", "ddim250") for key, value in interval.items()}
    common = {"setting": name, "eds": eds, "work": work, "fid": 0.1, "half_range": 0.01, "time": 0.5, "flags": "--a 1"}
    return dict.fromkeys(report.COLUMNS) | common | changes | values


def test_the_cheapest_setting_that_is_not_worse():
    found = [record("bad", 0.2, 1, 2.1), record("good", 0.3, 1, 1.9), record("eds", 0.1, 0, 1, eds=True)]
    assert report.cheapest(found, "ddim25", False)["setting"] == "good"
    assert report.cheapest(found, "ddim25", True)["setting"] == "eds"
    assert report.cheapest(found[:1], "ddim250", False) is None
    groups, columns = report.answers(found, ("DDIM 25", "DDIM 250"))
    assert groups[0][1][0].cells == ["without EDS", "good", "0.300", "3.3", "0.50", "+1.0 (+0.1 to +1.9)"]
    assert len(groups[0][1][0].cells) == len(columns) - 1


def test_a_goal_is_reached_or_missed_with_a_reason():
    titles = ("DDIM 25", "DDIM 250")
    (reached,) = report.findings([record("a", 0.3, 1, 1.5)], titles)
    assert reached == "Goal reached: a is not worse than DDIM 25 at 0.300 of its work."
    missed, nearest = report.findings([record("a", 0.3, 3, 5), record("b", 0.5, 1, 1.5)], titles)
    assert missed.endswith("not worse than DDIM 25 needs 0.500.")
    assert nearest.endswith("a, FID +3.0 (+1.0 to +5.0) %: its FID is higher.")
    _, nearest = report.findings([record("a", 0.3, 1, 5)], titles)
    assert nearest.endswith("the seeds do not show that it is as good.")


def test_time_counts_only_where_a_sample_was_made_alone():
    def result(speed: float, alone: bool = True) -> RunResult:
        return RunResult("run", 10, (Evaluation(1, {}, "f", "s", images_per_second=speed, alone=alone),))

    assert report._time(result(20), result(10)) == 0.5
    assert report._time(result(20, alone=False), result(10)) is None
    assert report._time(result(20), RunResult("unit", 10, (Evaluation(1, {}, "f", "s", alone=True),))) is None


# ---- the budget


def test_the_best_setting_for_a_budget(tmp_path):
    (line,) = known.best_within(0.5, tmp_path)
    assert "no results of the frontier yet" in line
    found = [record("a", 0.2, 1, 2, fid=0.3), record("b", 0.4, 0, 1, fid=0.2), record("c", 1, 0, 1, fid=0.1)]
    (tmp_path / "trial").mkdir()
    table = tmp_path / "trial" / "frontier.csv"
    table.write_text(csv_text(report.COLUMNS, [*found, dict.fromkeys(report.COLUMNS) | {"setting": "d", "work": 0.1}]))
    best = ["trial: b, work 0.400, FID 0.2000 (+0.0 %, -1.0 to +1.0, against DDIM 25)", "  --a 1"]
    assert list(known.best_within(0.5, tmp_path)) == best
    assert list(known.best_within(0.1, tmp_path)) == [
        "trial: no setting known with at most 0.1 of the work of DDIM 25 (least: 0.200)"
    ]
    table.write_text(table.read_text().replace("0.2,", "much,"))
    with pytest.raises(InputError, match="frontier.csv: found could not convert"):
        list(known.best_within(0.5, tmp_path))


@pytest.mark.parametrize("words", [["--work", "-1"], ["--work", "0.3", "table1"], ["--work", "0.3", "--smoke"], []])
def test_show_takes_rows_or_a_budget(words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ed-dpm", "show", *words])
    with pytest.raises(InputError, match="--work"):
        cli.main()


# ---- the whole way

RUN = """model = "uncond"
classifier = "plain"
reference = "heldout.npz"
[flags]
num_samples = 24
batch_size = 24
timestep_respacing = "{steps}"
balanced = true
classifier_scale = 1.7
"""
SWEEP = '[sweep]\nflag = "timestep_respacing"\nvalues = [3]\n'
RUNS = {
    "ddim25": RUN.format(steps="ddim5") + "use_ddim = true\n",
    "ddim250": RUN.format(steps="ddim10") + "use_ddim = true\n",
    "fast": RUN.format(steps="3") + 'sampler = "unipc"\n' + SWEEP,
    "fast-eds": RUN.format(steps="3") + 'sampler = "unipc"\neds = true\n' + SWEEP,
}


def write_tiny_spec(folder: Path) -> Path:
    """The digits' spec with four settings of few steps and networks of few iterations."""
    recipes = frontier.RECIPES / "digits"
    row = '[[rows]]\nkey = "{0}"\nmethod = "{0}"\nsweep = "{0}"\n'
    rows = row.format("fast") + row.format("fast-eds")
    book = (recipes / "book.toml").read_text().replace("../../../digits/recipes", str(DIGITS))
    texts = {
        "book.toml": book.replace("[1, 2, 3, 4, 5]", "[1, 2]"),
        "tables/references.toml": (recipes / "tables" / "references.toml").read_text(),
        "tables/frontier.toml": f'title = "Two settings"\n{rows}',
        **{f"runs/{name}.toml": text for name, text in RUNS.items()},
    }
    for name in ("plain", "features"):
        lines = (DIGITS / "networks" / f"{name}.toml").read_text().splitlines()
        few = ["iterations = 20" if line.startswith("iterations") else line for line in lines]
        texts[f"networks/{name}.toml"] = "\n".join(few) + "\n"
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def fabricate(step: Step) -> None:
    """What a step leaves, with FIDs that fall with the work, those of EDS below the others; the seed is their noise."""
    for output in (ROOT / output for output in step.outputs):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("made")
    if not step.name.startswith(("evaluate-", "paired-")):
        return

    def fid(samples: str) -> float:
        name, _, seed = Path(samples).parent.name.rpartition("-seed")
        quality = {"ddim250": 0.09, "ddim25": 0.1, "fast-3": 0.12, "fast-eds-3": 0.1}
        cheaper = 0.001 * name.count("guidance") + 0.02 * name.count("cache")
        return quality[re.match("|".join(quality), name)[0]] + cheaper + 0.01 * int(seed) % 0.05

    samples, words = step.command[3], dict(zip(step.command, step.command[1:], strict=False))
    content = {
        "fid": fid(samples), "sfid": None, "inception_score": None, "precision": 0.5, "recall": 0.5,
        "engine": "features", "reference": step.command[2], "samples": samples,
        "n_samples": int(re.search(r"samples_(\d+)x", samples)[1]),
    }  # fmt: skip
    if "--paired" in words:
        content["paired"] = {"fid": {"difference": fid(samples) - fid(words["--paired"]), "p": 0.01}}
    (ROOT / step.outputs[0]).write_text(json.dumps(content))


def test_the_way_of_a_study_with_known_values(tmp_path, monkeypatch, capsys):
    recipes, results, called = write_tiny_spec(tmp_path / "tiny"), tmp_path / "results", []
    monkeypatch.setattr(Runner, "_call", lambda self, step: (called.append(step.name), fabricate(step)))
    monkeypatch.setattr(settings, "flops", lambda spec, run: fabricated_work(run))
    words = ["--recipes", str(recipes), "--out", str(tmp_path / "out"), "--results", str(results)]
    monkeypatch.setattr(sys, "argv", ["frontier", *words])
    frontier.main()
    first = list(called)
    assert len(set(first)) == len(first)
    seeds = {re.search(r"seed(\d+)", name)[1] for name in first if "ddim250" in name}
    assert seeds == {"1", "2"}  # it is no setting to choose
    rows = {row["setting"]: row for row in csv.DictReader((results / "tiny" / "frontier.csv").open(newline=""))}
    assert rows["fast-3"]["work"] == "0.6" and rows["ddim250"]["work"] == "2.0" and rows["ddim25"]["work"] == "1.0"
    best = rows["fast-eds-3"]
    assert [float(best[f"ddim25_{name}"]) for name in ("percent", "low", "high")] == pytest.approx([0, 0, 0], abs=1e-9)
    text = (results / "tiny" / "README.md").read_text()
    assert f"{len(rows) - 1} settings were compared" in text
    assert f"The {sum(bool(row['fid']) for row in rows.values())} below were sampled" in text
    assert "Goal missed, at most a third of the work of DDIM 25: the cheapest that is not worse than DDIM 25 " in text
    assert "needs 0.450" in text
    frontier.main()
    assert called == first and (results / "tiny" / "README.md").read_text() == text
    assert next(known.best_within(0.65, results)).startswith("tiny: fast-eds-3, work 0.600, FID 0.1")


def fabricated_work(run: Run) -> int:
    """Evaluations, those without a classifier half a one, in units that a float has exactly."""
    steps = int(str(run.flags["timestep_respacing"]).removeprefix("ddim"))
    share = 0.5 + 0.5 / run.flags.get("guidance_every", 1)
    return int(1000 * steps * share / run.flags.get("cache_every", 1))


@pytest.fixture
def forked_steps(fork_server, monkeypatch):
    """Steps in processes forked from one that has PyTorch loaded; the list of what was run."""
    called = []

    def call(self: Runner, step) -> None:
        called.append(step.name)
        done = fork_server.run(ROOT / step.command[1], step.command[2:], ROOT, 300, [clean_environment()])
        assert done.statuses == [0], (step.name, done.stdout[-2000:], done.stderr[-2000:])

    monkeypatch.setattr(Runner, "_call", call)
    return called


@pytest.mark.slow
def test_the_whole_way_from_recipes_to_a_report_and_a_budget(tmp_path, forked_steps, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    recipes, results = write_tiny_spec(tmp_path / "tiny"), tmp_path / "results"
    words = ["--recipes", str(recipes), "--out", str(tmp_path / "out"), "--results", str(results)]
    monkeypatch.setattr(sys, "argv", ["frontier", *words])
    monkeypatch.setattr("experiments.frontier.settings.VARIANTS", ({"guidance_every": 2},))
    frontier.main()
    first = list(forked_steps)
    tuned = {name for name in first if name.startswith("sample-") and name.endswith("-seed101-12")}
    assert {f"sample-{name}-seed101-12" for name in ("ddim25", "fast-3", "fast-eds-3")} < tuned
    assert "sample-fast-eds-3-guidance2-seed101-12" in tuned and "sample-ddim250-seed101-12" not in tuned

    folder = results / "tiny"
    text = (folder / "README.md").read_text()
    assert "DDIM 25" in text and "![FID over work](frontier.png)" in text and (folder / "frontier.png").stat().st_size
    rows = {row["setting"]: row for row in csv.DictReader((folder / "frontier.csv").open(newline=""))}
    assert len(rows) == len(tuned) + 1 and float(rows["fast-3"]["work"]) == pytest.approx(0.6)
    assert float(rows["ddim25"]["work"]) == 1 and float(rows["ddim250"]["work"]) == pytest.approx(2)
    reported = [row for row in rows.values() if row["fid"]]
    for row in reported:
        assert float(row["ddim25_low"]) <= float(row["ddim25_percent"]) <= float(row["ddim25_high"])
    assert all(float(row["time"]) > 0 and row["seeds"] == "1 2" for row in reported)
    tests = list(csv.DictReader((folder / "paired.csv").open(newline="")))
    assert len(tests) == 2 * sum((name != "ddim25") + (name != "ddim250") for name in (r["setting"] for r in reported))

    frontier.main()
    assert forked_steps == first and (folder / "README.md").read_text() == text
    (line, flags) = known.best_within(1.0, results)
    assert line.startswith("tiny: ") and "--classifier_scale 1.7" in flags
    parse_command(["python", "scripts/classifier_sample.py", *flags.split()], 1)


def test_the_readme_has_the_committed_results():
    folder = ROOT / "results" / "frontier" / "cifar10"
    found = known.read_settings(folder / "frontier.csv")
    fids = defaultdict(list)
    for run in csv.DictReader((folder / "runs.csv").read_text().splitlines()):
        fids[run["run"]].append(float(run["fid"]))
    assert all(row["fid"] == pytest.approx(sum(fids[row["setting"]]) / 5) for row in found)
    best = [report.cheapest(found, "ddim25", eds) for eds in (True, False)]
    (timed,) = (ROOT / "benchmarks" / "results").glob("*-frontier-cifar10-*.json")
    times = {row["setting"]: row["ratio"] for row in json.loads(timed.read_text())["rows"]}
    (line,) = (row for row in (ROOT / "README.md").read_text().splitlines() if row.startswith("| the same FID"))
    said = [(f"{1 / row['work']:.1f}", f"{times[row['setting']]:.1f}") for row in best]
    (work, time), (plain_work, plain_time) = said
    assert f"{work} times less work, {time} times less time on CPU (CUDA: not measured) with EDS, 8 steps" in line
    assert f"{plain_work} and {plain_time} with a constant scale" in line
    assert best[0]["setting"] == "dpmpp2m-eds-ddim8-cache2-guidance2"
    digits = known.read_settings(folder.parent / "digits" / "frontier.csv")
    least = min(row["work"] for row in digits if row["ddim25_high"] <= report.MARGIN)
    assert f"On the digits {1 / least:.1f} times less work" in line

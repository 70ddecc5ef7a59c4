"""What results/cifar10 says comes from the raw files beside it, and from networks in the repository."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
from safetensors import safe_open

from experiments.cifar10 import prediction
from experiments.rerun import DERIVED, FILE, REPORT, pick, plan_again
from experiments.verdict import t_interval
from guided_diffusion.errors import InputError
from tests.support.helpers import ROOT

RESULTS = ROOT / "results" / "cifar10"
TRAINED_AGAIN = re.compile("-[2-9]$")  # with another seed; of such networks only the first is in the repository
REPORTS = sorted(path.parent for path in RESULTS.glob("*/conclusion.md"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(params=REPORTS, ids=lambda path: path.name)
def folder(request) -> Path:
    return request.param


@pytest.mark.slow
def test_tables_are_means_of_the_runs(folder):
    values = defaultdict(list)
    for run in rows(folder / "runs.csv"):
        values[run["run"]].append(float(run["fid"]))
    text, shown, measured = (folder / "README.md").read_text(), 0, 0
    for row in rows(folder / "report.csv"):
        if row["metric"] == "fid" and row["ours"]:
            found = values[row["run"]]
            assert float(row["ours"]) == pytest.approx(sum(found) / len(found), rel=1e-6)
            measured += 1
            shown += f"| {sum(found) / len(found):.4f} ±" in text
    assert shown >= min(5, measured) > 3


def test_conclusions_are_those_of_the_paired_tests(folder):
    by_row = defaultdict(list)
    for test in rows(folder / "paired.csv"):
        by_row[test["row"], test["against"]].append((float(test["fid_difference"]), float(test["base_fid"])))
    sizes = set()
    for found in by_row.values():
        base = sum(fid for _, fid in found) / len(found)
        percents = [100 * difference / base for difference, _ in found]
        sizes.add(f"{sum(percents) / len(percents):+.1f} % ({min(percents):+.1f} to {max(percents):+.1f})")
    text = (folder / "conclusion.md").read_text()
    said = re.findall(r"[+-][\d.]+ % \([^)]*\)", text)
    assert said and set(said) <= sizes
    assert len(text.splitlines()) <= 10
    assert text.strip() in (folder / "README.md").read_text() and text.strip() in (RESULTS / "README.md").read_text()


def test_the_readme_quotes_the_conclusions():
    (text,) = re.findall(r"(?m)^\| does it help\?.*$", (ROOT / "README.md").read_text())
    quoted = re.findall(r"[+-][\d.]+ %", text)
    assert len(quoted) == 4
    concluded = "".join((RESULTS / name / "conclusion.md").read_text() for name in ("reduced", "sharpness"))
    assert all(f" {size} (" in concluded for size in quoted)


def test_the_table_of_the_documentation_quotes_the_report():
    found = rows(RESULTS / "methods" / "report.csv")
    fid = {row["method"].partition(", ")[0] + row["table"]: row["ours"] for row in found if row["metric"] == "fid"}
    (section,) = re.findall(r"(?s)\n## Measured on photographs\n.*", (ROOT / "docs" / "guidance.md").read_text())
    lines = re.findall(r"(?m)^\| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", section)
    shown = 0
    for name, *cells in lines[1:]:
        name = name.replace("clean classifier", "classifier of clean images")
        for table, cell in zip(("methods", "methods-sharpened"), cells, strict=True):
            if number := re.search(r"0\.\d+", cell):
                assert f"{float(fid[name + table]):.3f}" == number[0], name
                shown += 1
    assert shown == 15


def test_paired_differences_are_those_of_the_runs(folder):
    fid = {(run["run"], run["seed"]): float(run["fid"]) for run in rows(folder / "runs.csv")}
    for test in rows(folder / "paired.csv"):
        difference = fid[test["run"], test["seed"]] - fid[test["base_run"], test["seed"]]
        assert float(test["fid_difference"]) == pytest.approx(difference, abs=1e-4)


def test_every_run_has_a_command_an_interval_and_networks_in_the_repository(folder):
    commands, bounds = defaultdict(list), {}
    for row in rows(folder / "commands.csv"):
        commands[row["run"], row["seed"]].append(row["command"])
    for row in rows(folder / "intervals.csv"):
        if row["metric"] == "fid":
            bounds[row["run"], row["seed"]] = float(row["low"]), float(row["high"])
    for run in rows(folder / "runs.csv"):
        key = run["run"], run["seed"]
        assert len(commands[key]) == 2
        low, high = bounds[key]
        assert low <= float(run["fid"]) <= high
        for name in set(re.findall(r"/networks/([^/ ]+)/", " ".join(commands[key]))):
            path = RESULTS / "models" / folder.name / name / FILE
            if TRAINED_AGAIN.search(name):
                assert not path.exists()
                path = path.parents[1] / TRAINED_AGAIN.sub("-1", name) / FILE
            if (derived := path.with_name(DERIVED)).is_file():
                found = json.loads(derived.read_text())
                assert found["temperature"] > 0
                path = RESULTS / "models" / found["network"] / FILE
            assert path.stat().st_size <= 4_000_000
            assert (path.parent / "config.json").is_file()
            with safe_open(path, "pt") as weights:
                assert len(list(weights.keys())) > 50


@pytest.mark.slow
def test_every_reported_row_can_be_planned_once_more(folder):
    for run in rows(folder / "runs.csv"):
        assert pick(folder, run["run"], run["seed"]) == (run["run"], run["seed"])
        if TRAINED_AGAIN.search(run["classifier"]):
            with pytest.raises(InputError, match=f"/{run['classifier']}: not in the repository, expected a run with"):
                plan_again(folder, run["run"], run["seed"], Path("runs/rerun"))
            continue
        variables, steps = plan_again(folder, run["run"], run["seed"], Path("runs/rerun"))
        assert variables == {"OMP_NUM_THREADS": "1"}
        assert [step.name.split("-")[0] for step in steps if "derive" not in step.name] == [
            "data",
            "sample",
            "evaluate",
        ]
        made = {path for step in steps for path in step.outputs}
        needed = {
            Path(word) for step in steps for word in step.command if word.endswith((".npz", ".safetensors", ".pt"))
        }
        traces = {path for path in needed if path.name == "trace.npz"}
        assert all((ROOT / path).is_file() for path in needed - made - traces)
    for row in rows(folder / "report.csv"):
        if row["run"]:
            assert pick(folder, row["row"], None)[0] == row["run"]


def test_what_is_not_reported_is_refused():
    for words in (("rules/nobody", None), ("rules/unguided", "77")):
        with pytest.raises(InputError, match=f"^{words[0]}.*: not in .*report.csv or runs.csv, expected one of"):
            pick(ROOT / REPORT, *words)
    with pytest.raises(InputError, match="commands.csv, expected a line on it"):
        plan_again(ROOT / REPORT, "uncond-unguided", "77", Path("runs/rerun"))
    assert len({pick(ROOT / REPORT, None, None, number) for number in range(20)}) > 5
    assert {pick(ROOT / REPORT, None, "2", number)[1] for number in range(9)} == {"2"}
    training = RESULTS / "training"
    picked = [pick(training, None, None, number) for number in range(20)]
    assert len(set(picked)) > 5 and all(plan_again(training, *run, Path("runs/rerun")) for run in picked)
    with pytest.raises(InputError, match="^--seed 77: not in"):
        pick(ROOT / REPORT, None, "77")


def test_the_share_of_the_wanted_class_orders_fid_as_the_diagnosis_says():
    text = (RESULTS / "diagnose" / "README.md").read_text()
    real = json.loads((RESULTS / "diagnose" / "real-images.json").read_text())["reference_accuracy"]
    for report in ("reduced", "methods"):
        shares, fids = defaultdict(list), defaultdict(list)
        for run in rows(RESULTS / report / "runs.csv"):
            if (run["model"], run["sampler"]) == ("uncond", "DDIM 25") and run["guidance"] and run["accuracy"]:
                shares[run["run"]].append(float(run["accuracy"]))
                fids[run["run"]].append(float(run["fid"]))
        nearness = [-abs(sum(found) / len(found) - real) for found in shares.values()]
        better = [-sum(found) / len(found) for found in fids.values()]
        value, low, high = prediction.correlation(nearness, better)
        assert value > 0.5
        assert f"{value:.2f} ({low:.2f} to {high:.2f}) over the {len(fids)} of" in " ".join(text.split())


def test_tune_is_as_good_as_the_grid_with_a_third_of_the_images():
    text, tests = (RESULTS / "tune" / "README.md").read_text(), rows(RESULTS / "tune" / "paired.csv")
    grid = [row for row in rows(RESULTS / "methods" / "runs.csv") if row["run"] == "uncond-plain-timestep"]
    for test, run in zip(tests, grid, strict=True):
        assert (test["seed"], test["images"]) == (run["seed"], run["n"])
        assert float(test["fid_grid"]) == pytest.approx(float(run["fid"]), abs=1e-5)
    base = sum(float(test["fid_grid"]) for test in tests) / len(tests)
    percents = [100 * float(test["difference"]) / base for test in tests]
    low, high = t_interval(percents)
    assert f"{sum(percents) / len(percents):+.1f} % ({low:+.1f} to {high:+.1f}, " in " ".join(text.split())


def test_the_prediction_is_that_of_the_files(tmp_path):
    folder = RESULTS / "diagnose" / "training"
    (tmp_path / "diagnose.json").write_bytes((folder / "diagnose.json").read_bytes())
    prediction.main([str(tmp_path / "diagnose.json"), str(RESULTS / "training")])
    found = (tmp_path / "prediction.md").read_text()
    assert found == (folder / "prediction.md").read_text()
    text = (RESULTS / "diagnose" / "README.md").read_text()
    trainings, correlations = found.strip().split("\n\n")
    assert trainings in text
    said = re.findall(r"[+-]\d\.\d\d \([^)]*\)", " ".join(text.split()))
    assert len(set(said) & set(re.findall(r"[+-]\d\.\d\d \([^)]*\)", correlations))) == 4

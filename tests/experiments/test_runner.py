"""`ed-dpm run`: the steps it plans for the real thing, what it asks for first, and a smoke run of every row."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import cli
from experiments.commands import Commands
from experiments.plan import check_files, plan, without_missing
from experiments.published import INCEPTION, PUBLISHED
from experiments.smoke import smoke
from experiments.spec_files import load
from guided_diffusion.errors import InputError
from tests.support.helpers import ROOT, clean_environment

BOOK = load()
ECT_256 = "256x256_classifier+0.1ECT.pt"


def ed_dpm(*words: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "experiments", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=clean_environment())


# ---- the plan


def test_a_row_takes_its_files_then_samples_then_an_evaluation():
    commands = Commands(BOOK, out=Path("out"))
    steps = plan(commands, [BOOK.rows("table2/uadm-g-eds-ddim25")[0]])
    assert [step.name for step in steps] == [
        "download-256x256_diffusion_uncond.pt",
        "download-256x256_classifier.pt",
        "download-VIRTUAL_imagenet256_labeled.npz",
        f"download-{INCEPTION}",
        "sample-uadm-g-eds-ddim25-seed0-50000",
        "evaluate-uadm-g-eds-ddim25-seed0-50000",
    ]
    sample, evaluate = steps[-2:]
    assert set(sample.inputs) == {step.outputs[0] for step in steps[:2]} and sample.precious
    assert set(evaluate.inputs) == {steps[2].outputs[0], steps[3].outputs[0], sample.outputs[0]}


@pytest.mark.parametrize("small", [False, True])
def test_every_step_finds_its_inputs_made_before(small):
    book = smoke(BOOK) if small else BOOK
    commands = Commands(book, given={ECT_256: Path("/there/ect.pt")}, processes=1)
    made = {Path("/there/ect.pt")}
    steps = plan(commands, book.rows("all"))
    for step in steps:
        assert set(step.inputs) <= made, step.name
        made.update(step.outputs)
    assert len({step.name for step in steps}) == len(steps)
    assert len({output for step in steps for output in step.outputs}) == sum(len(step.outputs) for step in steps)
    assert len([s for s in steps if s.name.startswith("sample-")]) == len(BOOK.runs)
    trained = [s.name for s in steps if s.name.startswith("train-")]
    assert len(trained) == (len(BOOK.networks) + 1 if small else 2)


def test_a_size_without_a_published_ect_classifier_trains_one():
    commands = Commands(BOOK, processes=8)
    steps = {s.name: s for s in plan(commands, [BOOK.rows("supplement-table1-64/cadm-g-ect-eds-ddpm250")[0]])}
    train = steps["train-64x64_classifier+0.2ECT"]
    assert train.precious and train.processes == 8
    assert train.outputs[0] in steps["sample-cadm-64-g-ect-eds-ddpm250-seed0-50000"].inputs


def test_options_reach_the_commands(tmp_path):
    given = tmp_path / "ect.pt"
    commands = Commands(
        BOOK, given={ECT_256: given}, num_samples=100, seeds=(0, 5), batch_size=7, trace=True
    )  # fmt: skip
    steps = plan(commands, [BOOK.rows("table2/uadm-g-ect-ddim25")[0]])
    samples = [step for step in steps if step.name.startswith("sample-")]
    assert [step.name for step in samples] == [f"sample-uadm-g-ect-ddim25-seed{seed}-100" for seed in (0, 5)]
    words = " ".join(samples[1].command)
    assert f"--classifier_path {given} " in words and "--seed 5 " in words and "--batch_size 7 " in words
    assert "--num_samples 100 " in words and "samples_100x256x256x3.npz" in str(samples[1].outputs[0])
    assert words.endswith("--trace runs/paper/samples/uadm-g-ect-ddim25-seed5/trace.npz")
    assert samples[1].outputs[1].name == "trace.npz"
    assert not [step for step in steps if step.name == f"download-{ECT_256}"]


def test_the_smoke_run_keeps_the_flags():
    """The same script with the same flags; only widths, sizes and the kind of half precision are others."""
    real, small = (Commands(book, processes=1) for book in (BOOK, smoke(BOOK)))
    for run in BOOK.runs.values():
        flags = [flags_of(c.sample(c.spec.runs[run.name], 0).command) for c in (real, small)]
        added = {"in_channels", "num_classes", "amp_dtype", "classifier_width", "classifier_num_head_channels"}
        assert set(flags[1]) - set(flags[0]) <= added and set(flags[0]) <= set(flags[1])
        changed = {name for name in flags[0] if flags[0][name] != flags[1][name]}
        widths = {"image_size", "num_channels", "num_head_channels"}
        assert changed <= widths | {"model_path", "classifier_path", "log_dir", "timestep_respacing"}


def flags_of(command: tuple[str, ...]) -> dict[str, str]:
    words = command[command.index("python") + 2 :]
    return {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}


def test_former_names_of_flags(capsys):
    parse = cli._parser().parse_args
    assert parse(["run", "all", "--rehearse", "--at_once", "3"]) == parse(["run", "all", "--smoke", "--jobs", "3"])
    assert capsys.readouterr().err == ""
    parse(["run", "all", "--samplers", "2"])
    assert capsys.readouterr().err == "warning: --samplers no longer acts: every run is a process of its own\n"


# ---- before any work


@pytest.mark.slow
def test_a_file_behind_a_form_is_asked_for_first(tmp_path):
    done = ed_dpm("run", "table2", "--out", tmp_path / "out", "--models", tmp_path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert PUBLISHED[ECT_256].instruction in done.stderr and "--classifier_path" in done.stderr
    assert "4 of 8 rows need it" in done.stderr
    assert not (tmp_path / "out").exists()


def test_rows_that_cannot_be_made_can_be_left_out(tmp_path):
    commands = Commands(BOOK, models=tmp_path, data_dir=tmp_path)
    rows, lines = without_missing(commands, BOOK.rows("all"))
    left_out = {line.split()[1].rstrip(":") for line in lines}
    assert len(rows) + len(left_out) == 66
    expected = {row.name for row in BOOK.rows("all") if "-ect-" in (row.run or "")}
    assert left_out == expected
    with pytest.raises(InputError, match="no folder train in it"):
        check_files(commands, [BOOK.rows("supplement-table1-64/cadm-g-ect-eds-ddpm250")[0]])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "table2", "--classifier_path", "nowhere.pt"], "nowhere.pt: no such file, expected 256x256_classifier"),
        (["run", "table1", "--num_samples", "0"], "--num_samples: found '0', expected a whole number"),
        (["run", "table1", "--seeds", "a"], "--seeds: found 'a', expected whole numbers"),
        (["run", "tableX"], "tableX: no such row or table"),
        (["report", "--out", "nowhere"], "no book.json in it"),
        (["run", "all", "--recipes", "nowhere"], "no book.toml in it"),
    ],
)
def test_mistakes_end_in_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ed-dpm", *words])
    with pytest.raises(InputError) as error:
        cli.main()
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_a_folder_is_for_one_book(tmp_path):
    (tmp_path / "book.json").write_text(json.dumps({"recipes": "experiments/recipes", "rehearsal": False}))
    done = ed_dpm("run", "table1/cadm-ddpm250", "--rehearse", "--out", tmp_path)
    assert done.returncode == 2 and "book.json: found" in done.stderr and "use another --out" in done.stderr


# ---- for real, on a small scale


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_smoke_run_of_every_row(tmp_path):
    pytest.importorskip("sklearn")
    command = ("run", "all", "--smoke", "--num_samples", "4", "--out", tmp_path)
    first = ed_dpm(*command)
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
    total = int(re.search(r"(\d+) steps: \1 run, 0 were done", first.stdout)[1])

    text = (tmp_path / "report.md").read_text()
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    for table in BOOK.tables.values():
        (title,) = [line for line in titles if table.title in line]
        assert "SMOKE RUN" in title
    with (tmp_path / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["rehearsal"] for row in rows} == {"SMOKE RUN"}
    assert {row["row"] for row in rows} == {row.name for row in BOOK.rows("all")}
    measured = {row["row"] for row in rows if row["ours"] and row["metric"] == "fid"}
    assert measured == {row.name for row in BOOK.rows("all") if row.run or row.batch}
    with (tmp_path / "runs.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    assert {run["run"] for run in runs} == set(BOOK.runs)
    assert all(len(run["model_sha256"]) == 64 and run["n"] == "4" for run in runs)

    began = time.perf_counter()
    second = ed_dpm(*command)
    assert f"{total} steps: 0 run, {total} were done" in second.stdout
    assert time.perf_counter() - began < 60  # seconds on a free machine

    victim = next((tmp_path / "samples" / "cadm-g-eds-ddim25-seed0").glob("samples_*.npz"))
    victim.unlink()
    third = ed_dpm(*command)
    assert re.findall(r"^\[ *\d+/\d+\] (\S+)$", third.stdout, re.M) == [
        "sample-cadm-g-eds-ddim25-seed0-4", "evaluate-cadm-g-eds-ddim25-seed0-4"
    ]  # fmt: skip
    assert victim.is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_few_samples_of_the_digits_book(tmp_path):
    """Not a smoke run: shipped model, trained judge, two seeds; fewer samples than asked for are marked."""
    pytest.importorskip("sklearn")
    done = ed_dpm(
        "run", "rules/unguided", "--recipes", ROOT / "experiments" / "digits" / "recipes",
        "--num_samples", "8", "--nproc", "2",
        "--out", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    text = (tmp_path / "report.md").read_text()
    assert "SMOKE RUN" not in text and "8 of 1,000" in text
    with (tmp_path / "runs.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    assert [(run["seed"], run["n"], run["guidance"]) for run in runs] == [("0", "8", ""), ("1", "8", "")]
    again = ed_dpm("report", "--out", tmp_path)
    assert again.returncode == 0 and str(tmp_path / "report.html") in again.stdout

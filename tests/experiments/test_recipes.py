"""The recipes of the paper's experiments, and `ed-dpm list` and `ed-dpm show`, which print them."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from evaluations.evaluator import _create_parser
from experiments import cli as reproduce
from experiments.commands import Commands, shell
from experiments.published import PUBLISHED, published
from experiments.spec import REPORTED
from experiments.spec_files import load
from guided_diffusion.config.configs import ClassifierConfig, DiffusionConfig, ModelConfig
from guided_diffusion.config.flags import Parser
from guided_diffusion.errors import InputError
from guided_diffusion.script_util import build_classifier, build_model
from tests.support.experiments import parse_command, script_parser
from tests.support.helpers import ROOT, clean_environment
from tests.support.paper_tables import COMMON, METHODS, PAPER, PARAMETERS, PUBLISHED_RECIPES

BOOK = load()
RUNS = sorted(BOOK.runs.values(), key=lambda run: run.name)
NETWORKS = sorted(BOOK.networks.values(), key=lambda network: network.name)


def commands(processes: int) -> Commands:
    return Commands(BOOK, out=Path("out"), processes=processes)


def reproduce_command(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments", *words],
        capture_output=True, text=True, cwd=ROOT, env=clean_environment(), timeout=120,
    )  # fmt: skip


@cache
def shown(name: str) -> str:
    done = reproduce_command("show", name, "--nproc", "4", "--out", "somewhere")
    assert done.returncode == 0 and not done.stderr
    return done.stdout


def section(row: str) -> str:
    """What `show TABLE` prints about one row."""
    return re.search(rf"^## {re.escape(row)}: .*?(?=^## |\Z)", shown(row.split("/")[0]), re.M | re.S).group()


def printed_commands(text: str, start: str) -> list[list[str]]:
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith(start)]


# ---- the recipes themselves


@pytest.mark.parametrize("table", PAPER)
def test_the_figures_are_the_papers(table):
    rows = BOOK.tables[table].rows
    assert [tuple(map(row.paper.get, REPORTED)) for row in rows] == list(zip(*PAPER[table], strict=True))
    if table in METHODS:
        assert [row.method for row in rows] == METHODS[table]


@pytest.mark.parametrize("table", ["table2", "table3"])
def test_the_ablations_go_through_all_eight_cells(table):
    cells = []
    for row in BOOK.tables[table].rows:
        run = BOOK.runs[row.run]
        cells.append((run.sampler, run.classifier == "classifier-256-ect", run.flags.get("eds", False)))
        assert run.model == ("uadm-256" if table == "table2" else "cadm-256")
    switches = [(False, False), (True, False), (False, True), (True, True)]
    assert cells == [(sampler, *pair) for sampler in ("DDPM 250", "DDIM 25") for pair in switches]


def test_the_releases_figures_stand_where_they_differ():
    by_run = {BOOK.rows(row)[0].run: figures for row, *_rest, figures in PUBLISHED_RECIPES}
    for table in BOOK.tables.values():
        for row in table.rows:
            paper = tuple(map(row.paper.get, REPORTED))
            release = by_run.get(row.run, paper)
            differing = [b if a != b else None for a, b in zip(paper, release, strict=True)]
            assert list(map(row.release.get, REPORTED)) == differing, row.name


def test_table4_compares_the_five_rules_with_the_sweeps_runs():
    table4 = [BOOK.runs[row.run] for row in BOOK.tables["table4"].rows]
    rules = ["entropy" if run.flags.get("eds") else run.flags.get("guidance", "constant") for run in table4]
    assert rules == ["constant", "range", "timestep", "gradnorm", "entropy"]
    assert {(run.num_samples, run.sampler, run.model) for run in table4} == {(5000, "DDIM 25", "uadm-256")}
    swept = {row.run for name in (1, 2, 4) for row in BOOK.tables[f"supplement-figure{name}"].rows}
    assert {run.name for run in table4[1:]} <= swept


def test_what_was_never_published_has_a_note():
    for run in RUNS:
        smaller = "-64-" in run.name or "-128-" in run.name
        ect_alone = (run.classifier or "").endswith("-ect") and not run.flags.get("eds")
        if "-5k-" in run.name or ect_alone or (smaller and "-ect-" in run.name):
            assert re.search("never published|does not say", run.note), run.name


def test_every_run_is_used_and_no_two_are_the_same():
    used = {row.run for table in BOOK.tables.values() for row in table.rows}
    assert {run.name for run in RUNS} == used - {None}
    assert {network.name for network in NETWORKS} == {n for run in RUNS for n in (run.model, run.classifier) if n}
    contents = [(run.model, run.classifier, tuple(sorted(run.flags.items()))) for run in RUNS]
    assert len(set(contents)) == len(contents)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_script_takes_the_flags_of_a_run(run):
    """Types, ranges and choices as the script's parser has them; what is at its default is left out."""
    script, given, resolved = parse_command(commands(8).sample(run, seed=0).command, 8)
    assert script == ("classifier_sample" if run.classifier else "image_sample")
    flags = BOOK.network_flags(run) | run.flags
    for name, value in flags.items():
        assert given[name] == value and type(given[name]) is type(value), name
    of_interest = {"image_size", "classifier_scale", "guidance_until", "guidance_norm"}
    defaults = script_parser(script)._defaults_by_name
    assert [name for name, value in flags.items() if value == defaults[name] and name not in of_interest] == []
    assert resolved["log_dir"] == f"out/samples/{run.name}-seed0"
    side = BOOK.image_shape(run)[0]
    assert run.reference == f"VIRTUAL_imagenet{side}_labeled.npz"
    checkpoints = (resolved["model_path"], resolved.get("classifier_path", ""))
    assert all(f"{side}x" in path for path in checkpoints if path)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_the_flags_make_the_published_architecture(network):
    words = [word for name, value in network.flags.items() for word in (f"--{name}", str(value))]
    given = Parser("", ModelConfig, ClassifierConfig, DiffusionConfig).parse(words)
    with torch.device("meta"):
        if network.name.startswith("classifier"):
            built = build_classifier(given.make(ClassifierConfig))
        else:
            built = build_model(given.make(ModelConfig), given.make(DiffusionConfig))
    count = sum(parameter.numel() for parameter in built.parameters())
    assert count == PARAMETERS[network.name] == network.parameters


@pytest.mark.parametrize("network", [n for n in NETWORKS if n.training], ids=lambda network: network.name)
@pytest.mark.parametrize("processes", [1, 8])
def test_the_training_command_is_complete(network, processes):
    script, given, resolved = parse_command(commands(processes).train(network).command, processes)
    assert script == "classifier_train"
    assert {name: given[name] for name in network.training.flags} == network.training.flags
    assert resolved["ect"] and resolved["ect_weight"] == 0.2
    assert given["batch_size"] * processes == network.training.batch_size == 256
    model = next(BOOK.networks[run.model] for run in RUNS if run.classifier == network.name)
    assert resolved["noise_schedule"] == model.flags.get("noise_schedule", "linear")
    assert commands(processes).checkpoint(network).parent == Path(given["log_dir"])


def test_published_files():
    uncond = published("256x256_diffusion_uncond.pt")
    assert uncond.size == 2_211_383_297 and len(uncond.sha256) == 64
    assert uncond.url == "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/256x256_diffusion_uncond.pt"
    behind_a_form = published("256x256_classifier+0.1ECT.pt")
    assert behind_a_form.url is None and behind_a_form.instruction
    for file in PUBLISHED.values():
        assert (file.url is None) == bool(file.instruction)
        assert file.url is None or file.url.endswith(f"/{file.name}")
    with pytest.raises(InputError, match="nothing.pt: no such published file"):
        published("nothing.pt")


# ---- the command


@pytest.mark.slow
@pytest.mark.parametrize("recipe", PUBLISHED_RECIPES, ids=lambda recipe: recipe[0])
def test_show_prints_the_published_recipes(recipe):
    row, class_cond, respacing, gamma, eds, ect, _figures = recipe
    (command,) = printed_commands(section(row), "mpiexec")
    script, _given, flags = parse_command(command, 4)
    assert script == "classifier_sample"
    assert {name: flags[name] for name in COMMON} == COMMON
    assert (flags["class_cond"], flags["use_ddim"]) == (class_cond, respacing == "ddim25")
    assert (flags["timestep_respacing"], flags["classifier_scale"], flags["eds"]) == (respacing, gamma, eds)
    model = "256x256_diffusion.pt" if class_cond else "256x256_diffusion_uncond.pt"
    classifier = "256x256_classifier+0.1ECT.pt" if ect else "256x256_classifier.pt"
    assert (Path(flags["model_path"]).name, Path(flags["classifier_path"]).name) == (model, classifier)
    (evaluate,) = [c for c in printed_commands(section(row), "python") if "samples_" in c[3]]
    arguments = _create_parser().parse_args(evaluate[2:])
    assert Path(arguments.ref_batch).name == "VIRTUAL_imagenet256_labeled.npz"
    assert str(arguments.sample_batch) == f"{flags['log_dir']}/samples_50000x256x256x3.npz"
    assert flags["log_dir"].startswith("somewhere/")


def test_show_prints_files_figures_notes_and_disk():
    text = section("table1/uadm-g-ect-eds-ddim25")
    assert re.search(r"paper +8\.28 +6\.37 +163\.17 +0\.76 +0\.44\n", text)
    assert re.search(r"release +6\.38 +0\.45 +\(where it differs\)\n", text)
    assert "2,211,383,297 bytes" in text and PUBLISHED["256x256_diffusion_uncond.pt"].url in text
    assert PUBLISHED["256x256_classifier+0.1ECT.pt"].instruction in text
    assert "eta = 0.2" in text and "the same run as table2/uadm-g-ect-eds-ddim25" in text
    assert "disk: 22.09 GB" in text  # 2.21 + 0.22 of checkpoints, twice 50,000 * 256 * 256 * 3 bytes
    quoted = section("table1/sr3")
    assert "11.30" in quoted and "nothing to run" in quoted and "python" not in quoted
    batch = section("table1/biggan-deep")
    (command,) = printed_commands(batch, "python")
    assert PUBLISHED[Path(command[3]).name].url in batch


@pytest.mark.slow
def test_show_of_a_size_without_a_published_ect_classifier_trains_one():
    done = reproduce_command("show", "supplement-table1-64/cadm-g-ect-eds-ddpm250", "--nproc", "4")
    train, sample = (parse_command(command, 4) for command in printed_commands(done.stdout, "mpiexec"))
    assert (train[0], sample[0]) == ("classifier_train", "classifier_sample")
    assert sample[1]["classifier_path"] == f"{train[1]['log_dir']}/model299999.pt"
    assert train[1]["classifier_depth"] == sample[1]["classifier_depth"] == 4


@pytest.mark.slow
def test_one_process_needs_no_launcher():
    done = reproduce_command("show", "supplement-table1-64/cadm-g-ect-eds-ddpm250", "--nproc", "1")
    assert "mpiexec" not in done.stdout
    scripts = [command[1] for command in printed_commands(done.stdout, "python") if command[1].startswith("scripts/")]
    assert scripts == ["scripts/classifier_train.py", "scripts/classifier_sample.py"]


@pytest.mark.slow
def test_version():
    assert reproduce_command("--version").stdout.startswith("ed-dpm ")


@pytest.mark.slow
def test_list_has_every_row():
    done = reproduce_command("list")
    assert done.returncode == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if "/" in line.split(" ")[0]}
    assert set(lines) == {row.name for table in BOOK.tables.values() for row in table.rows}
    assert len(lines) == 14 + 8 + 8 + 5 + 4 + 7 + 5 + 10 + 5
    assert re.search(r"CADM-G\+ECT\+EDS +4\.09 +DDPM 250 +50,000$", lines["table1/cadm-g-ect-eds-ddpm250"])
    assert re.search(r"IDDPM +2\.92 +published samples +-$", lines["supplement-table1-64/iddpm"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "table9"], "table9: no such row or table"),
        (["show", "table1", "--nproc", "0"], "--nproc: found '0', expected a whole number from 1 on"),
        (["show", "supplement-table1-128", "--nproc", "7"], "--nproc: found 7, expected a divisor of 256"),
        (["show"], "show: expected either rows or tables"),
    ],
)
def test_mistakes_end_in_one_line(words, message):
    done = reproduce_command(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and message in done.stderr


def test_the_console_script_is_this_program():
    try:
        installed = importlib.metadata.distribution("ed-dpm").entry_points
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed")
    assert [entry.load() for entry in installed if entry.name == "ed-dpm"] == [reproduce.run]


@pytest.mark.parametrize("name", reproduce.PROGRAMS)
def test_programs_are_commands_of_it_too(name):
    command = [sys.executable, "-m", "experiments", *name.split(), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), timeout=200)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: __main__.py {name} [-h]")


def test_wrapped_commands_are_still_the_same_command():
    command = ["python", "x.py", "a b", "--out", "with space", "--flag", *["--n" * 30, "1"] * 4]
    text = shell(command)
    assert "\\\n" in text and shlex.split(text.replace("\\\n", "")) == command


# ---- broken recipes


def test_a_directory_without_recipes_says_so(tmp_path):
    with pytest.raises(InputError, match="no book.toml in it"):
        load(tmp_path)


def test_curve_points_have_no_figures():
    for name in (1, 2, 4):
        assert all(row.paper == {} for row in BOOK.tables[f"supplement-figure{name}"].rows)

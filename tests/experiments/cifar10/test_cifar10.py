"""The ablation on photographs: what it makes of the archives, of tuning and of a network; the whole way, tiny."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ablation import again
from experiments import rerun
from experiments.cifar10 import __main__ as ablation
from experiments.cifar10 import calibrate, conclusion, data, paired_tests, subclasses, tuning
from experiments.cifar10.tuning import (
    MATCHED,
    WIDER,
    Match,
    choose,
    matched_scale,
    matches,
    move,
    refine,
    with_wider_scales,
)
from experiments.commands import Commands
from experiments.image_parts import write_part
from experiments.paired import Difference
from experiments.plan import plan
from experiments.results import Evaluation, Results, RunResult
from experiments.runner import Runner
from experiments.spec import Row, Spec, Table
from experiments.spec_files import load
from experiments.study import TUNING_SEEDS
from guided_diffusion.config.configs import ClassifierConfig, DiffusionConfig, ModelConfig
from guided_diffusion.config.flags import from_values
from guided_diffusion.errors import InputError
from guided_diffusion.io import checkpoint
from guided_diffusion.script_util import build_classifier, build_model
from tests.support.documents import fenced_blocks
from tests.support.experiments import SWEEPS, parse_command, write_spec
from tests.support.helpers import ROOT, clean_environment, executable

NAMES = ("full", "reduced", "short", "sharpness", "methods", "training")
FULL, REDUCED, SHORT, SHARPNESS, METHODS, TRAINING = SPECS = [load(ablation.RECIPES / name) for name in NAMES]
BOOKS = pytest.mark.parametrize("book", SPECS, ids=NAMES)
CLASSES = ("cat", "dog", "ship", "truck")


@pytest.fixture(scope="module")
def zips(tmp_path_factory) -> Path:
    """Archives as CIFAR-10's: 30 training and 10 test images of each of four classes, every one its own colour."""
    folder = tmp_path_factory.mktemp("zips")
    random = np.random.default_rng(0)
    for name, count in (("cifar10_train.zip", 30), ("cifar10_test.zip", 10)):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for number in range(count):
                for label, text in enumerate(CLASSES):
                    pixels = random.integers(0, 50, (32, 32, 3)) + 60 * label
                    buffer = io.BytesIO()
                    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG")
                    archive.writestr(f"{text}_{number:04d}.jpg", buffer.getvalue())
    return folder


def write(zips: Path, folder: Path, size: int = 8) -> None:
    for part in data.FILES:
        data.write_from_zip(zips, folder, part, size)


def result(run: str, fid: float) -> RunResult:
    return RunResult(run, 1000, (Evaluation(101, {"fid": fid}, "classifier", "samples.npz"),))


# ---- photographs


def test_the_parts_are_disjoint_balanced_and_those_of_the_archives(zips, tmp_path):
    write(zips, tmp_path)
    names = {part: sorted(path.name for path in (tmp_path / part).iterdir()) for part in data.FILES}
    assert [len(names[part]) for part in ("train", "evaluator", "heldout")] == [96, 24, 40]
    assert not set(names["train"]) & set(names["evaluator"])
    for part in names:
        counts = {text: sum(name.startswith(f"{text}_") for name in names[part]) for text in CLASSES}
        assert len(set(counts.values())) == 1
        with np.load(tmp_path / f"{part}.npz") as file:
            images, labels = file["arr_0"], file["arr_1"]
        for name, image, label in zip(names[part], images, labels, strict=True):
            assert np.array_equal(np.asarray(Image.open(tmp_path / part / name)), image)
            assert CLASSES[label] == name.split("_")[0]
    with zipfile.ZipFile(zips / "cifar10_test.zip") as archive:
        whole = np.asarray(Image.open(io.BytesIO(archive.read("cat_0000.jpg"))), float)
    means = whole.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
    assert np.abs(means - np.asarray(Image.open(tmp_path / "heldout" / "cat_0000.png"))).max() <= 0.5


def test_what_was_interrupted_is_written_again_and_what_is_there_stays(zips, tmp_path):
    write(zips, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    (tmp_path / "train.npz").unlink()  # as if stopped between folder and reference
    next((tmp_path / "train").iterdir()).unlink()
    kept = (tmp_path / "heldout.npz").stat().st_mtime_ns
    write(zips, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before
    assert (tmp_path / "heldout.npz").stat().st_mtime_ns == kept
    with pytest.raises(InputError, match="side 8, expected 16"):
        write(zips, tmp_path, size=16)


def test_missing_and_damaged_archives(zips, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no cifar10_test.zip in it"):
        data.zips_folder(tmp_path)
    monkeypatch.setenv(data.VARIABLE, str(zips))
    assert data.zips_folder() == zips
    with zipfile.ZipFile(tmp_path / "cifar10_test.zip", "w") as archive:
        archive.writestr("cat_0000.jpg", b"no image")
    with pytest.raises(InputError, match="cat_0000.jpg"):
        data.write_from_zip(tmp_path, tmp_path, "heldout", 8)
    assert not (tmp_path / "heldout").exists() and not (tmp_path / "heldout.npz").exists()


@pytest.mark.slow
def test_the_real_archives_are_cut_into_40000_10000_and_10000():
    try:
        folder = data.zips_folder()
    except InputError as error:
        pytest.skip(f"CIFAR-10 is not here: {error}")
    parts = {}
    for part, file in data.FILES.items():
        with zipfile.ZipFile(folder / file) as archive:
            parts[part] = data.part_members(archive.namelist(), part)
    assert [len(parts[part]) for part in ("train", "evaluator", "heldout")] == [40_000, 10_000, 10_000]
    assert not set(parts["train"]) & set(parts["evaluator"])


# ---- calibration


def test_the_temperature_is_found_and_goes_into_the_weights(checkpoints):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 10, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(F.softmax(logits / 1.7, dim=1), 1, generator=generator)[:, 0]
    best = calibrate.best_temperature(logits, labels)
    assert abs(best - 1.7) < 0.05
    losses = [F.cross_entropy(logits / t, labels) for t in (best, 0.99 * best, 1.01 * best)]
    assert losses[0] == min(losses)

    path = checkpoints["classifier"]
    config = checkpoint.read_config(path)
    divided = path.parent / "divided.pt"
    weights = checkpoint.read_state_dict(path)
    weights = {name: weights[name] for name in sorted(weights)}  # as a safetensors file has them
    checkpoint.save(calibrate.divide_logits(weights, config, 1.7), divided)
    images = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3)).astype(np.uint8)
    plain, cooler = (calibrate.noised_logits(file, config, images) for file in (path, divided))
    assert plain.abs().max() > 0
    torch.testing.assert_close(plain / 1.7, cooler, rtol=1e-4, atol=1e-6)


def test_clusters_are_found_within_each_class(tmp_path):
    random = np.random.default_rng(0)
    labels, truth = np.repeat([0, 1, 2], 40), np.tile(np.arange(4), 30)
    centres = 100 * random.normal(size=(3, 4, 6))
    features = centres[labels, truth] + random.normal(size=(120, 6))
    found = subclasses.sub_labels(features, labels, 4)
    assert np.array_equal(found // 4, labels)
    assert len(np.unique(found)) == 12 and len({*zip(found, truth, strict=True)}) == 12
    assert np.array_equal(found, subclasses.sub_labels(features, labels, 4))
    with pytest.raises(InputError, match="class 1: found 40 images too much alike for 4 clusters"):
        subclasses.sub_labels(np.where(labels[:, None] == 1, 0.0, features), labels, 4)

    images = random.integers(0, 255, (120, 8, 8, 3)).astype(np.uint8)
    for _ in range(2):  # a second time in place of the first
        write_part(tmp_path / "clusters.npz", images, found, subclasses.names(found, 4))
    with np.load(tmp_path / "clusters.npz") as file:
        assert np.array_equal(file["arr_0"], images) and np.array_equal(file["arr_1"], found)
    files = sorted((tmp_path / "clusters").iterdir())
    # Training numbers the classes in the order of their names.
    classes = sorted({path.name.split("_")[0] for path in files})
    assert len(files) == 120 and len(classes) == 12
    for path in files:
        name, number = path.stem.split("_")
        assert classes.index(name) == found[int(number)]
        assert np.array_equal(np.asarray(Image.open(path)), images[int(number)])


def test_a_temperature_that_is_given_needs_no_images(checkpoints, tmp_path, monkeypatch):
    def divide(value: str) -> dict[str, torch.Tensor]:
        new = tmp_path / "new" / "model.pt"
        words = ["calibrate", "--temperature", value, str(checkpoints["classifier"]), "none.npz", str(new)]
        monkeypatch.setattr(sys, "argv", words)
        calibrate.main()
        assert checkpoint.read_config(new)["temperature"] == float(value)
        return checkpoint.read_state_dict(new)

    old = checkpoint.read_state_dict(checkpoints["classifier"])
    new = divide("0.25")
    *others, weight, bias = old
    assert all(torch.equal(new[name], old[name]) for name in others)
    assert all(torch.equal(new[name], 4 * old[name]) for name in (weight, bias))
    with pytest.raises(InputError, match="--temperature: found -1.0, expected more than 0"):
        divide("-1")


# ---- the books


def test_both_protocols_have_the_same_rows_and_the_same_number_of_values_for_every_method():
    assert [row.name for row in FULL.rows("all")] == [row.name for row in REDUCED.rows("all")]
    rows = [row for book in (FULL, METHODS, TRAINING) for row in book.rows("all")]
    assert {len(row.sweep) for row in rows if row.sweep} == {5}
    assert set(ablation.TABLES) == {*FULL.tables, *SHARPNESS.tables, *METHODS.tables, *TRAINING.tables}
    assert not set(TUNING_SEEDS) & {*FULL.seeds, *REDUCED.seeds}
    assert {run.num_samples for run in FULL.runs.values()} == {10_000}
    assert {run.num_samples for run in REDUCED.runs.values()} == {2_000}
    assert {run.num_samples for run in SHORT.runs.values()} == {5_000}
    assert {run.sampler for run in FULL.runs.values()} == {"DDIM 25", "DDPM 250"}
    assert {run.sampler for run in REDUCED.runs.values()} == {"DDIM 25", "DDPM 50"}


@BOOKS
def test_guiding_networks_never_see_what_the_judge_is_trained_on(book):
    for network in book.networks.values():
        if network.training:
            part = network.training.part
            part = book.parts[part].part if part in book.parts else part
            assert part == ("evaluator" if network.name == book.features else "train")


@pytest.mark.slow
@BOOKS
def test_the_scripts_take_every_command_and_the_networks_have_the_parameters_said(book):
    commands = Commands(book, processes=1, trace=True)
    for network in book.networks.values():
        if network.training:
            script, _, flags = parse_command(commands.train(network).command, 1)
            steps = flags["iterations"] or flags["lr_anneal_steps"]
            # Else the last checkpoint of a diffusion model would have another name.
            assert script == "classifier_train" or (steps - 1) % flags["save_interval"]
        kinds = (ModelConfig, DiffusionConfig) if "num_channels" in network.flags else (ClassifierConfig,)
        configs = [from_values(kind, network.flags) for kind in kinds]
        with torch.device("meta"):
            made = (build_model if len(kinds) == 2 else build_classifier)(*configs)
        assert sum(parameter.numel() for parameter in made.parameters()) == network.parameters
    for run in book.runs.values():
        _, given, _ = parse_command(commands.sample(run, 1).command, 1)
        assert given["num_samples"] % given["batch_size"] == 0


def test_the_calibrated_classifier_needs_the_one_it_is_made_of(tmp_path):
    commands = Commands(REDUCED, out=tmp_path, processes=1)
    steps = {step.name: step for step in plan(commands, REDUCED.rows("classifiers/calibrated-entropy"))}
    made = list(steps)
    assert made.index("train-plain") < made.index("derive-calibrated")
    derive = steps["derive-calibrated"]
    assert set(derive.inputs) == {*steps["train-plain"].outputs, tmp_path / "data" / "evaluator.npz"}
    assert derive.outputs[0] in steps["sample-uncond-calibrated-entropy-1-seed1-2000"].inputs


def test_sub_classes_need_the_judge_that_finds_them(tmp_path):
    commands = Commands(REDUCED, out=tmp_path, processes=1)
    steps = {step.name: step for step in plan(commands, REDUCED.rows("subclasses/50-entropy"))}
    part, train = steps["part-clusters"], steps["train-subclasses"]
    assert part.command[1:4] == ("experiments/cifar10/subclasses.py", "--clusters", "5")
    assert set(part.inputs) == {*steps["train-features"].outputs, tmp_path / "data" / "train.npz"}
    assert set(train.inputs) == set(part.outputs) == {tmp_path / "data" / "clusters.npz"}
    assert train.command[train.command.index("--data_dir") + 1] == str(tmp_path / "data" / "clusters")


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("book.toml", 'network = "features"', 'network = "plane"', r"parts\.halves\.network: found 'plane'"),
        ("book.toml", "experiments/cifar10/data.py", "ablation/paintings.py", "data: found 'ablation/paintings.py"),
        ("networks/calibrated.toml", 'network = "plain"', 'network = "plane"', "derived.network: found 'plane'"),
        ("networks/calibrated.toml", 'part = "evaluator"', 'part = "test"', "derived.part: found 'test'"),
    ],
)
def test_mistakes_in_a_book_that_rests_on_another(tmp_path, file, old, new, expected):
    book = write_spec(tmp_path)
    text = (book / file).read_text()
    assert old in text
    (book / file).write_text(text.replace(old, new))
    with pytest.raises(InputError, match=expected):
        load(book)


def test_a_dry_run_shows_every_step_before_the_rows_and_runs_none(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    words = ["ablation", "--protocol", "full", "--dry_run", "--tables", "rules", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    ablation.main()
    shown = capsys.readouterr().out.splitlines()
    names = [line for line in shown if re.match(r"(data|train-|sample-|evaluate-)", line)]
    assert names[:1] == ["data"] and {"train-uncond", "train-plain", "train-features"} <= set(names)
    assert sum(name.startswith("sample-") for name in names) == 1 + 6 * 5
    assert not out.exists()


DOCUMENTED = sorted(
    line.split(" #")[0].strip()
    for path in (ROOT / "experiments" / "cifar10" / "README.md", ROOT / "results" / "cifar10" / "PROTOCOL.md")
    for _, block in fenced_blocks(path.read_text())
    for line in block.splitlines()
    if line.startswith("python -m experiments.cifar10")
)


@pytest.mark.parametrize("command", DOCUMENTED)
def test_documented_commands_are_understood(command, monkeypatch, tmp_path):
    """What they then do is tested by the whole way, at a small size."""
    monkeypatch.setattr(Runner, "run", lambda *_: 0)
    words = shlex.split(command)[3:] + ["--out", str(tmp_path / "out"), "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["ablation", *words])
    ablation.main()


def test_the_former_name_of_rerun_says_so_and_does_it(monkeypatch, capsys):
    monkeypatch.setattr(again, "rerun", lambda report, run, seed, out: f"{report.name} {run} {seed} {out}")
    for words, printed in (
        (["--run", "uncond-unguided", "--seed", "2"], "reduced uncond-unguided 2 runs/again"),
        (["--pick", "7"], "reduced uncond-plain-constant-2.83 2"),
    ):
        monkeypatch.setattr(sys, "argv", ["again", "--protocol", "reduced", *words])
        with pytest.warns(DeprecationWarning, match="ed-dpm rerun"):
            again.main()
        assert printed in capsys.readouterr().out


# ---- choice


def test_the_matched_scale_lies_between_the_scales_around_it():
    norms = {1.0: 0.1, 2.0: 0.2, 4.0: 0.8}
    assert matched_scale(norms, 0.2) == pytest.approx(2.0)
    assert matched_scale(norms, 0.4) == pytest.approx(2 * 2**0.5)
    assert matched_scale(norms, 0.05) is None and matched_scale(norms, 0.81) is None


def test_larger_constant_scales_are_made_until_one_guides_as_much_as_eds():
    scales = {f"c-{gamma:g}": gamma for gamma in (1.0, 2.0, 4.0, 8.0)}
    norms = {"c-1": 0.1, "c-2": 0.2}
    assert Match("pair", "e-1", 0.5, norms, scales).next_run == "c-4"
    assert Match("pair", "e-1", 0.5, norms | {"c-4": 0.3}, scales).next_run == "c-8"
    found = Match("pair", "e-1", 0.5, norms | {"c-4": 0.3, "c-8": 0.6}, scales)
    assert found.next_run is None and 4 < found.scale < 8
    never = Match("pair", "e-1", 0.5, dict.fromkeys(scales, 0.3), scales)
    assert never.next_run is None and never.scale is None
    less = Match("pair", "e-1", 0.05, norms, scales)
    assert less.next_run is None and less.scale is None


def test_only_ddim_runs_are_matched_and_larger_scales_are_in_no_row(monkeypatch):
    book = with_wider_scales(FULL)
    added = sorted(book.runs.keys() - FULL.runs.keys())
    assert book.tables == FULL.tables and len(added) == 3 * len(WIDER)
    assert not any("ddpm" in name for name in added)
    results = Results({run: result(run, 1 + index) for index, run in enumerate(book.runs) if run not in added}, {})
    commands = Commands(book, out=Path("out"), processes=1, seeds=(101,), trace=True)
    monkeypatch.setattr(tuning, "_tuning_norm", lambda commands, run: 2.0 if "entropy" in run else 1.0)
    medium, strong, sharpened = matches(choose(book, results), commands, results)
    sweep = FULL.rows("rules/constant")[0].sweep
    assert set(medium.norms) == set(sweep)
    assert set(medium.scales) - set(sweep) == {name for name in added if "plain" in name}
    assert medium.next_run == f"uncond-plain-constant-{2 * max(medium.scales[run] for run in sweep):g}"
    assert (strong.pair, sharpened.pair) == ("strong", "sharpened medium")
    assert strong.entropy in FULL.rows("classifiers/strong-entropy")[0].sweep


def test_a_sweep_gives_way_to_its_best_run_when_all_of_it_is_there():
    names = FULL.rows("table2/eds")[0].sweep
    values = dict(zip(names, (3.0, 2.0, 1.0, 1.5, 2.5), strict=True))
    found = {name: result(name, value) for name, value in values.items()}
    row = choose(FULL, Results(found, {})).spec.rows("table2/eds")[0]
    assert row.run == names[2] == "uncond-plain-entropy-4" and not row.sweep and row.method == "EDS, gamma = 4"
    assert not choose(FULL, Results(found, {})).edges
    missing = {name: found[name] for name in names[1:]}
    assert choose(FULL, Results(missing, {})).spec.rows("table2/eds")[0].sweep == names
    at_edge = found | {names[0]: result(names[0], 0.5)}
    assert "table2/eds" in choose(FULL, Results(at_edge, {})).edges


def test_a_sweep_that_is_done_gets_a_value_on_either_side_of_its_best():
    names = FULL.rows("table2/eds")[0].sweep
    found = {name: result(name, value) for name, value in zip(names, (3.0, 2.0, 1.0, 1.5, 2.5), strict=True)}
    book = refine(FULL, Results(found, {}))
    added = book.rows("table2/eds")[0].sweep[5:]
    assert added == ("uncond-plain-entropy-2.83", "uncond-plain-entropy-5.66")
    assert added == book.rows("rules/entropy")[0].sweep[5:]
    assert [book.runs[name].flags["classifier_scale"] for name in added] == [2.83, 5.66]
    assert book.rows("table2/neither")[0].sweep == FULL.rows("table2/neither")[0].sweep
    assert choose(book, Results(found, {})).spec.rows("table2/eds")[0].sweep == book.rows("table2/eds")[0].sweep
    better = found | {added[1]: result(added[1], 0.9), added[0]: result(added[0], 1.1)}
    assert choose(book, Results(better, {})).spec.rows("table2/eds")[0].run == added[1]
    assert refine(FULL, Results(better, {})).rows("table2/eds")[0].sweep[5:] == added


def test_a_sweep_whose_best_is_at_an_edge_moves_by_one_value():
    names = FULL.rows("table2/eds")[0].sweep
    assert [FULL.runs[name].flags["classifier_scale"] for name in names] == [1, 2, 4, 8, 16]

    def moved(*fids: float) -> tuple[float, ...]:
        found = {name: result(name, value) for name, value in zip(names, fids, strict=False)}
        tuning = Results(found, {})
        book, alone = move(FULL, tuning, FULL.tables), move(FULL, tuning, ["table2"])
        assert book.rows("table2/eds")[0].sweep == book.rows("rules/entropy")[0].sweep
        assert alone.rows("table2/eds") == book.rows("table2/eds")
        assert alone.rows("rules/entropy") == FULL.rows("rules/entropy")  # or that table's best would be lost
        return tuple(book.runs[name].flags["classifier_scale"] for name in book.rows("table2/eds")[0].sweep)

    assert moved(3, 2, 1, 2, 3) == (1, 2, 4, 8, 16)
    assert moved(5, 4, 3, 2, 1) == (2, 4, 8, 16, 32)
    assert moved(1, 2, 3, 4, 5) == (0.5, 1, 2, 4, 8)
    assert moved(5, 4, 3, 2) == (1, 2, 4, 8, 16)  # not done yet


def test_an_effect_has_one_direction_and_a_small_p_at_every_seed():
    better = [Difference(1, -0.5, 3.0, 0.01), Difference(2, -0.1, 3.0, 0.05)]
    undecided = tuning.Choice(Spec("", "", {}, {}, {}), {})
    row, base = (Row(name, name, {}, {}, name) for name in ("table/row", "table/base"))
    comparison = paired_tests.Comparison(Table("table", "table", ()), row, base)
    assert conclusion.judge(undecided, comparison, better).verdict == conclusion.BETTER
    worse = [replace(found, difference=-found.difference) for found in better]
    assert conclusion.judge(undecided, comparison, worse).verdict == conclusion.WORSE
    for changed in (replace(better[1], difference=0.1), replace(better[1], p=0.06)):
        assert conclusion.judge(undecided, comparison, [better[0], changed]).verdict == conclusion.NONE
    edge = replace(undecided, edges={"table/row": "at the edge"})
    assert conclusion.judge(edge, comparison, better).verdict == conclusion.EDGE


def finding(row: str, base: str, percent: float, verdict: str) -> conclusion.Finding:
    table = row.partition("/")[0]
    rows = (Row(name, name, {}, {}, name) for name in (row, f"{table}/{base}"))
    values = [Difference(seed, 3 * percent / 100, 3.0, 0.01) for seed in (1, 2)]
    return conclusion.Finding(paired_tests.Comparison(Table(table, table, ()), *rows), values, verdict)


def said(*found: conclusion.Finding) -> str:
    return " ".join(conclusion.sentences(found, {"plain": (0.4, 0.25)}))


def test_conclusions_give_the_evidence_for_and_against_the_paper():
    better, none = conclusion.BETTER, conclusion.NONE
    for_it = [
        finding("table2/eds", "neither", -15, better),
        finding("table2/ect-eds", "neither", -20, better),
        finding("classifiers/strong-entropy", "strong-constant", -12, better),
        finding("classifiers/weak-entropy", "weak-constant", -2, none),
        finding("matched/strong-entropy", "strong-constant", -9, better),
    ]
    text = said(*for_it)
    assert "UADM, DDIM -15.0 % (-15.0 to -15.0), effect: better" in text and "plain 0.40 and 25 %" in text
    assert "EDS lowers FID by 10 % or more in 2 of 2 comparisons, and ECT and EDS together lower it most" in text
    assert "against the paper" not in text
    rule = finding("rules/entropy", "timestep", -1, none)
    assert "better than the timestep-aware rule" in said(*for_it, rule)
    assert "better than the timestep-aware rule" not in said(*for_it)
    matched = finding("matched/strong-entropy", "strong-constant", -1, none)
    assert "a larger scale and no more" in said(*for_it[:-1], matched)
    weak = finding("classifiers/weak-entropy", "weak-constant", -13, better)
    assert "the weak classifier as much" in said(*for_it, weak)
    strong = finding("classifiers/strong-entropy", "strong-constant", 0, none)
    nothing = [finding("table2/eds", "neither", 1, none), strong]
    assert "EDS is better neither" in said(*nothing) and "EDS is better neither" not in said(nothing[0])
    sharpened = finding("sharpness/sharpened-entropy", "sharpened-constant", -11, better)
    assert "EDS is better neither" in said(*nothing, sharpened)
    assert "10 % or more in 1 of 3 comparisons" in said(*nothing, sharpened)
    rival = finding("sharpness/sharpened-entropy", "sharpened-timestep", 1, none)
    assert "better than the timestep-aware rule" in said(*nothing, sharpened, rival)
    rival = finding("sharpness/sharpened-entropy", "sharpened-timestep", -5, better)
    assert "better than the timestep-aware rule" not in said(*for_it, rule, sharpened, rival)
    assert "against the timestep-aware rule, sharpened medium -5.0 %" in said(*nothing, sharpened, rival)
    etas = [finding(f"eta/ect-{eta}-constant", "plain-constant", -3, none) for eta in ("0.1", "0.2", "0.5")]
    assert "ECT is better at no eta" in said(*etas) and "no eta" not in said(*etas[:2])
    assert "nothing here contradicts the paper or supports it" in said(nothing[0])


def test_conclusions_are_ten_sentences_at_most():
    rows = {
        (f"{table}{end}/{key}", "neither")
        for table in ("table2", "table3") for end in ("", "-ddpm") for key in ("eds", "ect", "ect-eds")
    }  # fmt: skip
    rows |= {(f"classifiers/{key}-entropy", f"{key}-constant") for key in ("weak", "plain", "strong", "calibrated")}
    rows |= {(f"matched/{key}-entropy", f"{key}-constant") for key in ("medium", "strong", "sharpened medium")}
    rows |= {(f"sharpness/sharpened-{key}", "sharpened-constant") for key in ("entropy", "timestep")}
    rows |= {("rules/entropy", "timestep"), ("sharpness/sharpened-entropy", "sharpened-timestep")}
    rows |= {(f"rules/{key}", "constant") for key in ("range", "timestep", "gradnorm", "entropy", "capped")}
    rows |= {(f"eta/ect-{eta}-constant", "plain-constant") for eta in ("0.1", "0.2", "0.5")}
    rows |= {(f"subclasses/{n}-entropy", f"{n}-constant") for n in (10, 50)}
    book = done()
    known = {
        (found.row.name, found.base.name.partition("/")[2])
        for table in book.tables.values()
        for found in paired_tests.comparisons(book, table)
    }
    assert {pair for pair in rows if not pair[0].startswith("matched")} <= known
    findings = [finding(*row, -1, conclusion.NONE) for row in sorted(rows)]
    assert len(list(conclusion.sentences(findings, {"plain": (0.5, 0.5)}))) == 10


def done() -> Spec:
    """The full book with the first value of every sweep chosen."""
    tables = {
        name: replace(table, rows=tuple(replace(row, run=row.run or row.sweep[0], sweep=()) for row in table.rows))
        for name, table in FULL.tables.items()
    }
    return replace(FULL, tables=tables)


# ---- the whole way


@pytest.fixture
def forked_steps(fork_server, zips, monkeypatch):
    """Steps in processes forked from one that has PyTorch loaded; the list of what was run."""
    executable("mpiexec")
    called = []

    def call(self: Runner, step) -> None:
        command = list(step.command[3:] if step.command[0] == "mpiexec" else step.command)
        called.append(step.name)
        environment = clean_environment(CIFAR10_ZIPS=str(zips))
        done = fork_server.run(ROOT / command[1], command[2:], ROOT, 120, [environment])
        assert done.statuses == [0], (step.name, done.stdout[-2000:], done.stderr[-2000:])

    monkeypatch.setattr(Runner, "_call", call)
    return called


@pytest.mark.slow
def test_the_whole_way_from_archives_to_a_report_and_back(tmp_path, forked_steps, monkeypatch):
    book, out, results = write_spec(tmp_path / "books" / "reduced"), tmp_path / "out", tmp_path / "results"
    words = ["ablation", "--protocol", "reduced", "--recipes", str(book), "--out", str(out), "--results", str(results)]
    monkeypatch.setattr(sys, "argv", words)
    ablation.main()

    first = list(forked_steps)
    assert len(set(first)) == len(first)
    assert [name for name in first if name.startswith(("train-", "derive-", "part-"))] == [
        "train-uncond", "train-plain", "train-features", "derive-calibrated", "part-halves", "train-subclasses",
    ]  # fmt: skip
    tuned = {name for name in first if name.startswith("sample-") and name.endswith("-seed101-12")}
    for sweep, values in SWEEPS.items():  # two values around the best, and one for every move from an edge
        of_sweep = [name for name in tuned if re.fullmatch(rf"sample-{sweep}-[\d.]+-seed101-12", name)]
        assert len(values) + 2 <= len(of_sweep) <= len(values) + 2 + ablation.MOST_MOVES
    reported = {name.rpartition("-seed")[0] for name in first if name.startswith("sample-") and name not in tuned}
    assert {name.rpartition("-")[0].removeprefix("sample-") for name in reported} == set(SWEEPS)

    folder = results / "reduced"
    index = (results / "README.md").read_text()
    assert "(reduced/README.md)" in index and (folder / "conclusion.md").read_text().strip() in index
    text = (folder / "README.md").read_text()
    assert text.startswith("# A trial") and "## Four rows" in text and "## Paired differences" in text
    runs, tuning, tests, commands, diagnosis = (
        list(csv.DictReader((folder / f"{name}.csv").open(newline="")))
        for name in ("runs", "tuning", "paired", "commands", "diagnosis")
    )
    assert {row["seed"] for row in runs} == {"1", "2"} and {row["n"] for row in runs} == {"48"}
    assert {row["seed"] for row in tuning} == {"101"} and {row["n"] for row in tuning} == {"12"}
    best = min((row for row in tuning if "plain-constant" in row["run"]), key=lambda row: float(row["fid"]))["run"]
    assert best in {row["run"] for row in runs}
    fid = {(row["run"], row["seed"]): float(row["fid"]) for row in runs}
    assert len(tests) >= 4
    for row in tests:
        own, base = fid[row["run"], row["seed"]], fid[row["base_run"], row["seed"]]
        assert float(row["fid_difference"]) == pytest.approx(own - base, abs=1e-5)
    assert {(row["run"], row["seed"]) for row in commands} == {(row["run"], row["seed"]) for row in (*runs, *tuning)}
    norms = list(csv.DictReader((folder / "norms.csv").open(newline="")))
    assert {row["run"] for row in norms} == {row["run"] for row in tuning}
    assert all(float(row["norm"]) > 0 for row in norms)
    intervals = list(csv.DictReader((folder / "intervals.csv").open(newline="")))
    assert {(row["run"], row["seed"]) for row in intervals} == {(row["run"], row["seed"]) for row in runs}
    assert all(float(row["low"]) <= float(row["high"]) for row in intervals)
    assert "Conclusions, of what has been run:" in text and "In the last third of the steps" in text
    assert {row["classifier"] for row in diagnosis} == {"plain", "calibrated", "subclasses"}
    for name in ("tuning.png", "vanishing.png", "classifiers.png", "compare.png"):
        assert (folder / name).is_file()
    if f"## {MATCHED}" in text:
        assert "Time-averaged guidance norms" in text

    ablation.main()
    assert forked_steps == first
    assert (folder / "README.md").read_text() == text

    made = [network for network in load(book).networks.values() if network.is_made]
    assert {network.name for network in made} == {"uncond", "plain", "features", "calibrated", "subclasses"}
    for network in made:
        source = ROOT / Commands(load(book), out=out).checkpoint(network)
        target = results / "models" / "reduced" / network.name / rerun.FILE
        target.parent.mkdir(parents=True)
        checkpoint.write_config(target.parent, checkpoint.read_config(source) or dict(network.flags))
        checkpoint.save(checkpoint.read_state_dict(source), target)
    (derived := results / "models" / "reduced" / "calibrated" / rerun.FILE).unlink()
    temperature = checkpoint.read_config(derived)["temperature"]
    derived.with_name(rerun.DERIVED).write_text(json.dumps({"network": "reduced/plain", "temperature": temperature}))
    monkeypatch.setattr(rerun, "RECIPES", book.parent)
    for run, seed in {(row["run"], row["seed"]) for row in runs if row["run"].startswith("uncond-calibrated")}:
        forked_steps.clear()
        new, old = re.search(
            r"FID ([\d.]+); reported ([\d.]+) ", rerun.rerun(folder, run, seed, tmp_path / "again")
        ).groups()
        assert float(new) == pytest.approx(float(old), abs=1e-6)
    assert (tmp_path / "again" / "networks" / "calibrated" / rerun.FILE).is_file()
    assert forked_steps == [f"sample-{run}-seed{seed}", f"evaluate-{run}-seed{seed}"]  # data and networks are there

    run, seed = runs[0]["run"], runs[0]["seed"]
    table = (folder / "intervals.csv").read_text()
    moved = re.sub(rf"(?m)^{re.escape(run)},{seed},fid,.*$", f"{run},{seed},fid,1,0,1e-9", table)
    (folder / "intervals.csv").write_text(moved)
    with pytest.raises(InputError, match="expected 0.000000 to 0.000000"):
        rerun.rerun(folder, run, seed, tmp_path / "again")

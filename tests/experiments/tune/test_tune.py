"""`ed-dpm tune` from flags to its report, on networks and images of a few pixels."""

from __future__ import annotations

import csv
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from benchmarks.builders import SMALLEST, random_images, write_network, write_networks
from experiments.paired import Difference
from experiments.tune.__main__ import _with_files, main
from experiments.tune.report import Confirmed, rivals, sentences
from experiments.tune.runs import UNGUIDED, Runs
from experiments.tune.search import Arm, Search
from guided_diffusion.config.flags import ParsedFlags
from guided_diffusion.errors import InputError
from tests.support.helpers import ROOT

A, B, C = Arm("entropy", "", 2.0), Arm("constant", "", 4.0), Arm("constant", "", 8.0)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    flags = write_networks(folder, SMALLEST)
    features = write_network(folder / "features", SMALLEST.classifier, noised=False)
    reference = folder / "reference.npz"
    np.savez(reference, arr_0=random_images(1, 60, 8))
    flags |= {"reference": reference, "features": features, "use_ddim": True, "timestep_respacing": "ddim2"}
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))] + ["--batch_size", "50"]


def test_the_flags_of_a_setting():
    runs = Runs(None, None, {}, "8x8x3", 500, "", (), "fid", 1)
    assert runs.guidance(A) == {"classifier_scale": 2.0, "eds": True}
    interval = Arm("timestep", "0,300", 3.0)
    wanted = {"classifier_scale": 3.0, "guidance": "timestep", "guidance_factor": 0.004, "guidance_interval": "0,300"}
    assert runs.guidance(interval) == wanted
    assert runs.guidance(UNGUIDED) == {"classifier_scale": 0.0}


def test_a_setting_gets_no_flags_of_other_rules():
    given = {"guidance_smoothing": 0.05, "guidance_until": 500, "batch_size": 50}
    runs = Runs(None, Path("out"), given, "8x8x3", 1000, "", (), "fid", 1)
    arms = {Arm("reverse-kl", "", 2.0): ["guidance_smoothing"], Arm("range", "", 2.0): ["guidance_until"]}
    for arm, own in {**arms, A: [], B: [], UNGUIDED: []}.items():
        command = runs._sample(arm, 10, 1).command
        assert [name for name in given if f"--{name}" in command] == [*own, "batch_size"]


def test_what_is_said():
    values = {(A, 100): 1.0, (A, 300): 0.5, (B, 100): 1.1, (B, 300): 0.6, (C, 100): 2.0}
    search = Search([], 0, values=values, images=700)
    assert rivals(search, [A, B]) == [B, UNGUIDED]
    assert rivals(search, [B, A]) == [A, UNGUIDED]
    tests = [Difference(1, -0.06, 0.6, 0.01), Difference(2, -0.03, 0.6, 0.05)]
    confirmed = Confirmed(200, {A: [0.5, 0.54], B: [0.56, 0.57]}, {B: tests})
    first, second, *rest, last = sentences(search, confirmed, "FID", "--eds True")
    assert first.startswith("Chosen: entropy-2, FID 0.52 with 200 images at each of 2 seeds") and "700 images" in first
    assert second == "Against constant-4: -7.5 % (-10.0 to -5.0; p 0.01, 0.05): sure, better."
    assert last == "Flags: --eds True" and rest == []
    tests = [Difference(seed, 4.0, 5.0, 0.01) for seed in (1, 2)]
    said = sentences(search, Confirmed(200, {A: [9.0, 9.0], B: [5.0, 5.0]}, {B: tests}), "IS", "--eds True", sign=-1)[1]
    assert said == "Against constant-4: +80.0 % (+80.0 to +80.0; p 0.01, 0.01): sure, better."


@pytest.mark.slow
def test_a_whole_search(flags, tmp_path, capsys):
    out = tmp_path / "tune"
    command = [*flags, "--rules", "constant", "--budget", "1300", "--out", str(out)]
    main(command)
    said = capsys.readouterr().out
    assert "Chosen: constant-" in said and "Against unguided: " in said and "Flags: --classifier_scale " in said
    lines = list(csv.DictReader((out / "tune.csv").read_text().splitlines()))
    assert {"rule", "interval", "scale", "images", "FID"} == lines[0].keys() and len(lines) >= 7
    confirmed = list(csv.DictReader((out / "confirmed.csv").read_text().splitlines()))
    images = sum(int(line["images"]) for line in confirmed)
    assert {line["seed"] for line in confirmed} == {"1", "2"} and images < 900
    assert (out / "tune.png").stat().st_size > 1000 and "| setting" in (out / "tune.md").read_text()
    with mock.patch("subprocess.Popen", side_effect=AssertionError("done already")):
        main(command)
    assert (out / "tune.csv").read_text().splitlines()[1:]
    with pytest.raises(InputError, match="tune.json"):
        main([*command, "--classes", "1"])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--rules", "best"], "--rules: found 'best', expected of constant"),
        (["--metric", "accuracy"], "--metric: invalid choice: 'accuracy'"),
        (["--budget", "100"], "--budget 100: found too few images for 15 settings, expected at least"),
        (["--classifier_scale", "3"], "--classifier_scale: found, but every setting has its own"),
        (["--intervals", "5"], "--intervals: found '5', expected two numbers"),
        (["--diagnosis", "none.json"], "none.json"),
        (["--rules", "negative"], "--rules negative: found without --guidance_classes, expected the classes"),
    ],
)
def test_what_makes_no_sense_is_refused(flags, tmp_path, more, says):
    with pytest.raises(InputError, match=says):
        main([*flags, *more, "--out", str(tmp_path / "out")])


def test_paths_are_those_of_the_folder_where_the_command_was_typed(tmp_path, monkeypatch):
    write_networks(tmp_path, SMALLEST)
    monkeypatch.chdir(tmp_path)
    given = {"model_path": "model", "classifier_path": "classifier/model.pt"}
    found = _with_files(ParsedFlags(given)).values
    assert found == {f"{name}_path": str(tmp_path / name / "model.pt") for name in ("model", "classifier")}


def test_networks_of_the_repository_are_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ROOT / "experiments" / "digits" / "model" / "uncond.safetensors"
    with pytest.raises(InputError, match="--budget 100: found too few images"):
        main(["--model_path", str(model), "--classifier_path", str(model), "--reference", "x.npz", "--budget", "100"])


def test_a_missing_checkpoint(tmp_path):
    with pytest.raises(InputError, match="--model_path: missing"):
        main(["--reference", "x.npz", "--out", str(tmp_path / "out")])

"""`ed-dpm diagnose` on tiny networks: its files, interruptions, two processes, bad input."""

from __future__ import annotations

import csv
import json
import re
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.diagnose import diagnose, write_report
from experiments.diagnose.report import _cell
from guided_diffusion.sampling.pretrained import load_classifier, load_diffusion, load_model
from tests.support.helpers import CLASSIFIER, ROOT, make_checkpoint, make_images

PROGRAM = ROOT / "experiments" / "__main__.py"
SHORT = {"levels": 3, "batch_size": 5, "replicates": 50, "rules": "entropy,elucd"}


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory, checkpoints) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("classifiers")
    return {"first": checkpoints["classifier"], "second": make_checkpoint(folder / "b", "classifier", seed=1)}


def words(flags: dict, classifiers: dict[str, Path]) -> list[str]:
    named = [f"{name}={path}" for name, path in classifiers.items()]
    return [
        "diagnose",
        "--classifier_path",
        *named,
        *(word for key, value in flags.items() for word in (f"--{key}", str(value))),
    ]


@pytest.fixture
def asked(checkpoints, classifiers, images) -> list[str]:
    return words(SHORT | {"model_path": checkpoints["model"], "data_dir": images, "out": "out"}, classifiers)


def arrays(folder: Path) -> dict[str, np.ndarray]:
    parts = [dict(np.load(path)) for path in sorted(folder.glob("parts/*.npz"))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_a_run_writes_what_its_page_shows(run, asked, tmp_path, checkpoints):
    pytest.importorskip("matplotlib")
    told = run(PROGRAM, [*asked, "--cond_model_path", str(checkpoints["conditional"])]).stdout
    out = tmp_path / "out"
    result, page = json.loads((out / "diagnose.json").read_text()), unescape((out / "diagnose.html").read_text())
    assert result["images"] == 24 and result["classes"] == 4 and result["times"] == [3, 10, 16]
    assert list(result["classifiers"]) == ["first", "second"]
    assert 1 <= len(result["verdict"]) <= 5 and all(sentence in told for sentence in result["verdict"])
    assert str(out / "diagnose.html") in told
    assert all(sentence in page for sentence in result["verdict"])
    for entry in result["classifiers"].values():
        assert set(entry["rules"]) == {"constant", "constant at 1", "entropy", "elucd"}
        # All but the gains at every level, which are in a figure, and top-5 of four classes.
        columns = [entry["overall"], *entry["rules"].values()]
        shown = [value for column in columns for name, value in column.items() if name != "top5"]
        shown += [v for name, values in entry["levels"].items() if "/" not in name and name != "top5" for v in values]
        assert all(f">{_cell(value)}</td>" in page for value in shown)
    assert page.count("data:image/png;base64,") == 3 and not re.search(r'(src|href)="(?!data:)', page)
    for name in ("certainty", "scale", "gain"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((out / "levels.csv").read_text().splitlines()))
    (row,) = (r for r in rows if (r["series"], r["quantity"], r["t"]) == ("second", "s_star", "10"))
    assert float(row["value"]) == pytest.approx(result["classifiers"]["second"]["levels"]["s_star"][1][0], rel=1e-6)
    figure = list(csv.DictReader((out / "scale.csv").read_text().splitlines()))
    assert row in figure and {r["series"] for r in figure} == {"first", "second", "conditional model"}


@pytest.mark.slow
def test_interruptions_and_processes_change_nothing(run, asked, tmp_path):
    run(PROGRAM, asked)
    out = tmp_path / "out"
    whole, result = arrays(out), (out / "diagnose.json").read_bytes()
    parts = sorted((out / "parts").glob("*.npz"))
    assert len(parts) == 5
    for path in (parts[1], parts[4]):
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in (parts[0], parts[2], parts[3])}
    run(PROGRAM, asked)
    assert equal(arrays(out), whole) and (out / "diagnose.json").read_bytes() == result
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    shutil.rmtree(out)
    run(PROGRAM, asked, launcher="fork2")
    assert equal(arrays(out), whole) and (out / "diagnose.json").read_bytes() == result
    # Other images, levels or networks are another run; another number of images at a time is not.
    run(PROGRAM, [*asked, "--batch_size", "7", "--replicates", "20"])
    refused = run(PROGRAM, [*asked, "--levels", "4"], fails=True)
    assert "use another --out" in refused.error_lines[0] and len(refused.error_lines) == 1


@pytest.mark.slow
def test_the_function_returns_what_the_command_writes(run, asked, tmp_path, checkpoints, classifiers, images):
    run(PROGRAM, [*asked, "--batch_size", "24"])
    result = json.loads((tmp_path / "out" / "diagnose.json").read_text())
    order = np.random.Generator(np.random.PCG64(0)).permutation(24)
    paths = sorted(images.iterdir())
    pixels = np.stack([np.asarray(Image.open(paths[number])) for number in order]).transpose(0, 3, 1, 2)
    labels = torch.tensor([int(paths[number].name[1]) for number in order])
    model = load_model(checkpoints["model"])
    loaded = {name: load_classifier(path) for name, path in classifiers.items()}
    x_0 = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1)
    found = diagnose(model, loaded, load_diffusion(checkpoints["model"]), x_0, labels, levels=3, replicates=50)
    for name, entry in found["classifiers"].items():
        expected = result["classifiers"][name]["levels"]
        for key in ("accuracy", "entropy"):  # noise is drawn by an image's number, in the folder or in the batch
            assert np.abs(np.array(entry["levels"][key]) - expected[key]).max() < 0.3
    assert write_report(found, tmp_path / "function").is_file()


@pytest.mark.slow
def test_an_npz_and_a_conditional_model(run, checkpoints, classifiers, tmp_path):
    """Checkpoints without config.json: the flags describe them, and labels are numbers."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", arr_0=pixels, arr_1=np.arange(9) % 4)
    bare = make_checkpoint(tmp_path / "bare", "classifier", config_json=False)
    flags = SHORT | {"model_path": checkpoints["conditional"], "data_dir": tmp_path / "images.npz", "out": "out"}
    flags |= {"num_images": 6, "num_classes": 4, **CLASSIFIER}
    told = run(PROGRAM, words(flags, {"bare": bare})).stdout
    result = json.loads((tmp_path / "out" / "diagnose.json").read_text())
    assert "left out" in told and result["unguided"] is None and result["images"] == 6
    assert not (tmp_path / "out" / "scale.png").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (["--rules", "range"], "--rules: found range, expected some of constant,"),
        (["--levels", "21"], "levels: found 21, expected 1 to 20"),
        (["--timestep_respacing", "ddim5"], "--timestep_respacing: found in a diagnosis"),
        (["--data_dir", "nowhere"], "nowhere"),
        (["--model_path", ""], "--model_path: missing"),
        (["--cond_model_path", "MODEL"], "found a model without classes, expected one with"),
        (["--classifier_path", "MODEL"], "MODEL"),
        (["--classifier_path", "first=CLASSIFIER"], "found a second first"),
        (["--labels", "folder"], "--labels folder"),
        (["--out", ""], "--out: missing"),
    ],
)
def test_bad_input_is_one_line(change, line, run, asked, checkpoints):
    names = {"MODEL": str(checkpoints["model"]), "first=CLASSIFIER": f"first={checkpoints['classifier']}"}
    failed = run(PROGRAM, [*asked, *(names.get(word, word) for word in change)], fails=True)
    assert failed.statuses == [2] and len(failed.error_lines) == 1 and len(failed.stderr.splitlines()) == 1
    assert names.get(line, line) in failed.error_lines[0]


@pytest.mark.slow
def test_labels_that_nothing_numbers(run, checkpoints, tmp_path):
    """A checkpoint that names no classes, and images of fewer: which number is which?"""
    bare = make_checkpoint(tmp_path / "bare", "classifier")
    make_images(tmp_path / "few", classes=3)
    flags = SHORT | {"model_path": checkpoints["model"], "data_dir": "few", "out": "out"}
    failed = run(PROGRAM, words(flags, {"bare": bare}), fails=True)
    assert "found 3 classes, but the classifier has 4 and no config.json that names them" in failed.error_lines[0]
    lines = [f"{path.name},{path.name[1]}" for path in sorted((tmp_path / "few").iterdir())]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    run(PROGRAM, words(flags | {"labels": "labels.csv"}, {"bare": bare}))

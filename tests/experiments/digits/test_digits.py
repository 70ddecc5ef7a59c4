"""The demo: its split, its table, what the page concludes, and a short run from the data to the report."""

import html
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from experiments.commands import Commands  # noqa: E402
from experiments.digits import data  # noqa: E402
from experiments.digits.data import write_parts  # noqa: E402
from experiments.digits.page import METRICS, TABLE, TRACED_SCALE, Page  # noqa: E402
from experiments.figures.inputs import SERIES  # noqa: E402
from experiments.plan import plan  # noqa: E402
from experiments.spec_files import load  # noqa: E402
from tests.support.experiments import parse_command  # noqa: E402
from tests.support.helpers import ROOT  # noqa: E402

BOOK = load(ROOT / "experiments" / "digits" / "recipes")


def test_parts_are_disjoint_cover_everything_and_hold_all_classes():
    _, labels = data.load_images()
    parts = data.split(labels)
    together = np.concatenate(list(parts.values()))
    assert len(together) == 1797
    assert set(together) == set(range(1797))
    for numbers in parts.values():
        shares = np.bincount(labels[numbers], minlength=10) / len(numbers)
        assert shares == pytest.approx(np.bincount(labels) / len(labels), abs=0.01)


def test_images_use_the_whole_range():
    images, _ = data.load_images()
    assert (images.shape, images.dtype) == ((1797, 8, 8), np.uint8)
    assert set(np.unique(images)) == {round(value * 255 / 16) for value in range(17)}


def test_shipped_model_is_small():
    assert (ROOT / BOOK.networks["uncond"].checkpoint).stat().st_size <= 3e6


def test_thirteen_configurations_of_the_same_noise_four_of_them_looked_at(tmp_path):
    table = BOOK.tables[TABLE]
    names = [name for row in table.rows for name in row.run_names]
    assert len(set(names)) == len(names) == 13
    assert sum(name.endswith(f"-{TRACED_SCALE:g}") for name in names) == 4
    steps = plan(Commands(BOOK, out=tmp_path, processes=1), table.rows)
    commands = [parse_command(step.command, 1)[2] for step in steps if step.name.startswith("sample-")]
    assert [command["seed"] for command in commands] == [0, 1] * 13
    for flag in ("num_samples", "batch_size", "timestep_respacing", "balanced", "model_path"):
        assert len({command[flag] for command in commands}) == 1


def fabricate(out: Path, fids: dict[str, float]) -> Commands:
    """What a run of the table leaves, with FIDs by run, 0.5 elsewhere; seeds 0.04 apart."""
    book = replace(BOOK, seeds=(0, 1))
    commands = Commands(book, out=out, processes=1)
    common = {"sfid": None, "inception_score": None, "engine": "features", "reference": "heldout.npz"}
    steps, rng = 5, np.random.RandomState(0)
    write_parts(out / "data")
    for row in book.tables[TABLE].rows:
        for run in (book.runs[name] for name in row.run_names):
            for seed in book.seeds:
                fid = fids.get(run.name, 0.5) + 0.04 * (seed - 0.5)
                scores = {"fid": fid, "precision": 0.5 + 0.1 * seed, "recall": 0.5, "accuracy": 0.5}
                (path,), samples = commands.evaluate(run, seed).outputs, commands.samples(run, seed)
                path.parent.mkdir(parents=True, exist_ok=True)
                samples.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(scores | common | {"n_samples": 400, "samples": str(samples)}))
                images = rng.randint(0, 256, (400, 8, 8, 1)).astype(np.uint8)
                np.savez(samples, arr_0=images, arr_1=np.arange(400) % 10)
                t = np.tile(np.linspace(960, 0, steps).astype(np.int64), (400, 1))
                series = rng.uniform(0.02, 0.3, (4, 400, steps))
                np.savez(commands.trace_file(run, seed), t=t, **dict(zip(SERIES, series, strict=True)))
        if row.batch:
            scores = {"fid": 0.1, "precision": 0.9, "recall": 0.9, "accuracy": 0.9, "n_samples": 898}
            (path,) = commands.evaluate_batch(row).outputs
            path.write_text(json.dumps(scores | common | {"samples": "train.npz"}))
    return commands


@pytest.mark.parametrize(
    ("eds_fid", "expected"), [(0.1, "EDS beats"), (0.5, "EDS does not beat"), (0.9, "EDS is worse")]
)
def test_the_verdict_follows_the_numbers(eds_fid, expected, tmp_path):
    """All runs at 0.5 but those with EDS, each with seeds 0.04 apart."""
    names = [name for row in BOOK.tables[TABLE].rows for name in row.run_names if "-eds-" in name]
    page = Page(fabricate(tmp_path, dict.fromkeys(names, eds_fid)))
    # Two seeds d apart have a variance of d^2 / 2; so has the difference of two means of two.
    pair = page.rows["ect-eds"], page.rows["ect-constant"]
    assert page.compare(*pair, "precision").noise == pytest.approx(0.1 / 2**0.5)
    assert page.verdict().startswith(expected)
    (tmp_path / "p.png").write_bytes(b"")
    names = ("vanishing", "vanishing-points", *METRICS, "samples")
    text = html.unescape(page.html(dict.fromkeys(names, tmp_path / "p.png"), "commands"))
    assert text.count(page.verdict()) == 2 and text.count('<td class="prose">') == 5
    assert page.traces["plain-constant"].series["grad_norm"].shape == (800, 5)
    gone = page.vanished("plain-constant").any(axis=1)
    assert f"{gone.mean():.0%} of the samples have a vanished gradient" in text
    assert page.summary().splitlines()[-1].split() == ["real", "digits", "-", "0.900", "0.1000", "0.900", "0.900"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_quick_run(tmp_path):
    program = str(ROOT / "experiments" / "digits" / "run.py")
    command = [sys.executable, program, "--quick", "--out", str(tmp_path / "a demo")]
    first = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    out = tmp_path / "a demo"

    files = [{path.name for path in (out / "data" / part).iterdir()} for part in data.PARTS]
    assert len(set.union(*files)) == sum(map(len, files)) == 1797

    report = (out / "report.html").read_text()
    assert str(out / "report.html") in first.stdout
    assert "nan" not in re.sub(r'"data:[^"]*"', "", report)
    table_rows = re.findall(r"<tr class=[^>]*>.*?</tr>", report.split("</table>")[0])
    assert len(table_rows) == 13 + 1  # and real digits
    assert not re.findall(r'(?:src|href)="(?!data:)', report)
    assert report.count("data:image/png;base64,iVBOR") == 7
    titles = re.findall("<h2>(.*?)</h2>", report)
    assert titles == ["Does the guidance vanish?", "Does it make better samples?", "Samples",
                      "The paper's claims and this run", "Commands, run from the repository root"]  # fmt: skip
    assert report.count("python scripts/classifier_sample.py") == 13 and "One seed only" in report
    assert len(list(out.glob("samples/*/trace.npz"))) == 4

    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert first.stdout.count(" s in all") == 1 + 3 + 13 + 14 and " s in all" not in again.stdout
    clash = subprocess.run([*command[:2], "--out", str(out)], capture_output=True, text=True)
    assert clash.returncode == 2
    assert len(clash.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_demo_of_an_earlier_version_is_left_alone(tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    command = [sys.executable, str(ROOT / "experiments" / "digits" / "run.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "found a demo of an earlier version" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]

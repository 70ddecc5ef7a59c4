"""One registry of metrics, one walk through a folder, one way to read flags: what the evaluator does once."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluations import convert, evaluator, image_sets, make_reference
from evaluations.features.classifier import ClassifierExtractor
from evaluations.metrics.metric import Sets
from evaluations.metrics.registry import METRICS
from experiments.figures import cli
from experiments.report import write_report
from guided_diffusion.config import flags
from guided_diffusion.errors import InputError
from guided_diffusion.io import images
from tests.support.documents import run_example
from tests.support.evaluations import make_images, write_classifier
from tests.support.fabricated_results import BOOK, put_run


@pytest.fixture
def bright(monkeypatch):
    """The metric of docs/extending.md, registered."""
    monkeypatch.setitem(METRICS, "bright", None)  # removed after the test
    run_example("extending.md", "A metric")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    write_classifier(tmp_path / "run")
    np.savez("ref.npz", make_images(0, 24, 16))
    np.savez("s.npz", make_images(1, 20, 16), np.arange(20) % 5)
    np.savez("other.npz", make_images(2, 20, 16))
    return tmp_path


def call(monkeypatch, *argv: str) -> dict:
    monkeypatch.setattr(
        sys, "argv", ["evaluator.py", "ref.npz", "s.npz", "--features", "run", "--json", "o.json", *argv]
    )
    evaluator.main()
    return json.loads(Path("o.json").read_text())


def test_a_new_metric_is_everywhere(place, bright, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluator.py", "--help"])
    with pytest.raises(SystemExit):
        evaluator.main()
    assert "accuracy, bright" in " ".join(capsys.readouterr().out.split())
    written = call(monkeypatch, "--bootstrap", "3", "--paired", "other.npz", "--paired_rounds", "3")
    lines = capsys.readouterr().out.splitlines()
    assert f"Brightness: {written['bright']}" in lines
    assert {"Brightness 95% interval", "Brightness paired difference"} <= {line.split(":")[0] for line in lines}
    call(monkeypatch, "--markdown", "--metrics", "fid,bright")
    assert "| FID | Brightness |" in capsys.readouterr().out


def test_a_new_metric_is_in_report_and_plot(tmp_path, bright, monkeypatch):
    for run, bright in (("plain", 0.25), ("range-5", 0.5)):
        put_run(tmp_path, run, 10.0)
        (path,) = (tmp_path / "metrics").glob(f"{run}-seed*.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"bright": bright}))
    write_report(BOOK, tmp_path)
    assert "Brightness" in (tmp_path / "report.md").read_text()
    with open(tmp_path / "runs.csv", newline="") as file:
        assert "0.25" in {row["bright"] for row in csv.DictReader(file)}
    pytest.importorskip("matplotlib")
    shown = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_ylabel", lambda axes, text, **_: shown.append(text))
    cli.draw(["samplers", tmp_path, "--metric", "bright"], tmp_path / "p.png")
    assert "Brightness" in shown and "bright" in (tmp_path / "p.csv").read_text()


def test_only_some_metrics(place, monkeypatch, capsys):
    written = call(monkeypatch, "--metrics", "fid,recall")
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["FID", "Recall"]
    assert written["precision"] is None and written["kid"] is None and written["recall"] is not None
    call(monkeypatch, "--metrics", "kid", "--extra", "--kid_subset_size", "8")
    titles = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert titles == ["KID", "KID deviation", "Density", "Coverage"]
    with pytest.raises(InputError, match="--metrics: found 'fdi', expected some of inception_score, fid, "):
        call(monkeypatch, "--metrics", "fdi")


def test_metrics_share_what_they_have_in_common():
    sets, calls = Sets(None, None, None), []
    assert [sets.once(calls.append), sets.once(calls.append)] == [None, None]
    assert calls == [sets]


def test_a_folder_is_walked_once_and_a_header_opened_once_before_the_network_runs(place, monkeypatch):
    Path("folder").mkdir()
    for i, pixels in enumerate(make_images(1, 6, 16)):
        Image.fromarray(pixels).save(f"folder/{i % 3}_{i}.png")
    calls, before = Counter(), []

    def counted(module, name: str) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **kwargs: calls.update([name]) or function(*args, **kwargs))

    counted(image_sets, "list_images"), counted(image_sets, "open_image"), counted(image_sets, "read_image")
    counted(os, "scandir")
    compute = ClassifierExtractor.compute_activations
    monkeypatch.setattr(
        ClassifierExtractor, "compute_activations", lambda *args: before.append(dict(calls)) or compute(*args)
    )
    monkeypatch.setattr(sys, "argv", ["evaluator.py", "ref.npz", "folder", "--features", "run/model000010.pt"])
    evaluator.main()
    assert calls["list_images"] == 1 and calls["scandir"] == 1
    assert before[1]["open_image"] == 6 and "read_image" not in before[1]
    assert calls["open_image"] == 6 and calls["read_image"] == 6


def test_the_limit_of_pixels_is_read_once(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    asked = []
    whole_number = images.launch.whole_number
    monkeypatch.setattr(images.launch, "whole_number", lambda *a, **k: asked.append(1) or whole_number(*a, **k))
    images.pixel_limit.cache_clear()
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    for _ in range(3):
        images.open_image(io.BytesIO(buffer.getvalue())).close()
    assert len(asked) == 1 and Image.MAX_IMAGE_PIXELS == 89_478_485


@pytest.mark.parametrize("program", [evaluator, make_reference, convert])
def test_help_is_printed_by_the_first_rank_only(program, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program", "--help"])
    for rank in (0, 1):
        monkeypatch.setattr(flags, "get_rank", lambda rank=rank: rank)
        with pytest.raises(SystemExit):
            program.main()
        assert ("--exif_transpose" in capsys.readouterr().out) == (rank == 0)

"""benchmarks.frontier: the settings that it times, and that ours and upstream's DDIM 25 make the same images."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import frontier, machine
from benchmarks.upstream import require_upstream
from experiments.documents import csv_text
from experiments.frontier.report import COLUMNS
from experiments.frontier.settings import references
from experiments.spec_files import load


def record(name: str, work: float, high: float, flags: str = "", eds: bool = False) -> dict:
    change = {"ddim25_percent": high - 1, "ddim25_low": high - 2, "ddim25_high": high}
    return dict.fromkeys(COLUMNS) | {"setting": name, "work": work, "fid": 1.0, "eds": eds, "flags": flags} | change


@pytest.mark.slow
def test_its_report(monkeypatch, tmp_path, capsys):
    require_upstream()
    unit = references(load(frontier.RECIPES / "cifar10"))[0]
    flags = " ".join(f"--{name} {value}" for name, value in unit.flags.items())
    fast = flags.replace("--use_ddim True", "--sampler dpmpp2m").replace("ddim25", "ddim5")
    rows = [
        record("worse", 0.1, 3.0, fast), record("dear", 0.5, 0.0, fast), record("fast", 0.2, 1.0, fast),
        record("cached", 0.3, 2.0, f"{fast} --eds True --cache_every 2 --guidance_every 2", eds=True),
        record(unit.name, 1.0, 0.0, flags),
    ]  # fmt: skip
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "frontier.csv").write_text(csv_text(COLUMNS, rows))
    monkeypatch.setattr(frontier, "RESULTS", tmp_path)
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["frontier", "--batch_size", "2", "--rounds", "2"])
    frontier.main()
    (path,) = tmp_path.glob("*-frontier-cifar10-*.json")
    report = json.loads(path.read_text())
    assert [row["setting"] for row in report["rows"]] == [unit.name, "fast", "cached"]
    assert report["rows"][0]["difference"] < 1e-4  # over 25 steps in float32
    assert all(row["ratio"] > 0 for row in report["rows"])
    assert "cached: " in capsys.readouterr().out

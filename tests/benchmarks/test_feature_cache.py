"""The feature cache's benchmark at its smallest."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import feature_cache, machine
from benchmarks.builders import SMALLEST


def test_its_report(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(feature_cache, "SETTINGS", {"tiny": SMALLEST})
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["feature_cache", "--config", "tiny", "--steps", "6", "--rounds", "2"])
    feature_cache.main()
    (path,) = tmp_path.glob("*-feature-cache-tiny-*.json")
    rows = json.loads(path.read_text())["rows"]
    assert [(row["depth"], row["every"]) for row in rows] == [(d, n) for d in (1, 2) for n in (2, 3, 5)]
    assert all(row["ratio"] > 0 and row["difference"] > 0 for row in rows)
    for row in rows:  # of 6 steps 3, 2 and 2 are whole
        whole = {2: 3, 3: 2, 5: 2}[row["every"]]
        assert 1 < row["work_ratio"] < 6 / whole
    assert rows[1]["work_ratio"] == pytest.approx(rows[2]["work_ratio"])
    out, err = capsys.readouterr()
    assert out.count("times as fast") == 6 and f"written to {path}" in err


def test_no_results_are_written_over(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    for number in range(3):
        machine.save_result("A CPU (2)", "what", {"number": number})
    found = {path.stem.split("-what-")[1][10:]: json.loads(path.read_text()) for path in tmp_path.glob("a-cpu-2-*")}
    assert found == {"": {"number": 0}, "-2": {"number": 1}, "-3": {"number": 2}}

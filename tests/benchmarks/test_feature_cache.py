"""The feature cache's benchmark at its smallest."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import feature_cache
from benchmarks.builders import SMALLEST


def test_its_report(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(feature_cache, "SETTINGS", {"tiny": SMALLEST})
    monkeypatch.setattr(feature_cache, "result_path", lambda *_: tmp_path / "found.json")
    monkeypatch.setattr(sys, "argv", ["feature_cache", "--config", "tiny", "--steps", "6", "--rounds", "2"])
    feature_cache.main()
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [(row["depth"], row["every"]) for row in rows] == [(d, n) for d in (1, 2) for n in (2, 3, 5)]
    assert all(row["ratio"] > 0 and row["difference"] > 0 for row in rows)
    for row in rows:  # of 6 steps 3, 2 and 2 are whole
        whole = {2: 3, 3: 2, 5: 2}[row["every"]]
        assert 1 < row["work_ratio"] < 6 / whole
    assert rows[1]["work_ratio"] == pytest.approx(rows[2]["work_ratio"])
    assert capsys.readouterr().out.count("times as fast") == 6

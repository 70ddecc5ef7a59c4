"""The table of our evaluator beside upstream's."""

from __future__ import annotations

from benchmarks import evaluation


def test_the_table_has_no_column_of_upstreams_without_it():
    result = {"figures": {"fid": 1.0}, "cpu_seconds": {"statistics": 1.0}, "peak_bytes": 1e9}
    ours = {**result, "bootstrap_round_cpu_seconds": 1.5}
    alone = evaluation.table({"count": 5, "evaluators": {"ours": ours}})
    both = evaluation.table({"count": 5, "evaluators": {"ours": ours, "upstream": result}})
    seconds = "| processor seconds, statistics | 1.0 |"
    assert seconds in alone and f"{seconds} 1.0 | 1.0 |" in both
    assert "| FID | 1 |" in alone and "| FID | 1 | 1 | 0.0e+00 |" in both


def test_ours_is_measured_alone(monkeypatch):
    monkeypatch.setattr(evaluation, "POOL", 64)
    monkeypatch.setattr(evaluation, "SPATIAL", 60)
    result = evaluation.evaluate(None, 50)
    assert set(result["figures"]) == set(evaluation.TITLES) and result["bootstrap_round_cpu_seconds"] > 0

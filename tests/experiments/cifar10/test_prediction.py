"""Rank correlations of a diagnosis with FID."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from scipy.stats import spearmanr

from experiments.cifar10 import prediction
from experiments.documents import csv_text
from guided_diffusion.errors import InputError


def test_the_correlation_is_scipys_also_with_ties_and_the_interval_covers_the_truth():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        x = rng.integers(0, 12, size=25).astype(float)
        y = x + rng.normal(scale=6, size=25)
        value, low, high = prediction.correlation(x, y, replicates=400)
        assert value == pytest.approx(spearmanr(x, y).statistic)
        covered += low <= 0.5 <= high  # Spearman's correlation of these two is 0.5
    assert covered >= 48


def test_the_order_of_a_constant_is_unknown():
    assert np.isnan(prediction.correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], replicates=20)).all()


def entry(quality: float) -> dict:
    overall = {"accuracy": [quality], "cross_entropy": [1 - quality], "ece": [quality], "s_star": [1 + quality]}
    return {"rules": {"constant": {"gain": [quality]}}, "overall": overall}


def test_what_orders_fid_has_correlation_1_and_what_reverses_it_minus_1(tmp_path):
    qualities = {f"kind-{number}": 0.1 * number for number in range(1, 6)}
    (tmp_path / "diagnose.json").write_text(json.dumps({"classifiers": {k: entry(v) for k, v in qualities.items()}}))
    runs = [
        {"run": name, "classifier": name, "guidance": rule, "seed": seed, "fid": 1 - quality + 0.01 * seed}
        for name, quality in qualities.items() for rule in ("constant", "entropy") for seed in (1, 2)
    ]  # fmt: skip
    (tmp_path / "runs.csv").write_text(csv_text(list(runs[0]), runs))
    prediction.main([str(tmp_path / "diagnose.json"), str(tmp_path)])
    text = (tmp_path / "prediction.md").read_text()
    for measure, sign in zip(prediction.MEASURES, "+++--", strict=True):
        lines = [line for line in text.splitlines() if f"| {measure} " in line]
        assert len(lines) == 2 and all(f" {sign}1.00 ({sign}1.00 to {sign}1.00) " in line for line in lines), text
    mean = "0.300 (0.100 to 0.500)"  # of the accuracies, and of the ECEs
    assert re.search(rf"\| kind +\| {re.escape(mean)} \| {re.escape(mean)} \| 1\.300 \(1\.100 to 1\.500\) ", text)
    assert text.count("0.715 (0.515 to 0.915)") == 2, text  # FID, constant and EDS
    assert (tmp_path / "prediction.png").stat().st_size > 1000
    assert len((tmp_path / "prediction.csv").read_text().splitlines()) == 11
    (tmp_path / "runs.csv").write_text(csv_text(list(runs[0]), runs[:8]))
    with pytest.raises(InputError, match="fewer than four classifiers"):
        prediction.main([str(tmp_path / "diagnose.json"), str(tmp_path)])
    runs[-1]["run"] = "another"
    (tmp_path / "runs.csv").write_text(csv_text(list(runs[0]), runs))
    with pytest.raises(InputError, match="runs.csv: found another, kind-5, expected one run of kind-5 and entropy"):
        prediction.main([str(tmp_path / "diagnose.json"), str(tmp_path)])
    (tmp_path / "diagnose.json").write_text("{}")
    with pytest.raises(InputError, match="diagnose.json: found no gains of classifiers, expected diagnose.json of"):
        prediction.main([str(tmp_path / "diagnose.json"), str(tmp_path)])

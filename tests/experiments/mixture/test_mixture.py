"""The mixture's closed forms against autograd and brute force, and the study: it searches, writes and resumes."""

from __future__ import annotations

import csv
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from experiments.mixture import __main__ as program
from experiments.mixture import study
from experiments.mixture.distances import Truth
from experiments.mixture.networks import entropy_constrained, exact_noise, sharpened
from experiments.mixture.study import Cell, Laboratory, cells, read_spec, tune

SPEC = read_spec(quick=True)


@pytest.fixture(scope="module", params=["plane", "directions"])
def mixture(request):
    return Laboratory(read_spec()).mixture(request.param)


@pytest.fixture
def batch(mixture):
    """x_t [6, D] and t [6], from almost the image to noise."""
    generator = torch.Generator().manual_seed(0)
    y, t = torch.arange(6), torch.tensor([0, 10, 100, 300, 600, 999])
    x_0 = mixture.draw(y, generator)
    abar = mixture.abar_T[t][:, None]
    noise = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype)
    return abar.sqrt() * x_0 + (1 - abar).sqrt() * noise, t


def log_density(mixture, x, t, y=None):
    """log p(x_t) by torch's own mixture, or log p(x_t, y)."""
    abar = mixture.abar_T[t]
    scale = (abar * mixture.deviation**2 + 1 - abar).sqrt()
    components = torch.distributions.Normal(abar.sqrt()[:, None, None] * mixture.means_JD, scale[:, None, None])
    log_p = components.log_prob(x[:, None]).sum(2) - torch.tensor(float(len(mixture.means_JD))).log()
    return (log_p if y is None else log_p.where(mixture.class_J == y[:, None], -torch.inf)).logsumexp(1)


@pytest.mark.parametrize("y", [None, torch.tensor([0, 1, 2, 9, 8, 7])])
def test_the_noise_is_the_score(mixture, batch, y):
    x, t = batch
    x = x.requires_grad_()
    (score,) = torch.autograd.grad(log_density(mixture, x, t, y).sum(), x)
    expected = -(1 - mixture.abar_T[t]).sqrt()[:, None] * score
    torch.testing.assert_close(exact_noise(mixture)(x.detach(), t, y=y), expected, rtol=1e-8, atol=1e-10)


def test_the_conditional_score_is_score_plus_classifier(mixture, batch):
    """grad log p(x_t | y) = grad log p(x_t) + grad log p(y | x_t)."""
    x, t = batch
    x, y = x.requires_grad_(), torch.arange(6)
    own = mixture.class_J[None] == y[:, None]
    log_p = mixture.log_components(x, t)
    (joint,) = torch.autograd.grad(torch.where(own, log_p, -torch.inf).logsumexp(1).sum(), x, retain_graph=True)
    (whole,) = torch.autograd.grad(log_p.logsumexp(1).sum(), x)
    (classifier,) = torch.autograd.grad(sharpened(mixture, 1.0)(x, t).log_softmax(1)[range(6), y].sum(), x)
    torch.testing.assert_close(joint - whole, classifier, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("eta", [0.05, 0.2, 2.0])
def test_the_ect_classifier_minimises_its_loss(mixture, batch, eta):
    x, t = batch
    p = mixture.log_classes(x, t).softmax(1)

    def loss(log_q):
        return (eta * (log_q.exp() * log_q).sum(1) - (p * log_q).sum(1)).sum()

    found = entropy_constrained(mixture, eta)(x, t)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(6, dtype=torch.float64))
    z = found.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(z.log_softmax(1)), z)
    assert gradient.abs().max() < 1e-8
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        other = (found + 0.1 * torch.randn(found.shape, generator=generator, dtype=torch.float64)).log_softmax(1)
        assert loss(other) > loss(found)
    x, t = x[3:5, :].requires_grad_(), t[3:5]
    assert torch.autograd.gradcheck(lambda x: entropy_constrained(mixture, eta)(x, t), (x,), eps=1e-6, atol=1e-4)


def test_energy_distance_is_the_mean_over_pairs(mixture):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(40) % 10
    reference = mixture.draw(y, generator)
    x = (mixture.draw(y, generator) * 1.2).clamp(-1.5 * mixture.reach, 1.5 * mixture.reach)

    def distance(x, y):
        ab, aa, bb = ([float((a - b).norm()) for a in u for b in v] for u, v in ((x, y), (x, x), (y, y)))
        n = len(x)
        return 2 * sum(ab) / n**2 - (sum(aa) + sum(bb)) / (n * (n - 1))

    found = Truth(mixture, y, reference, box=1.5).measure(x)
    assert found["marginal"] == pytest.approx(distance(x, reference), abs=1e-6)
    within = [distance(x[y == k], reference[y == k]) for k in range(10)]
    assert found["within"] == pytest.approx(sum(within) / 10, abs=1e-6)


def test_what_diverged_counts_at_the_edge_of_the_box(mixture):
    y = torch.arange(40) % 10
    truth = Truth(mixture, y, mixture.draw(y, torch.Generator().manual_seed(0)), box=1.5)
    x = mixture.draw(y, torch.Generator().manual_seed(1))
    near, far = x.clone(), x.clone()
    near[0], far[0], far[1] = 1.5 * mixture.reach, 1e12, torch.nan
    near[1] = near[0]
    found = truth.measure(far)
    assert found["lost"] == 2 / 40 and truth.measure(x)["lost"] == 0
    assert found | {"lost": 0.0} == truth.measure(near)


@pytest.mark.parametrize("best", [0.001, 0.3, 1.0, 9.0, 5000.0])
def test_the_scales_move_to_the_best(best):
    asked = []

    def value(scale):
        asked.append(scale)
        return abs(scale - best)

    found = tune([0.5, 1.0, 2.0], 0.125, 1024.0, value)
    assert found == min(max(best, 0.125), 1024.0) or 0.6 < found / best < 1.5
    assert len(asked) == len(set(asked))


def test_the_study_resumes(tmp_path, monkeypatch, capsys):
    few = {"method": ["constant", "eds"], "classifier": ["exact", "learned"], "denoiser": ["learned"], "steps": [5]}
    spec = SPEC | {"samples": 60, "training_steps": 5, "grids": [{"name": "few", **few, "data": ["plane"]}]}
    monkeypatch.setattr(program, "read_spec", lambda quick: json.loads(json.dumps(spec)))
    monkeypatch.setattr(program.figure, "draw", lambda *args: None)  # takes seconds
    monkeypatch.setattr(sys, "argv", ["mixture", "--out", str(tmp_path / "out"), "--jobs", "1"])
    program.main()
    assert str(tmp_path / "out" / "table.md") in capsys.readouterr().out
    table = (tmp_path / "out" / "table.csv").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    assert {(row["classifier"], row["method"], row["chosen_by"]) for row in rows} == {
        (c, r, m) for c in few["classifier"] for r in few["method"] for m in program.CHOSEN_BY
    }
    file = next((tmp_path / "out" / "cells").iterdir())
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]))
    run, again = study.Laboratory.run, []
    monkeypatch.setattr(program, "ProcessPoolExecutor", ThreadPoolExecutor)
    monkeypatch.setattr(study.Laboratory, "run", lambda *args: again.append(args) or run(*args))
    program.main()
    assert (tmp_path / "out" / "table.csv").read_text() == table and file.read_text() == "".join(lines)
    assert len(again) == 1


def test_cells_are_the_grids():
    found = cells(read_spec())
    assert len(found) == len(set(map(str, found))) > 400
    assert Cell("plane", "exact", "exact", "eds", "ddim", 250, 0.0) in found
    assert all(cell.steps <= 25 and cell.data == "plane" for cell in cells(SPEC))

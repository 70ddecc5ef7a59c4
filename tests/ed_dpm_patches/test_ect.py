"""The ECT loss against Eq. 11-12 and its gradient in closed form."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ed_dpm_patches import ect_terms


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(50, 9, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(True), torch.arange(50) % 9


def test_terms_are_cross_entropy_and_divergence_from_uniform(case):
    logits, y = case
    terms = ect_terms(logits, y, weight=0.3)
    p = logits.softmax(-1)
    uniform = torch.full_like(p, 1 / 9)
    kl = F.kl_div(uniform.log(), p, reduction="none").sum(-1)
    torch.testing.assert_close(terms["ce"].double(), F.cross_entropy(logits, y, reduction="none"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms["ect"].double(), kl, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms["loss"], terms["ce"] + 0.3 * terms["ect"])
    torch.testing.assert_close(terms["entropy_ratio"].double(), 1 - kl / math.log(9), rtol=1e-5, atol=1e-6)


def test_gradient_is_the_papers(case):
    """d(CE + eta (log K - H)) / dz = p - onehot + eta p (log p + H)."""
    logits, y = case
    (found,) = torch.autograd.grad(ect_terms(logits, y, weight=0.2)["loss"].sum(), logits)
    p = logits.detach().softmax(-1)
    entropy = -(p * p.log()).sum(-1, keepdim=True)
    expected = p - F.one_hot(y, 9) + 0.2 * p * (p.log() + entropy)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_uniform_prediction_has_no_penalty():
    terms = ect_terms(torch.zeros(3, 17), torch.tensor([0, 5, 16]), weight=1.0)
    torch.testing.assert_close(terms["loss"], torch.full((3,), math.log(17)))


def test_weight_zero_is_plain_cross_entropy(case):
    logits, y = case
    torch.testing.assert_close(ect_terms(logits, y, weight=0.0)["loss"], ect_terms(logits, y)["ce"])


def test_certain_predictions_stay_finite():
    logits = torch.zeros(2, 10)
    logits[:, 0] = 1e4
    logits.requires_grad_(True)
    terms = ect_terms(logits, torch.tensor([0, 1]), weight=0.2)
    (gradient,) = torch.autograd.grad(terms["loss"].sum(), logits)
    assert terms["loss"].isfinite().all() and gradient.isfinite().all()

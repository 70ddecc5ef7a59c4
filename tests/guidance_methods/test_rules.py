"""Rules beyond the paper's: against autograd in float64, against arbitrary precision at certainty, and with EDS."""

from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ed_dpm_patches import ClassifierGuidance, ConstantRule, EntropyRule, GradientNormRule
from ed_dpm_patches.rules import RULES
from guidance_methods import (
    ElucdRule,
    EntropyScaled,
    ForwardKLRule,
    JensenShannonRule,
    MultiRule,
    NegativeRule,
    ReverseKLRule,
    entropy_guidance,
)
from guided_diffusion.errors import InputValueError
from tests.support import exact

K = 6
E = 0.1


def smoothed(y: Tensor, e: float = E) -> Tensor:
    return (1 - e) * F.one_hot(y, K).double() + e / K


def jensen_shannon(z: Tensor, y: Tensor, e: float = E) -> Tensor:
    p, q = z.softmax(1), smoothed(y, e)
    m = (p + q) / 2
    return ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)) / 2


# Each rule, and the log-score [B] of logits [B, K] whose gradient it is.
SCORES = {
    "elucd": (ElucdRule(), lambda z, y: z.gather(1, y[:, None])[:, 0] - (0.5 * z).logsumexp(1)),
    "elucd-t": (
        ElucdRule(t1=1.3, t2=2.0), lambda z, y: 1.3 * z.gather(1, y[:, None])[:, 0] - (2.0 * z).logsumexp(1),
    ),
    "elucd-0": (ElucdRule(t2=0.0, t1=2.0), lambda z, y: 2 * z.gather(1, y[:, None])[:, 0]),
    "kl": (ForwardKLRule(), lambda z, y: (smoothed(y) * z.log_softmax(1)).sum(1)),
    "reverse-kl": (
        ReverseKLRule(), lambda z, y: -(z.softmax(1) * (z.log_softmax(1) - smoothed(y).log())).sum(1),
    ),
    "js": (JensenShannonRule(), lambda z, y: -jensen_shannon(z, y)),
    "js-0.4": (JensenShannonRule(smoothing=0.4), lambda z, y: -jensen_shannon(z, y, 0.4)),
    "multi": (
        MultiRule(classes=(2, 5), weights=(0.5, -0.25)),
        lambda z, y: z.log_softmax(1).gather(1, y[:, None])[:, 0]
        + 0.5 * z.log_softmax(1)[:, 2] - 0.25 * z.log_softmax(1)[:, 5],
    ),
    "negative": (NegativeRule(classes=(1, 4)), lambda z, y: z[:, [0, 2, 3, 5]].logsumexp(1) - z.logsumexp(1)),
}  # fmt: skip
ONE_EACH = [name for name in SCORES if name not in ("elucd-0", "js-0.4")]


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0, 8.0])
def test_directions_are_gradients(name, spread):
    rule, score = SCORES[name]
    z = spread * torch.randn(40, K, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.arange(40) % K
    z.requires_grad_(True)
    (expected,) = torch.autograd.grad(score(z, y).sum(), z)
    found = rule(z.detach(), y, torch.zeros(40))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)


def exact_direction(name: str, z: list[float], y: int) -> list[mp.mpf]:
    """The formulas of the docstrings, word for word."""
    p = exact.softmax(z)
    e = mp.mpf(E)
    q = [(1 - e if k == y else 0) + e / K for k in range(K)]
    onehot = [1 if k == y else 0 for k in range(K)]
    if name.startswith("elucd"):
        t1, t2 = (mp.mpf(1.3), 2) if name == "elucd-t" else (1, mp.mpf(0.5))
        weights = [mp.exp(t2 * (mp.mpf(value) - max(z))) for value in z]
        return [t1 * o - t2 * w / mp.fsum(weights) for o, w in zip(onehot, weights, strict=True)]
    if name == "kl":
        return [b - a for a, b in zip(p, q, strict=True)]
    if name == "multi":
        w = [o + {2: mp.mpf(0.5), 5: mp.mpf(-0.25)}.get(k, 0) for k, o in enumerate(onehot)]
        return [a - mp.fsum(w) * b for a, b in zip(w, p, strict=True)]
    if name == "negative":
        share = p[1] + p[4]
        return [-b if k in (1, 4) else b / (1 - share) - b for k, b in enumerate(p)]
    m, half = (q, 1) if name == "reverse-kl" else ([(a + b) / 2 for a, b in zip(p, q, strict=True)], mp.mpf(0.5))
    divergence = mp.fsum(a * mp.log(a / b) for a, b in zip(p, m, strict=True))
    return [-half * a * (mp.log(a / b) - divergence) for a, b in zip(p, m, strict=True)]


# 1 - p is about 1e-30 at the larger of these.
GAPS = (1.0, 20.0, 70.0)


@pytest.mark.parametrize("eds", [False, True])
@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("top", [3, 0, 1])
@pytest.mark.parametrize("name", ONE_EACH)
def test_directions_match_arbitrary_precision(name, top, gap, eds):
    """Sure of the label 3, of another class, and of one to stay away from; plain, and times log K / H(p)."""
    z = [0.3, -1.1, 0.7, 0.2, -0.4, 0.0]
    z[top] = gap
    rule = EntropyScaled(2.0, SCORES[name][0]) if eds else SCORES[name][0]
    found = rule(torch.tensor([z], dtype=torch.float64), torch.tensor([3]), torch.zeros(1))[0].tolist()
    with mp.workdps(exact.digits_for(z)):
        p = exact.softmax(z)
        factor = 2 * mp.log(K) / exact.entropy(p) if eds else 1
        expected = [factor * v for v in exact_direction(name, z, 3)]
        size = max(abs(v) for v in expected)
        worst = max(abs(mp.mpf(a) - b) / size for a, b in zip(found, expected, strict=True))
    assert size > 0 and worst < 1e-12


@pytest.mark.parametrize("name", ["reverse-kl", "js", "negative"])
def test_eds_is_bounded_where_the_direction_vanishes(name):
    """The larger certainty becomes, the closer the product is to a limit."""
    rule = EntropyScaled(1.0, SCORES[name][0])
    sizes = []
    for gap in (70.0, 700.0, 7e4):
        z = torch.zeros(1, K, dtype=torch.float64)
        z[0, 3] = gap
        sizes.append(rule(z, torch.tensor([3]), torch.zeros(1)).abs().sum().item())
    assert max(sizes) < 20 and all(math.isfinite(size) for size in sizes)
    assert getattr(SCORES[name][0], "vanishes_at_certainty", True)


@pytest.mark.parametrize("name", ["elucd", "kl", "multi"])
def test_eds_asks_for_a_cap_where_it_is_not(name):
    rule = SCORES[name][0]
    z = torch.zeros(1, K, dtype=torch.float64)
    z[0, 3] = 70.0
    y = torch.tensor([3])
    assert EntropyScaled(1.0, rule)(z, y, torch.zeros(1)).abs().sum() > 1e25
    expected = "^--eds_cap: found none .*, expected a number .* does not vanish where the classifier is certain"
    with pytest.raises(InputValueError, match=expected):
        entropy_guidance(lambda x, t: x, rule, gamma=2.0)
    found = entropy_guidance(lambda x, t: x, rule, gamma=2.0, cap=5.0)(z, 0, y=y)
    assert found.abs().sum().item() == pytest.approx(5 * 2 * math.log(K))


@pytest.mark.parametrize("gap", [0.0, 15.0, 69.1, 1e3, 1e5])
@pytest.mark.parametrize("name", ONE_EACH)
def test_no_logits_give_inf_or_nan(name, gap):
    for top in range(K):
        z = torch.zeros(1, K)
        z[0, top] = gap
        assert SCORES[name][0](z, torch.tensor([3]), torch.zeros(1)).isfinite().all()
        assert EntropyScaled(2.0, SCORES[name][0])(z, torch.tensor([3]), torch.zeros(1)).isfinite().all()


def test_the_entropy_factor_is_the_papers():
    z = 4 * torch.randn(50, K, generator=torch.Generator().manual_seed(0))
    y = torch.arange(50) % K
    t = torch.zeros(50)
    torch.testing.assert_close(EntropyScaled(3.0)(z, y, t), EntropyRule(3.0)(z, y, t), rtol=1e-12, atol=0)
    torch.testing.assert_close(ElucdRule(t2=1.0)(z, y, t), ConstantRule()(z, y, t), rtol=1e-12, atol=0)
    weak = EntropyScaled(1.0, GradientNormRule(1.0, factor=3.0, bound=99.0))
    x, records = z.double(), []
    guidance = ClassifierGuidance(lambda x, t: x, weak, observer=records.append)
    torch.testing.assert_close(guidance(x, t, y=y), 3 * EntropyRule()(x, y, t), rtol=1e-12, atol=0)


def test_elucd_stays_bounded_and_does_not_vanish():
    z = torch.tensor([[500.0, 0, 0], [0, 500.0, 0]])
    v = ElucdRule()(z, torch.tensor([0, 0]), torch.zeros(2))
    torch.testing.assert_close(v, torch.tensor([[0.5, 0, 0], [1, -0.5, 0]], dtype=torch.float64))


def test_the_divergences_rest_at_their_target():
    y = torch.tensor([2])
    for rule in (ForwardKLRule, ReverseKLRule, JensenShannonRule):
        assert rule()(smoothed(y).log(), y, torch.zeros(1)).abs().max() < 1e-15


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ElucdRule(t2=math.nan), "t2: found nan, expected a finite number"),
        (lambda: ReverseKLRule(smoothing=0.0), "smoothing: found 0.0, expected a number between 0 and 1"),
        (lambda: MultiRule(classes=(1, 2), weights=(1.0,)), "weights: found 1 for 2 classes"),
        (lambda: MultiRule(label_weight=0.0), "weights: found none but 0"),
        (lambda: NegativeRule(), "classes: found none"),
        (lambda: NegativeRule(classes=(0, 9))(torch.zeros(1, 3), torch.tensor([0]), torch.zeros(1)), "found 9, .* 2$"),
        (lambda: NegativeRule(classes=(0, 1))(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1)), "found all 2"),
        (lambda: EntropyScaled(1.0, ElucdRule(2.0)), "rule: found a gamma of 2.0, expected 1"),
        (lambda: ForwardKLRule(-1.0), "gamma: found -1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_the_rules_are_registered():
    assert {"elucd", "kl", "reverse-kl", "js", "multi", "negative"} <= RULES.keys()
    assert RULES["elucd"](gamma=2.0) == ElucdRule(2.0)

"""p, 1 - p_y, H and the rules against arbitrary precision, for any logits."""

from __future__ import annotations

import importlib
import math
import sys
import warnings

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ed_dpm_patches import (
    ClassifierGuidance,
    ConstantRule,
    EntropyRule,
    GradientNormRule,
    GuidanceRule,
    RangeRule,
    Softmax,
)
from tests.support import exact

RELATIVE = 1e-12

values = st.floats(-1, 1, allow_nan=False, width=32)


@st.composite
def logits_and_label(draw):
    """2 to 40 logits at any spread from nothing to far beyond exp()'s range, and a label."""
    spread = draw(st.sampled_from([0.0, 0.01, 1.0, 10.0, 75.0, 300.0]))
    logits = [spread * x for x in draw(st.lists(values, min_size=2, max_size=40))]
    return logits, draw(st.integers(0, len(logits) - 1))


@settings(max_examples=150, deadline=None)
@given(logits_and_label())
def test_statistics_match_arbitrary_precision(case):
    logits, y = case
    p = Softmax.of(torch.tensor([logits], dtype=torch.float64))
    with mp.workdps(exact.digits_for(logits)):
        reference = exact.softmax(logits)
        assert exact.relative_error(p.log_entropy.exp().item(), exact.entropy(reference)) < RELATIVE
        assert abs(p.log_entropy.item() - float(mp.log(exact.entropy(reference)))) < 1e-10
        others = mp.fsum(q for k, q in enumerate(reference) if k != y)
        assert abs(p.log_one_minus_p(torch.tensor([y])).item() - float(mp.log(others))) < 1e-10


@settings(max_examples=150, deadline=None)
@given(logits_and_label(), st.booleans(), st.floats(0.01, 20))
def test_rules_match_arbitrary_precision(case, eds, gamma):
    logits, y = case
    rule = (EntropyRule if eds else ConstantRule)(gamma)
    v = rule(torch.tensor([logits], dtype=torch.float64), torch.tensor([y]), torch.zeros(1))[0]
    with mp.workdps(exact.digits_for(logits)):
        reference = exact.gradient_on_logits(logits, y, gamma, eds)
        if max(abs(x) for x in reference) > mp.mpf("1e300"):
            assert v.isfinite().all()
            return
        worst = max(exact.relative_error(a, b) for a, b in zip(v.tolist(), reference, strict=True))
    assert worst < RELATIVE


@pytest.mark.parametrize("gap", [1.0, 15.0, 69.1, 200.0, 1e3, 1e5])
@pytest.mark.parametrize("right", [True, False])
def test_no_logits_give_inf_or_nan(gap, right):
    logits = torch.zeros(1, 1000)
    logits[0, 3] = gap
    y = torch.tensor([3 if right else 7])
    for rule in (ConstantRule(2.0), EntropyRule(2.0)):
        assert rule(logits, y, torch.zeros(1)).isfinite().all()


def test_certain_and_right_keeps_its_guidance():
    """The limit of Eq. 10: for one rival at distance d, v_y -> gamma log K / (1 + d), however certain."""
    for gap in (50.0, 500.0, 5000.0):
        logits = torch.tensor([[gap, 0.0]], dtype=torch.float64)
        v = EntropyRule(3.0)(logits, torch.tensor([0]), torch.zeros(1))
        assert v[0, 0].item() == pytest.approx(3.0 * math.log(2) / (1 + gap), rel=1e-12)


def test_uniform_prediction_is_not_rescaled():
    logits = torch.full((2, 7), 4.2)
    y = torch.tensor([0, 6])
    torch.testing.assert_close(EntropyRule(1.5)(logits, y, y), ConstantRule(1.5)(logits, y, y), rtol=1e-12, atol=0)


def test_scale_never_falls_below_gamma():
    logits = 4 * torch.randn(500, 12, generator=torch.Generator().manual_seed(0))
    y = torch.arange(500) % 12
    ratio = EntropyRule(1.0)(logits, y, y).abs().sum(1) / ConstantRule(1.0)(logits, y, y).abs().sum(1)
    assert (ratio >= 1 - 1e-12).all()
    entropy = torch.distributions.Categorical(logits=logits.double()).entropy()
    torch.testing.assert_close(ratio, math.log(12) / entropy, rtol=1e-10, atol=0)


def test_masked_classes_are_allowed():
    logits = torch.tensor([[2.0, 1.0, -math.inf]])
    v = EntropyRule(1.0)(logits, torch.tensor([0]), torch.zeros(1))
    assert v.isfinite().all() and v[0, 2] == 0


@pytest.mark.parametrize(
    ("logits", "y"),
    [
        (torch.zeros(2, 1), torch.zeros(2, dtype=torch.long)),
        (torch.zeros(4), torch.zeros(4, dtype=torch.long)),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long)),
        (torch.zeros(2, 3), torch.zeros(2)),
    ],
)
def test_wrong_shapes_are_named(logits, y):
    with pytest.raises(ValueError, match="found .*expected"):
        EntropyRule(1.0)(logits, y, y)


def test_factors_are_not_rounded_to_float32():
    p, t = Softmax.of(torch.zeros(2, 3)), torch.tensor([300, 301])
    assert RangeRule(factor=3.3, until=300).log_scale(p, t, None).tolist() == [math.log(3.3), 0.0]
    norms = torch.tensor([0.1, 0.2], dtype=torch.float64)
    assert GradientNormRule(factor=3.3, bound=0.2).log_scale(p, t, norms).tolist() == [math.log(3.3), 0.0]


class TestOwnRules:
    """Rules and functions that a user writes, through guidance with a classifier whose logits are x itself."""

    LOGITS = torch.tensor([[2.0, 1.0, -1.0], [0.5, 9.0, 0.0]], dtype=torch.float64)
    Y, T = torch.tensor([0, 2]), torch.tensor([10, 20])

    def guide(self, rule, **options):
        guidance = ClassifierGuidance(lambda x, t: x, rule, **options)
        return guidance(self.LOGITS, self.T, y=self.Y), guidance.report.summary()

    def onehot(self) -> torch.Tensor:
        return torch.nn.functional.one_hot(self.Y, 3).double()

    @pytest.mark.parametrize("in_two_parts", [False, True])
    def test_a_direction_of_its_own(self, in_two_parts):
        """The logit of y alone, of any length and given in either form."""

        class Logit(ConstantRule):
            def direction(self, p, y):
                v_BK = 5 * torch.zeros_like(p.rest_BK).scatter(1, y[:, None], 1.0)
                return (torch.full_like(p.log_r_B, math.log(2)), v_BK / 2) if in_two_parts else v_BK

        records = []
        found, summary = self.guide(Logit(3.0), observer=records.append)
        torch.testing.assert_close(found, 15 * self.onehot(), rtol=1e-12, atol=0)
        assert records[0]["grad_norm"].tolist() == pytest.approx([5, 5]) and summary["maximum"] == 3
        torch.testing.assert_close(Logit(3.0)(self.LOGITS, self.Y, self.T), found, rtol=1e-12, atol=0)

    def test_a_scale_by_the_norm_of_the_gradient(self):
        class Normalised(GuidanceRule):
            needs_grad_norm = True

            def log_scale(self, p, t, grad_norm):
                return -grad_norm.log()

        found, _ = self.guide(Normalised(2.0))
        torch.testing.assert_close(found.norm(dim=1), torch.full((2,), 2.0, dtype=torch.float64), rtol=1e-12, atol=0)

    @pytest.mark.parametrize("needs", [False, True])
    def test_the_norm_is_computed_where_it_is_wanted(self, monkeypatch, needs):
        seen, softmaxes, of = [], [], Softmax.of

        class Watching(ConstantRule):
            needs_grad_norm = needs

            def log_scale(self, p, t, grad_norm):
                seen.append(grad_norm)
                return super().log_scale(p, t, grad_norm)

        monkeypatch.setattr(Softmax, "of", lambda logits: softmaxes.append(logits) or of(logits))
        self.guide(Watching())
        self.guide(Watching(), observer=lambda record: None)
        expected = (self.onehot() - self.LOGITS.softmax(dim=1)).norm(dim=1).tolist()
        assert all(norm.tolist() == pytest.approx(expected) for norm in seen) if needs else seen == [None, None]
        assert len(softmaxes) == 2, "one for each call of guidance"

    def test_a_direction_of_zeros_guides_nowhere(self):
        class Nowhere(GuidanceRule):
            needs_grad_norm = True

            def direction(self, p, y):
                return torch.zeros_like(p.rest_BK)

            def log_scale(self, p, t, grad_norm):
                return -grad_norm.log()

        assert not self.guide(Nowhere(2.0))[0].any()

    def test_a_function(self):
        """Its v as it is; gamma counts as 1 for the cap."""

        def function(logits, y, t):
            return t[:, None] * self.onehot().float()

        found, summary = self.guide(function)
        torch.testing.assert_close(found, self.T[:, None] * self.onehot(), rtol=1e-12, atol=0)
        assert (summary["maximum"], summary["capped"]) == (1, 0)
        found, summary = self.guide(function, cap=15 / math.log(3))
        torch.testing.assert_close(found.sum(dim=1).tolist(), [10.0, 15.0])
        assert summary["capped"] == 1
        rule = EntropyRule(2.0)
        found, _ = self.guide(lambda logits, y, t: rule(logits, y, t))
        torch.testing.assert_close(found, self.guide(rule)[0], rtol=1e-12, atol=0)

    def test_the_cap_holds_for_weak_gradients_too(self):
        found, summary = self.guide(GradientNormRule(1.0, factor=50.0, bound=99.0), cap=2 / math.log(3))
        assert found.abs().sum(dim=1).tolist() == pytest.approx([2, 2]) and summary["capped"] == 2

    @pytest.mark.parametrize(
        ("method", "says"),
        [
            ("def log_scale(self, p, t): pass", r"Old.log_scale: .*expected the arguments \(self, p, t, grad_norm\)"),
            ("def __call__(self, logits, y, t): pass", r"Old.__call__: no longer called; override direction"),
            ("def late_factor(self, grad_norm): pass", r"Old.late_factor: no longer called; .*log_scale"),
        ],
    )
    def test_rules_of_the_first_version_say_what_changed(self, method, says):
        with pytest.raises(TypeError, match=f"^{says}.*$"):
            space = {"ConstantRule": ConstantRule}
            exec(f"class Old(ConstantRule):\n    {method}", space)
            ClassifierGuidance(lambda x, t: x, space["Old"]())


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [("probabilities", "softmax", ["Softmax"]), ("report", "scale_stats", ["ScaleReport", "summary_line"])],
)
def test_former_modules_import_with_one_warning(monkeypatch, old, new, names):
    monkeypatch.delitem(sys.modules, f"ed_dpm_patches.{old}", raising=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        moved = importlib.import_module(f"ed_dpm_patches.{old}")
    (warning,) = caught
    assert warning.category is DeprecationWarning
    assert str(warning.message) == f"ed_dpm_patches.{old} is now ed_dpm_patches.{new}"
    current = importlib.import_module(f"ed_dpm_patches.{new}")
    assert all(getattr(moved, name) is getattr(current, name) for name in names)

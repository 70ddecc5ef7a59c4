"""Guidance in an interval of timesteps: what happens outside it, with and without a trace, and as a flag."""

from __future__ import annotations

import pytest
import torch

from ed_dpm_patches import ClassifierGuidance, EntropyRule
from ed_dpm_patches.config import interval, parse_interval
from ed_dpm_patches.trace import Trace
from guided_diffusion.script_util import create_gaussian_diffusion
from tests.support.networks import LINEAR_SHAPE, linear_classifier, sine_model

X = torch.randn(4, *LINEAR_SHAPE, generator=torch.Generator().manual_seed(0))
Y = torch.arange(4)


class Counted:
    """The classifier, and how often it was asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, t):
        self.calls += 1
        return linear_classifier(x, t)


def guide(t: list[int], watch: bool = False, interval=(100, 300)):
    counted, records = Counted(), []
    guidance = ClassifierGuidance(
        counted, EntropyRule(2.0), interval=interval, observer=records.append if watch else None
    )
    return guidance(X, torch.tensor(t), y=Y), guidance.report.summary()["evaluations"], counted.calls, records


@pytest.mark.parametrize("watch", [False, True])
def test_samples_inside_are_guided_as_ever(watch):
    """Both ends belong to it."""
    everywhere = guide([99, 100, 300, 301], interval=None)[0]
    found, evaluations, _, _ = guide([99, 100, 300, 301], watch)
    assert torch.equal(found[1:3], everywhere[1:3]) and everywhere.flatten(1).any(dim=1).all()
    assert not found[[0, 3]].any() and evaluations == 2


def test_outside_the_classifier_is_not_called():
    found, evaluations, calls, _ = guide([301, 400, 99, 0])
    assert not found.any() and found.shape == X.shape and (evaluations, calls) == (0, 0)


def test_outside_nothing_is_left_of_the_call_before():
    guidance = ClassifierGuidance(linear_classifier, EntropyRule(2.0), interval=(100, 300))
    guidance(X, 200, y=Y)
    assert guidance.logits.shape == (4, linear_classifier(X, X).shape[1])
    assert {place: size.shape for place, size in guidance.peaks.items()} == {
        "classifier logits": (4,),
        "guidance gradient": (4,),
    }
    guidance(X, 400, y=Y)
    assert guidance.logits is None and guidance.peaks == {}


def test_an_observer_sees_what_did_not_act():
    found, evaluations, calls, records = guide([301, 400, 99, 0], watch=True)
    assert not found.any() and (evaluations, calls) == (0, 1)
    p = linear_classifier(X, X).double().softmax(1)
    torch.testing.assert_close(records[0]["p_y"], p[Y, Y])
    for name in ("scale", "grad_norm", "guidance_norm", "guidance"):
        assert not records[0][name].any()


@pytest.mark.parametrize("sampler", ["p_sample_loop", "ddim_sample_loop"])
def test_in_a_respaced_process(sampler):
    """The interval is on the original scale; a trace changes no sample and covers every step."""
    diffusion = create_gaussian_diffusion(timestep_respacing="10")
    inside = [t for t in diffusion.timestep_map if 200 <= t <= 600]

    def sample(trace: Trace | None):
        torch.manual_seed(1)
        counted, observer = Counted(), trace.observe if trace else None
        guidance = ClassifierGuidance(counted, EntropyRule(0.05), interval=(200, 600), observer=observer)
        options = {"cond_fn": guidance, "model_kwargs": {"y": Y}, "callback": trace.step if trace else None}
        sample = getattr(diffusion, sampler)(sine_model, X.shape, device="cpu", **options)
        return sample, counted.calls

    (plain, calls), trace = sample(None), Trace(diffusion)
    traced, traced_calls = sample(trace)
    assert torch.equal(plain, traced) and 0 < calls == len(inside) < 10 == traced_calls
    arrays = trace.take()
    guided = (arrays["t"] >= 200) & (arrays["t"] <= 600)
    assert ((arrays["scale"] > 0) == guided).all() and (arrays["entropy_ratio"] > 0).all()


def test_the_flag():
    assert parse_interval("0,700") == (0, 700) and parse_interval("12.5,12.5") == (12.5, 12.5)
    assert interval("200,600") == "200,600" and interval("") == ""


@pytest.mark.parametrize("text", ["5", "7,3", "a,b", "1,2,3", "nan,2", ","])
def test_what_is_no_interval(run, text):
    result = run("classifier_sample", {"guidance_interval": text}, fails=True)
    (line,) = result.error_lines
    assert result.statuses == [2] and "--guidance_interval" in line and repr(text) in line

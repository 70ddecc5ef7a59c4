"""The feature cache against a network that is computed as a whole at every step, with cached tensors put into it."""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from benchmarks.builders import SETTINGS, build_network
from ed_dpm_patches import ClassifierGuidance, EntropyRule
from experiments.frontier.work import count_flops
from guidance_methods import Denoiser, Pair, Through
from guided_diffusion.diffusion.solvers import SAMPLERS
from guided_diffusion.errors import InputValueError
from guided_diffusion.models import compiling, unet
from guided_diffusion.models.feature_cache import QUADRATIC, UNIFORM, FeatureCache, whole_steps
from guided_diffusion.models.inference import Frozen
from guided_diffusion.script_util import create_gaussian_diffusion
from guided_diffusion.unet import SuperResModel, UNetModel
from tests.support.naive_cache import NaiveCache
from tests.support.networks import small_classifier, small_unet

STEPS, EVERY = 8, 3
DIFFUSION = create_gaussian_diffusion(learn_sigma=True, timestep_respacing=str(STEPS))
X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = {"y": torch.tensor([3, 5])}
BLOCKS = len(small_unet().input_blocks)


def two_evaluations_a_step(model, shape, noise, cond_fn=None, model_kwargs=None, **_) -> Tensor:
    """Heun's method on DDIM's path, unguided: the next step begins at the t where the last one ended."""
    x, abar = noise, torch.from_numpy(DIFFUSION.alphas_cumprod).float()

    def slope(x: Tensor, t: int) -> Tensor:
        with torch.no_grad():
            return DIFFUSION.call(model, x, torch.full((len(x),), t), model_kwargs)[:, : x.shape[1]]

    for t in range(STEPS - 1, 0, -1):
        sigma, lower = (((1 - abar[i]) / abar[i]).sqrt() for i in (t, t - 1))
        here = slope(x, t)
        there = slope(abar[t - 1].sqrt() * (x / abar[t].sqrt() + (lower - sigma) * here), t - 1)
        x = abar[t - 1].sqrt() * (x / abar[t].sqrt() + (lower - sigma) * (here + there) / 2)
    return x


def sample(model, sampler: str = "ddim", **options) -> Tensor:
    loop = SAMPLERS[sampler].loop(DIFFUSION) if sampler in SAMPLERS else two_evaluations_a_step
    generator = torch.Generator().manual_seed(1)
    noise_fn = partial(lambda like: torch.randn(like.shape, generator=generator))
    return loop(model, X.shape, noise=X, noise_fn=noise_fn, **options)


def cached(network: nn.Module, depth: int = 1, schedule: str = UNIFORM) -> FeatureCache:
    return FeatureCache(network, STEPS, EVERY, depth, schedule)


def naive(network: nn.Module, depth: int = 1, schedule: str = UNIFORM) -> NaiveCache:
    return NaiveCache.like(network, STEPS, EVERY, depth, schedule)


def without_labels(model):
    return lambda x, t, y=None: model(x, t)


def labelled_unet(seed: int = 2, kind: type = UNetModel) -> UNetModel:
    torch.manual_seed(seed)
    model = kind(
        8, 1, 32, 2, 1, (2,), channel_mult=(1, 2), num_classes=10, num_heads=2, use_scale_shift_norm=True,
        resblock_updown=True,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def count_middles(network: nn.Module) -> list[int]:
    calls: list[int] = []
    network.middle_block.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize(("schedule", "guided"), [(UNIFORM, True), (QUADRATIC, False)])
@pytest.mark.parametrize("sampler", [*SAMPLERS, "two evaluations a step"])
def test_every_sampler(sampler, schedule, guided):
    options = {}
    if guided:
        guidance = ClassifierGuidance(Frozen(small_classifier()), EntropyRule(2.0))
        options = {"cond_fn": guidance, "model_kwargs": Y}
    ways = [
        sample(without_labels(wrap(Frozen(small_unet()))), sampler, **options)
        for wrap in (partial(cached, schedule=schedule), partial(naive, schedule=schedule), lambda network: network)
    ]
    assert torch.equal(ways[0], ways[1]) and not torch.equal(ways[0], ways[2])


@pytest.mark.parametrize("depth", range(1, BLOCKS))
@pytest.mark.parametrize("kind", [UNetModel, SuperResModel])
def test_every_depth_with_classes_and_low_resolution(kind, depth):
    more = {"low_res": X[..., ::2, ::2]} if kind is SuperResModel else {}
    found, expected = (
        sample(wrap(Frozen(labelled_unet(kind=kind)), depth), model_kwargs=Y | more) for wrap in (cached, naive)
    )
    assert torch.equal(found, expected)


def test_how_often_the_whole_network_runs():
    network = small_unet()
    calls = count_middles(network)
    sample(cached(Frozen(network)))
    assert len(calls) == math.ceil(STEPS / EVERY)
    sample(cached(Frozen(network)), "two evaluations a step")
    assert len(calls) == math.ceil(STEPS / EVERY) + 5  # at steps 0, 3, 3, 6, 6


def test_one_in_one_is_the_network_itself():
    cache = FeatureCache(Frozen(labelled_unet()), STEPS, 1)
    assert torch.equal(sample(cache, model_kwargs=Y), sample(Frozen(labelled_unet()), model_kwargs=Y))


@pytest.mark.parametrize("interval", [None, (200, 700)])
def test_each_model_of_a_pair_has_its_own_cache(interval):
    ways = []
    for wrap in (cached, naive):
        strong, weak = (wrap(Frozen(labelled_unet(seed))) for seed in (2, 3))
        guidance = ClassifierGuidance(Frozen(small_classifier()), EntropyRule(2.0))
        ways.append(sample(Pair(strong, weak, 3.0, interval), cond_fn=guidance, model_kwargs=Y))
    assert torch.equal(*ways)


def test_the_chain_rule_goes_through_the_whole_network():
    """And leaves the newest features behind, at no cost."""
    ways = []
    for wrap in (cached, naive):
        model = without_labels(wrap(Frozen(small_unet())))
        guidance = ClassifierGuidance(Frozen(small_classifier()), EntropyRule(2.0))
        ways.append(sample(model, cond_fn=Through(guidance, Denoiser.of(DIFFUSION, model)), model_kwargs=Y))
    assert torch.equal(*ways)
    cache, network, t = cached(Frozen(small_unet())), Frozen(small_unet()), torch.tensor([500, 500])
    with torch.no_grad():
        cache(X, t + 1)
    found, expected = (
        torch.autograd.grad(model(x, t).square().sum(), x)[0]
        for model in (cache, network)
        for x in [X.clone().requires_grad_()]
    )
    assert torch.equal(found, expected) and not cache._deep.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    found, expected = (sample(wrap(Frozen(small_unet(64), dtype))) for wrap in (cached, naive))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    cache = cached(Frozen(small_unet(64), dtype))
    with torch.no_grad():
        assert cache(X, torch.tensor([500, 500])).is_contiguous() and cache._deep.dtype == dtype


def test_a_run_begins_with_the_whole_network():
    network = small_unet()
    cache, calls = cached(Frozen(network)), count_middles(network)

    def is_whole(x: Tensor, t: float) -> bool:
        before = len(calls)
        with torch.no_grad():
            cache(x, torch.full((len(x),), t))
        return len(calls) > before

    assert [is_whole(X, t) for t in (900, 800, 800, 700, 600, 600, 500)] == [1, 0, 0, 0, 1, 1, 0]
    assert is_whole(X, 900) and not is_whole(X, 100)  # t rises
    assert is_whole(X[:1], 90) and not is_whole(X[:1], 80)  # the last, smaller batch
    assert is_whole(X, 70) and not is_whole(X, 60)
    cache.reset()
    assert is_whole(X, 50)
    assert [is_whole(X, 0.5), is_whole(X, 0.25)] == [False, False]  # rescaled timesteps are no whole numbers
    assert is_whole(X, 900) and is_whole(X, 900)  # runs of one step


def test_runs_longer_than_they_were_said_to_be():
    network = small_unet()
    cache, calls = FeatureCache(Frozen(network), 4, 2, schedule=QUADRATIC), count_middles(network)
    with torch.no_grad():
        for t in range(12, 0, -1):
            cache(X, torch.tensor([t, t]))
    assert len(calls) == len(whole_steps(4, 2, QUADRATIC)) + 4  # steps 4, 6, 8, 10


def test_the_schedules():
    assert sorted(whole_steps(10, 3, UNIFORM)) == [0, 3, 6, 9]
    assert sorted(whole_steps(25, 3, QUADRATIC)) == [0, 4, 7, 9, 10, 11, 12, 15, 20]
    for num_steps in (1, 2, 5, 25, 250, 1000):
        assert whole_steps(num_steps, 1, UNIFORM) == set(range(num_steps))
        for every in (1, 2, 3, 5, 2000):
            steps = sorted(whole_steps(num_steps, every, QUADRATIC))
            assert steps[0] == 0 and steps[-1] < num_steps and len(steps) <= math.ceil(num_steps / every)
            gaps = [after - before for before, after in zip(steps, steps[1:], strict=False)]
            if len(gaps) > 3:
                assert gaps[0] > 1 and min(gaps) == 1 and gaps[-1] > 1


def test_both_ways_are_compiled(monkeypatch):
    messages, calls = [], []
    for level in ("log", "warn"):
        monkeypatch.setattr(compiling.logger, level, messages.append)

    def compile(network: nn.Module, **_):
        return lambda *args, **kwargs: calls.append("deep" in kwargs) or network(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", compile)
    found = sample(cached(Frozen(small_unet(), compile=True)))
    assert torch.equal(found, sample(cached(Frozen(small_unet()))))
    begun, done = messages[::2], messages[1::2]
    assert [message.split(":")[0] for message in begun] == ["compiling UNetModel"] * 2
    assert [message.split(" in ")[0] for message in done] == ["compiled UNetModel"] * 2
    whole = math.ceil(STEPS / EVERY)
    assert calls.count(False) == 3 + whole and calls.count(True) == 3 + STEPS - whole  # three each to try them

    def wrong(network: nn.Module, **_):
        def run(*args, **kwargs):
            out, deep = network(*args, **kwargs)
            return out, deep if "deep" in kwargs else 1.01 * deep

        return run

    messages.clear()
    monkeypatch.setattr(torch, "compile", wrong)
    assert torch.equal(sample(cached(Frozen(small_unet(), compile=True))), found)
    warnings = [message for message in messages if not message.startswith("compiling ")]
    assert "and 1.0e-02 of its largest deep features, expected at most" in warnings[0] and len(warnings) == 2


def test_features_are_copied_out_of_the_memory_of_graphs(monkeypatch):
    """CUDA graphs return the same memory at every call; here as in test_inference by a stand-in."""

    def compile(network: nn.Module, **_):
        memory: dict[int, Tensor] = {}

        def run(*args, **kwargs):
            parts = network(*args, **kwargs)
            return tuple(memory.setdefault(i, part.clone()).copy_(part) for i, part in enumerate(parts))

        return run

    monkeypatch.setattr(compiling.logger, "log", lambda *_: None)
    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(compiling, "_replays_graphs", lambda x: True)
    expected, cache = sample(cached(Frozen(small_unet()))), cached(Frozen(small_unet(), compile=True))
    assert torch.equal(sample(cache), expected)
    with torch.no_grad():
        cache(X, torch.tensor([999, 999]))
        kept = cache._deep.clone()
        cache.network(2 * X, torch.tensor([999, 999]), depth=1)  # another replay
    assert torch.equal(cache._deep, kept)


@pytest.mark.slow
def test_really_compiled():
    """Or with a warning not, where there is no compiler."""
    found = sample(cached(Frozen(small_unet(), compile=True)))
    torch.testing.assert_close(found, sample(cached(Frozen(small_unet()))), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FeatureCache(Frozen(small_classifier()), STEPS, 2), "--cache_every 2: found EncoderUNetModel, expe"),
        (lambda: FeatureCache(nn.Identity(), STEPS, 2), "--cache_every 2: found Identity, expected a UNetModel"),
        (lambda: FeatureCache(small_unet(), STEPS, 0), "--cache_every: found 0, expected at least 1"),
        (lambda: FeatureCache(small_unet(), STEPS, 2, 0), "--cache_depth: found 0, expected 1 to 3: the diffusion mod"),
        (lambda: FeatureCache(small_unet(), STEPS, 2, 4), "--cache_depth: found 4, expected 1 to 3: the diffusion mod"),
        (lambda: FeatureCache(small_unet(), STEPS, 2, 1, "cubic"), "--cache_schedule: found 'cubic', expected uniform"),
    ],
)  # fmt: skip
def test_what_is_refused(make, says):
    with pytest.raises(InputValueError, match=says):
        make()


@pytest.mark.slow
def test_the_work_that_is_left(monkeypatch):
    """Of the published 256x256 networks, in multiplications and additions: docs/sampling.md."""
    monkeypatch.setattr(unet, "full_precision", lambda x: nullcontext())  # the meta device has no autocast
    setting = SETTINGS["published-256-b1"]
    with torch.device("meta"):
        model, classifier = (Frozen(build_network(config)) for config in (setting.model, setting.classifier))
        x, t = torch.empty(1, 3, 256, 256), torch.zeros(1, dtype=torch.long)

    def gradient() -> Tensor:
        x_in = x.detach().requires_grad_()
        return torch.autograd.grad(classifier(x_in, t).sum(), x_in)[0]

    guidance = count_flops(gradient)
    ratios = {}
    for depth in (1, 3):
        with torch.no_grad():
            _, deep = model(x, t, y=t, depth=depth)
            whole = count_flops(lambda: model(x, t, y=t))
            outer = count_flops(partial(model, x, t, y=t, depth=depth, deep=deep))
        for n in (2, 3, 5):
            work = (whole + (n - 1) * outer) / n
            ratios[depth, n] = whole / work, (whole + guidance) / (work + guidance)
    assert ratios == {
        (1, 2): pytest.approx((1.80, 1.64), abs=0.01), (3, 2): pytest.approx((1.36, 1.30), abs=0.01),
        (1, 3): pytest.approx((2.45, 2.09), abs=0.01), (3, 3): pytest.approx((1.54, 1.45), abs=0.01),
        (1, 5): pytest.approx((3.45, 2.68), abs=0.01), (3, 5): pytest.approx((1.73, 1.59), abs=0.01),
    }  # fmt: skip

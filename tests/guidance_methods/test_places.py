"""Where the scorer looks: against finite differences on Gaussian data, whose denoiser is known; scorers; networks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ed_dpm_patches import ClassifierGuidance, ConstantRule, EntropyRule
from guidance_methods import (
    AtDenoised,
    CleanClassifier,
    Decoded,
    Denoiser,
    ScoreGuidance,
    SineVariance,
    Through,
    discriminator_score,
    multi_label_score,
    with_softplus,
)
from guided_diffusion.diffusion.solvers import SAMPLERS, sampling_loop
from guided_diffusion.script_util import create_gaussian_diffusion
from tests.support.gaussian_data import ABAR, GaussianData, at, smooth_classifier

DATA, CLASSIFIER = GaussianData(), smooth_classifier()
T = torch.tensor([5, 200, 500, 980])
Y = torch.tensor([0, 3, 4, 1])
X = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def log_p(x: Tensor, t: Tensor = T) -> Tensor:
    return CLASSIFIER(x, t).log_softmax(1)[range(4), Y]


def slope_along(score, x: Tensor, direction: Tensor, step: float = 1e-6) -> Tensor:
    return (score(x + step * direction) - score(x - step * direction)) / (2 * step)


@pytest.fixture
def direction() -> Tensor:
    return torch.randn(X.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


@pytest.mark.parametrize("predicts", ["eps", "v", "x_0"])
def test_the_denoiser(predicts):
    model = {"eps": DATA.eps, "v": DATA.v, "x_0": lambda x, t: DATA.x_0(x, at(t, x))}[predicts]
    expected = DATA.x_0(X, at(T, X))
    torch.testing.assert_close(Denoiser(model, ABAR, predicts)(X, T), expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(Denoiser(model, ABAR, predicts, clip=True)(X, T), expected.clamp(-1, 1))
    with_variance = Denoiser(lambda x, t: torch.cat([model(x, t), 9 * x], 1), ABAR, predicts)
    torch.testing.assert_close(with_variance(X, T), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("predict_xstart", [False, True])
def test_the_denoiser_of_a_respaced_process(predict_xstart):
    diffusion = create_gaussian_diffusion(timestep_respacing="7", predict_xstart=predict_xstart)
    model = (lambda x, t: DATA.x_0(x, at(t, x))) if predict_xstart else DATA.eps
    t = torch.tensor(diffusion.timestep_map)[[0, 2, 4, 6]]
    found = Denoiser.of(diffusion, model, clip=False)(X, t)
    torch.testing.assert_close(found, DATA.x_0(X, at(t, X)), rtol=1e-9, atol=1e-9)


def test_at_the_denoised_image_it_is_the_gradient_there(direction):
    x_0 = DATA.x_0(X, at(T, X))
    guidance = AtDenoised(ClassifierGuidance(CLASSIFIER, ConstantRule(2.0)))
    expected = 2 * slope_along(log_p, x_0, direction)
    torch.testing.assert_close(inner(guidance(X, T, x_0=x_0, y=Y), direction), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("inference", [False, True])
def test_through_the_model_it_is_the_whole_derivative(direction, inference):
    """And on this data the Jacobian is diagonal and known."""
    denoiser = Denoiser(DATA.eps, ABAR)
    plain = ClassifierGuidance(CLASSIFIER, ConstantRule(2.0))
    with torch.inference_mode(inference):
        found = Through(plain, denoiser)(X * 1, T, y=Y)
    expected = 2 * slope_along(lambda x: log_p(DATA.x_0(x, at(T, x))), X, direction)
    torch.testing.assert_close(inner(found, direction), expected, rtol=1e-6, atol=1e-8)
    at_x_0 = plain(DATA.x_0(X, at(T, X)), T, y=Y)
    torch.testing.assert_close(found, DATA.slope(at(T, X)) * at_x_0, rtol=1e-6, atol=1e-9)


def test_through_keeps_what_is_small_and_clips():
    tiny = ClassifierGuidance(CLASSIFIER, ConstantRule(1e-30))
    denoiser = Denoiser(DATA.eps, ABAR)
    found = Through(tiny, denoiser)(X, T, y=Y)
    ones = Through(lambda x, t, y: x * 0 + 1, Denoiser(DATA.eps, ABAR, clip=True))
    plain = Through(ClassifierGuidance(CLASSIFIER, ConstantRule()), denoiser)(X, T, y=Y)
    torch.testing.assert_close(found * 1e30, plain, rtol=1e-6, atol=1e-9)
    inside = DATA.x_0(5 * X, at(T, X)).abs() <= 1
    assert ((ones(5 * X, T, y=Y) != 0) == inside).all() and not inside.all()


class Recorder:
    """A guidance that notes what it was called with."""

    def __init__(self, **wants: bool):
        self.seen = []
        vars(self).update(wants)

    def __call__(self, x: Tensor, t: Tensor, **kwargs: Tensor) -> Tensor:
        self.seen.append((x, t, kwargs))
        return torch.zeros_like(x)


@pytest.mark.parametrize("callback", [None, lambda *step: None])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_tells_x_0_to_a_guidance_that_wants_it(sampler, callback):
    diffusion = create_gaussian_diffusion(timestep_respacing="ddim5")
    told, plain = Recorder(wants_x0=True), Recorder()
    options = {"noise": X.float(), "model_kwargs": {"y": Y}, "callback": callback, "clip_denoised": False}
    for guidance in (told, plain):
        sampling_loop(diffusion, sampler)(DATA.eps, X.shape, cond_fn=guidance, **options)
    assert len(told.seen) == SAMPLERS[sampler].evaluations(5)
    assert all(set(kwargs) == {"y"} for _, _, kwargs in plain.seen)
    for x, t, kwargs in told.seen:
        assert set(kwargs) == {"y", "x_0"}
        if sampler != "unipc":  # which corrects x after the network has seen it, and guides there
            torch.testing.assert_close(kwargs["x_0"], DATA.x_0(x.double(), at(t, x)).float(), rtol=1e-4, atol=1e-4)


def test_the_sine_variance_moves_the_mean(direction):
    diffusion = create_gaussian_diffusion(timestep_respacing="10", sigma_small=True)
    largest = 0.02
    guidance = SineVariance(lambda x, t, y: direction.to(x.dtype), largest)
    for index in (0, 1, 5, 9):
        options = {"clip_denoised": False, "model_kwargs": {"y": Y}, "noise_fn": torch.zeros_like}
        t = torch.full((4,), index)
        guided, free = (
            diffusion.p_sample(DATA.eps, X, t, cond_fn=cond_fn, **options)["sample"] for cond_fn in (guidance, None)
        )
        variance, original = diffusion.posterior_variance[index], diffusion.timestep_map[index]
        expected = variance + (0.3 * largest * math.sin(math.pi * original / 1000) if variance else 0)
        torch.testing.assert_close(guided - free, expected * direction, rtol=1e-4, atol=1e-5)


def test_a_sampler_that_does_not_tell_is_named():
    for guidance, says in ((AtDenoised(CLASSIFIER), "x_0: missing"), (SineVariance(CLASSIFIER, 0.02), "variance: mi")):
        with pytest.raises(ValueError, match=says):
            guidance(X, T)


class Photographs(nn.Module):
    """Knows images of 6x6 pixels in 0..255, centred."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(108, 10), nn.ReLU(), nn.Linear(10, 4), nn.ReLU6()).double()

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return self.layers(x)


def test_a_clean_classifier_converts_its_images(direction):
    network = Photographs().eval()
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64) * 2 - 1
    classifier = CleanClassifier(network, 0, 255, mean=(120, 110, 100), std=(60, 50, 40))
    logits = classifier(x, torch.tensor([3, 4]))
    means, stds = (torch.tensor(values).reshape(3, 1, 1) for values in ((120, 110, 100), (60, 50, 40)))
    torch.testing.assert_close(network.seen, ((x + 1) * 127.5 - means) / stds)
    torch.testing.assert_close(logits, network(network.seen))
    small = torch.rand(2, 3, 3, 3, dtype=torch.float64)
    CleanClassifier(network, size=6)(small)
    torch.testing.assert_close(network.seen, F.interpolate((small + 1) / 2, size=6, mode="bilinear"))
    guidance = ClassifierGuidance(classifier, EntropyRule(1.0))
    assert guidance(x, 0, y=torch.tensor([1, 2])).isfinite().all()


def test_softplus_in_place_of_relu():
    network = Photographs()
    smooth = with_softplus(network, beta=3.0)
    kinds = [type(layer).__name__ for layer in smooth.layers]
    assert kinds == ["Flatten", "Linear", "Softplus", "Linear", "_SmoothReLU6"]
    assert isinstance(network.layers[2], nn.ReLU) and smooth.layers[2].beta == 3
    x = torch.linspace(-9, 15, 200)
    torch.testing.assert_close(smooth.layers[4](x), nn.ReLU6()(x), rtol=0, atol=math.log(2) / 3 + 1e-5)
    sharp = with_softplus(network, beta=300.0)
    images = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(sharp(images), network(images), rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="softplus: found no nn.ReLU or nn.ReLU6 in Linear"):
        with_softplus(nn.Linear(2, 2))


def test_a_decoder_stands_between(direction):
    def decode(latents: Tensor) -> Tensor:
        return torch.tanh(2 * latents)

    guidance = ClassifierGuidance(Decoded(CLASSIFIER, decode), ConstantRule(2.0))
    expected = 2 * slope_along(lambda x: log_p(decode(x)), X, direction)
    torch.testing.assert_close(inner(guidance(X, T, y=Y), direction), expected, rtol=1e-6, atol=1e-8)


def test_log_scores_of_any_kind(direction):
    """A regressor, a discriminator in both forms, and labels of which several hold."""

    def regressor(x: Tensor, t: Tensor) -> Tensor:
        return -((x.flatten(1).sin().sum(1) - 2) ** 2)

    def logit(x: Tensor, t: Tensor) -> Tensor:
        return CLASSIFIER(x, t)[:, :1]

    labels = torch.tensor([[1, 0, -1, 1, 0]] * 4)

    def labelled(x: Tensor, t: Tensor = T) -> Tensor:
        p = CLASSIFIER(x, t).sigmoid()
        return p[:, 0].log() + (1 - p[:, 1]).log() + p[:, 3].log() + (1 - p[:, 4]).log()

    cases = [
        (ScoreGuidance(regressor, 3.0), lambda x: regressor(x, T), 3.0),
        (ScoreGuidance(discriminator_score(logit, logit=True)), lambda x: logit(x, T)[:, 0], 1.0),
        (ScoreGuidance(discriminator_score(lambda x, t: logit(x, t).sigmoid())), lambda x: logit(x, T)[:, 0], 1.0),
        (ScoreGuidance(multi_label_score(CLASSIFIER), lambda t: t / 100, takes=("y",)), labelled, T / 100),
    ]
    for guidance, score, scale in cases:
        found = inner(guidance(X, T, y=labels), direction)
        torch.testing.assert_close(found, scale * slope_along(score, X, direction), rtol=1e-5, atol=1e-7)
    with pytest.raises(TypeError, match=r"scorer: found \(4, 5\), expected differentiable log-scores of shape \(4,\)"):
        ScoreGuidance(CLASSIFIER)(X, T)
    with pytest.raises(ValueError, match="y: found shape"):
        ScoreGuidance(multi_label_score(CLASSIFIER), takes=("y",))(X, T, y=Y)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Denoiser(DATA.eps, ABAR, "noise"), "predicts: found 'noise', expected one of eps, x_0, v"),
        (lambda: CleanClassifier(nn.Linear(1, 1), 1, 0), "low, high: found 1, 0"),
        (lambda: CleanClassifier(nn.Linear(1, 1), mean=(0, 0, 0), std=(1, 0, 1)), "mean, std: found .* std > 0"),
    ],
)
def test_what_makes_no_sense_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()

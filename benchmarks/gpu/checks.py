"""Checks of what a device computes: networks, guidance, samplers and losses against the CPU, float64 or upstream.

`CHECKS` holds them by name, for the command and for the tests; a check that fails raises AssertionError. With
ED_DPM_TEST_DEVICE=cpu they run without a GPU, which shows that the checks themselves are right.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from unittest import mock

import torch
from torch import Tensor, nn

import ed_dpm_patches as patches
from benchmarks.builders import Config, build_network, build_upstream_network, randomize
from benchmarks.upstream import load_upstream
from ed_dpm_patches import ClassifierGuidance, ConstantRule, EntropyRule
from ed_dpm_patches.trace import Trace
from guided_diffusion.config.configs import ClassifierConfig, ModelConfig
from guided_diffusion.config.create import create_gaussian_diffusion
from guided_diffusion.diffusion import samplers
from guided_diffusion.diffusion.nonfinite import NonfiniteDetector
from guided_diffusion.diffusion.solvers import SAMPLERS, sampling_loop
from guided_diffusion.models.inference import Frozen
from guided_diffusion.models.layers import normalization
from guided_diffusion.sampling.noise import PerSampleNoise

DEVICE, CPU = torch.device(os.environ.get("ED_DPM_TEST_DEVICE", "cuda")), torch.device("cpu")

CLASSES = 5
SCALE = 0.05  # of the noise on all weights
X, NOISE = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
T, Y = torch.tensor([1, 40, 200, 500]), torch.tensor([0, 2, 4, 2])
# Float32 rounds the angles of the timestep embedding, up to 500 rad here, by up to 3e-5; all else by far less.
FLOAT32 = 2e-5
# A few units in the last place (2**-11, 2**-8) over two dozen layers.
TOLERANCE = {None: FLOAT32, torch.float16: 1e-2, torch.bfloat16: 8e-2}


def build(config: Config, seed: int) -> nn.Module:
    """A network of a config with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return randomize(build_network(config), SCALE).eval()


def make_unet() -> nn.Module:
    """A small diffusion model of the published architecture."""
    return build(ModelConfig(
        image_size=8, num_channels=64, num_res_blocks=1, channel_mult="1,1", class_cond=True, num_classes=CLASSES,
        attention_resolutions="4", num_head_channels=32, resblock_updown=True,
    ), seed=0)  # fmt: skip


def make_classifier() -> nn.Module:
    """A small classifier whose certainty differs from sample to sample."""
    network = build(ClassifierConfig(
        image_size=8, classifier_width=64, classifier_depth=1, classifier_channel_mult="1,1", num_classes=CLASSES,
        classifier_attention_resolutions="4", classifier_num_head_channels=32,
    ), seed=1)  # fmt: skip
    network.out[2].c_proj.weight.data.mul_(15)
    return network


@contextmanager
def float64(network: nn.Module) -> Iterator[nn.Module]:
    """A copy of the network that computes in float64 throughout, norms and softmax too."""
    double = copy.deepcopy(network).double()
    double.dtype = torch.float64
    double.time_embed.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield double


class Biased(nn.Module):
    """A classifier with a constant added to its logits, which makes it as certain of one class as wanted."""

    def __init__(self, network: nn.Module, bias: Tensor):
        super().__init__()
        self.network, self.bias = network, bias

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t) + self.bias


UPSTREAMS = {  # networks that are compared with upstream's, built as the published ones
    "UNetModel": ModelConfig(
        image_size=8, num_channels=64, channel_mult="1,1,2,2", attention_resolutions="4,2", num_head_channels=16,
        class_cond=True, num_classes=CLASSES, resblock_updown=True,
    ),
    "EncoderUNetModel": ClassifierConfig(
        image_size=8, classifier_width=64, classifier_channel_mult="1,1,2", classifier_attention_resolutions="4",
        classifier_num_head_channels=32, num_classes=6,
    ),
}  # fmt: skip
NETWORKS = {"unet": (make_unet, {"y": Y}), "classifier": (make_classifier, {})}


def frozen(make: Callable[[], nn.Module], dtype: torch.dtype | None = None, compile: bool = False) -> Frozen:
    """A network on the device, ready for evaluation."""
    return Frozen(make().to(DEVICE), dtype, compile)


def evaluate(network: nn.Module, x: Tensor, *inputs: Tensor, **labels: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and the gradient of its sum of squares for x, on the network's device."""
    device = next(network.parameters()).device
    x = x.detach().to(device).requires_grad_(True)
    output = network(x, *(i.to(device) for i in inputs), **{name: y.to(device) for name, y in labels.items()})
    (gradient,) = torch.autograd.grad(output.square().sum(), x)
    return output.detach(), gradient.clone()  # of a CUDA graph it would last until the next replay


def guide(classifier: nn.Module, rule: patches.GuidanceRule, x: Tensor, y: Tensor = Y) -> Tensor:
    """The guidance by a rule for x, on the classifier's device."""
    device = next(classifier.parameters()).device
    return ClassifierGuidance(classifier, rule)(x.to(device), T.to(device), y=y.to(device))


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value, of the sample where it is worst."""
    found, expected = (values.detach().double().cpu().reshape(len(values), -1) for values in (found, expected))
    assert found.isfinite().all()
    return float(((found - expected).abs().amax(1) / expected.abs().amax(1)).max())


@cache
def in_float64(make: Callable[[], nn.Module], **labels: Tensor) -> tuple[Tensor, Tensor]:
    """Output and gradient of a network for X and T, for every precision that is compared with them."""
    with float64(make()) as double:
        return evaluate(double, X.double(), T, **labels)


def networks_compute_what_float64_does(
    make: Callable[[], nn.Module], labels: dict[str, Tensor], dtype: torch.dtype | str | None
) -> None:
    expected = in_float64(make, **labels)
    assert expected[0].abs().mean() > 0.05, "an output near zero would hide any error"
    network = make().to(DEVICE) if dtype == "plain" else frozen(make, dtype)
    found = evaluate(network, X, T, **labels)
    assert all(values.dtype is torch.float32 for values in found) and found[0].is_contiguous()
    tolerance = TOLERANCE.get(dtype, FLOAT32)
    assert error(found[0], expected[0]) < tolerance
    assert error(found[1], expected[1]) < 2 * tolerance
    assert tolerance == FLOAT32 or error(found[0], expected[0]) > 1e-4, "nothing was computed in low precision"


RULES = [
    ConstantRule(2.0), EntropyRule(2.0), patches.RangeRule(2.0, factor=3.0, until=100),
    patches.TimestepRule(2.0, factor=0.01), patches.GradientNormRule(2.0, factor=50.0, bound=0.9),
]  # fmt: skip


def guidance_is_float64s(rule: patches.GuidanceRule) -> None:
    with float64(make_classifier()) as double:
        expected = guide(double, rule, X.double())
    found = guide(frozen(make_classifier), rule, X)
    assert found.dtype is torch.float32 and error(found, expected) < 5 * FLOAT32


def guidance_of_an_almost_certain_classifier(rule: patches.GuidanceRule) -> None:
    """1 - p_y is about 1e-20: a gradient of log p in float16 would be zero."""
    y, bias = torch.full((4,), 3), torch.zeros(CLASSES)
    bias[3] = -math.log(1e-20)
    with float64(make_classifier()) as double:
        expected = guide(Biased(double, bias.double()), rule, X.double(), y).flatten(1)
    classifier = Biased(frozen(make_classifier, torch.float16), bias.to(DEVICE))
    found = guide(classifier, rule, X, y).double().cpu().flatten(1)
    assert found.isfinite().all()
    lengths = found.norm(dim=1), expected.norm(dim=1)
    assert ((found * expected).sum(1) / lengths[0] / lengths[1]).min() > 0.99
    assert (lengths[0] / lengths[1]).log().abs().max() < 0.1


def sample(model: nn.Module, classifier: nn.Module | None, sampler: str) -> Tensor:
    """Four images from the noise X, with the same noise at every step whatever the device, guided by EDS."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(5)
    diffusion = create_gaussian_diffusion(learn_sigma=True, timestep_respacing="ddim3")
    images = sampling_loop(diffusion, sampler)(
        model,
        tuple(X.shape),
        noise=X.to(device),
        noise_fn=lambda x: torch.randn(x.shape, generator=generator).to(x),
        cond_fn=ClassifierGuidance(classifier, EntropyRule(0.3)) if classifier else None,
        model_kwargs={"y": Y.to(device)},
    )
    return images.cpu()


def guided_samples_are_the_cpus(sampler: str) -> None:
    found = sample(frozen(make_unet), frozen(make_classifier), sampler)
    expected = sample(Frozen(make_unet()), Frozen(make_classifier()), sampler)
    assert (found - expected).abs().max() < 1e-3
    assert (found - sample(frozen(make_unet), None, sampler)).abs().max() > 0.05, "the guidance did nothing"


def noise_does_not_depend_on_the_batch() -> None:
    def draw(*indices: int) -> tuple[Tensor, Tensor, Tensor]:
        noise = PerSampleNoise(3, indices, DEVICE)
        return noise.choose(1000), noise.normal((3, 8, 8)), noise(torch.zeros(len(indices), 3, 8, 8, device=DEVICE))

    indices = (7, 0, 2**40)
    for together, again, *alone in zip(draw(*indices), draw(*indices), *map(draw, indices), strict=True):
        assert together.device.type == DEVICE.type and together.unique().numel() > 1
        assert torch.equal(together, again) and torch.equal(together, torch.cat(alone))
    assert abs(float(together.mean())) < 0.2 and abs(float(together.std()) - 1) < 0.2


def host_does_not_wait(step: Callable, dtype: torch.dtype | None) -> None:
    """A guided step with all that the script has: noise of each sample, a trace, the detection of non-finite values.

    The first step fills the caches.
    """
    diffusion = create_gaussian_diffusion(learn_sigma=True, timestep_respacing="ddim5")
    trace, detector = Trace(diffusion, samples=2), NonfiniteDetector()
    guidance = ClassifierGuidance(frozen(make_classifier, dtype), EntropyRule(2.0), cap=100.0, observer=trace.observe)
    noise, labels = PerSampleNoise(0, range(4), DEVICE), {"y": Y.to(DEVICE)}

    def look(*args) -> None:
        detector.step(*args)
        trace.step(*args)

    steps = samplers.sample_progressively(
        diffusion, step, frozen(make_unet, dtype), X.shape, X.to(DEVICE), callback=look, cond_fn=guidance,
        model_kwargs=labels, noise_fn=noise,
    )  # fmt: skip
    next(steps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = next(steps)["sample"]
        try:
            found.sum().item()
        except RuntimeError as refused:
            assert "synchroniz" in str(refused)
        else:
            raise AssertionError("waiting was not noticed")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.isfinite().all()


def losses_are_the_cpus(make: Callable[[], nn.Module], labels: dict[str, Tensor]) -> None:
    diffusion = create_gaussian_diffusion(learn_sigma=True, rescale_learned_sigmas=True)
    results = []
    for device in (DEVICE, CPU):
        network = make().train().to(device)
        x_start, t, y, noise = (values.to(device) for values in (X.clamp(-1, 1), T, Y, NOISE))
        if labels:
            loss = diffusion.training_losses(network, x_start, t, {"y": y}, noise)["loss"]
        else:
            loss = patches.ect_terms(network(diffusion.q_sample(x_start, t, noise), t), y)["loss"]
        gradients = torch.autograd.grad(loss.mean(), list(network.parameters()))
        results.append((loss, torch.cat([gradient.flatten() for gradient in gradients])[None]))
    (loss, gradient), (expected_loss, expected_gradient) = results
    assert error(loss, expected_loss) < FLOAT32
    assert error(gradient, expected_gradient) < 5 * FLOAT32


def normalisation_keeps_the_layout() -> None:
    """A large batch in channels_last stays so, without a copy to another layout: values and gradient are float64's."""
    side = 256 if DEVICE.type == "cuda" else 32
    x = torch.randn(8, 64, side, side, generator=torch.Generator().manual_seed(0))
    layer, exact = normalization(64), nn.GroupNorm(32, 64).double()
    for own, other in zip(layer.parameters(), exact.parameters(), strict=True):
        other.data = nn.init.normal_(own).double()
    expected = evaluate(exact, x.double())
    found = evaluate(layer.to(DEVICE), x.contiguous(memory_format=torch.channels_last))
    for one, other in zip(found, expected, strict=True):
        assert one.is_contiguous(memory_format=torch.channels_last) and error(one, other) < FLOAT32


def networks_are_upstreams(name: str, half: bool) -> None:
    """In half precision upstream casts weights and ours is autocast: each rounds in its own places."""
    config = UPSTREAMS[name]
    ours = build(config, seed=3)
    theirs = build_upstream_network(config, load_upstream(), ours.state_dict(), half).eval()
    labels = {"y": Y} if name == "UNetModel" else {}
    found = evaluate(Frozen(ours.to(DEVICE), torch.float16 if half else None), X, T, **labels)
    expected = evaluate(theirs.to(DEVICE), X, T, **labels)
    assert error(found[0], expected[0]) < (2e-2 if half else 1e-5)
    assert error(found[1], expected[1]) < (2e-2 if half else 2e-5)


CHECKS: dict[str, Callable[[], None]] = {
    f"{name} {dtype}": partial(networks_compute_what_float64_does, make, labels, dtype)
    for name, (make, labels) in NETWORKS.items() for dtype in ("plain", *TOLERANCE)
}  # fmt: skip
CHECKS |= {f"guidance {type(rule).__name__}": partial(guidance_is_float64s, rule) for rule in RULES}
CHECKS |= {
    f"almost certain {type(rule).__name__}": partial(guidance_of_an_almost_certain_classifier, rule)
    for rule in RULES[:2]
}
CHECKS |= {f"sampler {name}": partial(guided_samples_are_the_cpus, name) for name in SAMPLERS}
CHECKS["noise"] = noise_does_not_depend_on_the_batch
CHECKS["normalisation in channels_last"] = normalisation_keeps_the_layout
CHECKS |= {f"losses {name}": partial(losses_are_the_cpus, make, labels) for name, (make, labels) in NETWORKS.items()}
if DEVICE.type == "cuda":
    CHECKS |= {
        f"no waiting {step.__name__} {dtype}": partial(host_does_not_wait, step, dtype)
        for step in (samplers.ddpm_step, samplers.ddim_step) for dtype in (None, torch.float16)
    }  # fmt: skip
UPSTREAM_CHECKS = {
    f"upstream's {name} {'float16' if half else 'float32'}": partial(networks_are_upstreams, name, half)
    for name in UPSTREAMS for half in (False, True)
}  # fmt: skip

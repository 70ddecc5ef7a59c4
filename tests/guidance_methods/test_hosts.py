"""The same guidance in diffusers, k-diffusion and EDM: against our own samplers, and exact scores."""

from __future__ import annotations

import importlib.util
import sys
import types
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ed_dpm_patches import ClassifierGuidance, ConstantRule, EntropyRule
from guidance_methods import (
    Adam,
    AtDenoised,
    GuidedDenoiser,
    GuidedUNet,
    SineVariance,
    Stabilized,
    as_diffusers,
    scheduler_options,
)
from guided_diffusion.diffusion import samplers
from guided_diffusion.diffusion.enums import LossType, ModelMeanType, ModelVarType
from guided_diffusion.diffusion.respace import SpacedDiffusion
from guided_diffusion.diffusion.schedules import get_named_beta_schedule
from guided_diffusion.diffusion.solvers import DPMSolverPP2M, sampling_loop
from tests.support.gaussian_data import ABAR, GaussianData, at, smooth_classifier
from tests.support.networks import small_unet

SHAPE = (3, 1, 4, 4)
Y = torch.tensor([0, 3, 4])
DATA, CLASSIFIER = GaussianData(), smooth_classifier()
BETAS = get_named_beta_schedule("linear", 1000)
START = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
STEPS = 10
TIMESTEPS = range(0, 1000, 1000 // STEPS)
GUIDANCES = {
    "eds": lambda: ClassifierGuidance(CLASSIFIER, EntropyRule(1.5)),
    "denoised": lambda: AtDenoised(ClassifierGuidance(CLASSIFIER, ConstantRule(3.0))),
    "mild": lambda: ClassifierGuidance(CLASSIFIER, ConstantRule(0.05)),
    "adam": lambda: Stabilized(ClassifierGuidance(CLASSIFIER, EntropyRule(0.05)), Adam()),
}


class Exact(SpacedDiffusion):
    """Our process with its tables in float64: what is left is the formulas."""

    def at(self, name, t, like):
        return torch.from_numpy(np.asarray(getattr(self, name)))[t].reshape(-1, *[1] * (like.dim() - 1))


def process(timesteps=TIMESTEPS, mean=ModelMeanType.EPSILON, variance=ModelVarType.FIXED_SMALL) -> Exact:
    return Exact(timesteps, betas=BETAS, model_mean_type=mean, model_var_type=variance, loss_type=LossType.MSE)


def eps_and_variance(x: Tensor, t: Tensor, **_: object) -> Tensor:
    return torch.cat([DATA.eps(x, t), 0.8 * x.tanh()], dim=1)


class UNet(nn.Module):
    """A model as a diffusers UNet, without `as_diffusers`."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        assert not return_dict
        return (self.model(sample, torch.as_tensor(timestep).expand(len(sample))),)


def noise_from(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


class TestDiffusers:
    @pytest.fixture
    def diffusers(self):
        return pytest.importorskip("diffusers", reason="the host: pip install -c constraints.txt diffusers")

    def scheduler(self, kind, **options):
        scheduler = kind(**{"clip_sample": False} | scheduler_options(BETAS) | options)
        scheduler.set_timesteps(STEPS)
        scheduler.alphas_cumprod = ABAR  # theirs are of single precision
        return scheduler

    def theirs(self, scheduler, unet, **options) -> Tensor:
        x = START
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t, class_labels=Y).sample, t, x, **options).prev_sample
        return x

    @pytest.mark.parametrize("guidance", GUIDANCES)
    @pytest.mark.parametrize("predicts", ["eps", "v", "x_0"])
    def test_ddim(self, diffusers, predicts, guidance):
        theirs_model = {"eps": DATA.eps, "v": DATA.v, "x_0": lambda x, t: DATA.x_0(x, at(t, x))}[predicts]
        scheduler = self.scheduler(diffusers.DDIMScheduler, **scheduler_options(BETAS, predicts), steps_offset=0)
        assert scheduler.timesteps.tolist() == list(TIMESTEPS)[::-1]
        found = self.theirs(scheduler, GuidedUNet(UNet(theirs_model), GUIDANCES[guidance](), scheduler))
        options = {"noise": START, "cond_fn": GUIDANCES[guidance](), "model_kwargs": {"y": Y}, "clip_denoised": False}
        ours = process().ddim_sample_loop(DATA.eps, SHAPE, **options)
        torch.testing.assert_close(found, ours, rtol=0, atol=1e-6)
        free = process().ddim_sample_loop(DATA.eps, SHAPE, **options | {"cond_fn": None})
        assert (ours - free).abs().max() > 0.01

    @pytest.mark.parametrize("guidance", ["eds", "sine"])
    @pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
    def test_ddpm(self, diffusers, variance, guidance):
        """The mean moves by variance * G, as with our cond_fn."""
        make = GUIDANCES.get(guidance, lambda: SineVariance(GUIDANCES["eds"](), BETAS.max()))
        learned = variance == "learned_range"
        model = eps_and_variance if learned else DATA.eps
        scheduler = self.scheduler(diffusers.DDPMScheduler, variance_type=variance)
        unet = GuidedUNet(UNet(model), make(), scheduler)
        found = self.theirs(scheduler, unet, generator=torch.Generator().manual_seed(3))
        diffusion = process(variance=ModelVarType.LEARNED_RANGE if learned else ModelVarType.FIXED_SMALL)
        options = {"noise": START, "cond_fn": make(), "model_kwargs": {"y": Y}, "clip_denoised": False}
        ours = diffusion.p_sample_loop(model, SHAPE, noise_fn=noise_from(3), **options)
        torch.testing.assert_close(found, ours, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("variance", ["fixed_large", "learned"])
    def test_ddpm_of_other_variances_moves_the_mean(self, diffusers, variance):
        """One step, without its noise, against the definition."""
        scheduler = self.scheduler(diffusers.DDPMScheduler, variance_type=variance)

        def model(x, t):
            return torch.cat([DATA.eps(x, t), 0.3 + 0 * x], dim=1) if variance == "learned" else DATA.eps(x, t)

        guidance, t = GUIDANCES["eds"](), scheduler.timesteps[4]
        guided, free = (
            scheduler.step(
                GuidedUNet(UNet(model), cond_fn, scheduler)(START, t, class_labels=Y).sample, t, START,
                generator=torch.Generator().manual_seed(3),
            ).prev_sample
            for cond_fn in (guidance, lambda x, t, y: torch.zeros_like(x))
        )  # fmt: skip
        size = 0.3 if variance == "learned" else float(1 - ABAR[t] / ABAR[t - 100])
        torch.testing.assert_close(guided - free, size * guidance(START, t, y=Y), rtol=1e-6, atol=1e-9)

    def test_dpm_solver(self, diffusers):
        scheduler = diffusers.DPMSolverMultistepScheduler(
            **scheduler_options(BETAS), solver_order=2, final_sigmas_type="sigma_min", euler_at_final=True
        )
        scheduler.set_timesteps(STEPS)
        timesteps = scheduler.timesteps.tolist()
        diffusion = process([*timesteps, 0])
        scheduler.alphas_cumprod = ABAR
        scheduler.sigmas = torch.from_numpy(np.sqrt(1 / diffusion.alphas_cumprod - 1)[::-1].copy())
        found = self.theirs(scheduler, GuidedUNet(UNet(DATA.eps), GUIDANCES["mild"](), scheduler))
        ours = list(
            samplers.sample_progressively(
                diffusion, DPMSolverPP2M(diffusion), DATA.eps, SHAPE, noise=START, cond_fn=GUIDANCES["mild"](),
                model_kwargs={"y": Y}, clip_denoised=False,
            )
        )  # fmt: skip
        torch.testing.assert_close(found, ours[-2]["sample"], rtol=0, atol=1e-6)

    @pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"])
    def test_other_schedulers_end_where_ddim_does(self, diffusers, name):
        """With many steps; Euler's timesteps lie between whole ones, and x is scaled by the scheduler."""
        scheduler = getattr(diffusers, name)(**scheduler_options(BETAS))
        scheduler.set_timesteps(100)
        unet = GuidedUNet(UNet(DATA.eps), GUIDANCES["mild"](), scheduler, y=Y)
        x = START * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
        options = {"noise": START, "cond_fn": GUIDANCES["mild"](), "model_kwargs": {"y": Y}, "clip_denoised": False}
        ours = process(range(0, 1000, 4)).ddim_sample_loop(DATA.eps, SHAPE, **options)
        free = process(range(0, 1000, 4)).ddim_sample_loop(DATA.eps, SHAPE, **options | {"cond_fn": None})
        assert (x - ours).abs().max() < 0.05 < 0.2 < (ours - free).abs().max()

    def test_a_published_model_in_a_pipeline(self, diffusers):
        """A UNet of this code that learned its variance, through two of their pipelines, guided."""
        network, y = small_unet(), torch.tensor([1, 2])
        guidance = ClassifierGuidance(lambda x, t: x.flatten(1)[:, :4], EntropyRule(0.1))
        for kind, pipeline in (("DDIM", diffusers.DDIMPipeline), ("DDPM", diffusers.DDPMPipeline)):
            scheduler = getattr(diffusers, f"{kind}Scheduler")(
                **scheduler_options(BETAS, learned_variance=kind == "DDPM")
            )
            unet = as_diffusers(network, image_size=8, channels=1, keep_variance=kind == "DDPM")
            guided = GuidedUNet(unet, guidance, scheduler, y)
            images = []
            for each in (guided, unet):
                pipe = pipeline(unet=each, scheduler=scheduler)
                pipe.set_progress_bar_config(disable=True)
                generator = torch.Generator().manual_seed(0)
                images.append(pipe(2, generator, num_inference_steps=5, output_type="np").images)
            assert images[0].shape == (2, 8, 8, 1) and np.isfinite(images[0]).all() and (images[0] != images[1]).any()

    def test_as_diffusers_is_the_model(self):
        network = small_unet()
        x = torch.randn(2, 1, 8, 8)
        unet = as_diffusers(network, image_size=8, channels=1)
        assert torch.equal(unet(x, 7).sample, network(x, torch.tensor([7, 7]))[:, :1])
        assert unet(x, torch.tensor(7), return_dict=False)[0].shape == x.shape
        assert unet.config.sample_size == 8 and unet.dtype is torch.float32
        with pytest.raises(ValueError, match="image_size: found none"):
            as_diffusers(nn.Linear(1, 1))

    def test_labels_of_the_unet(self, diffusers):
        scheduler = self.scheduler(diffusers.DDIMScheduler)
        seen = []

        def guidance(x, t, y):
            seen.append(y.tolist())
            return torch.zeros_like(x)

        unet = GuidedUNet(UNet(DATA.eps), guidance, scheduler, y=Y)
        unet(START, 3)
        unet(torch.cat([START, START]), 3)
        unet(START, 3, class_labels=Y + 1)
        assert seen == [[0, 3, 4], [0, 3, 4, 0, 3, 4], [1, 4, 5]]

    def test_another_prediction_type_is_named(self, diffusers):
        scheduler = types.SimpleNamespace(config=types.SimpleNamespace(prediction_type="flow"))
        with pytest.raises(ValueError, match="prediction_type: found 'flow', expected epsilon, v_prediction, sample"):
            GuidedUNet(UNet(DATA.eps), GUIDANCES["eds"](), scheduler)


def steady(x: Tensor, t: Tensor) -> Tensor:
    """A classifier that is smooth in sigma, as the order of a solver wants it."""
    return CLASSIFIER(x, torch.zeros(len(x)))


def guided(gamma: float = 1.0, **options) -> GuidedDenoiser:
    return GuidedDenoiser(
        lambda x, sigma, labels=None, y=None: DATA.denoised(x, torch.as_tensor(sigma).expand(len(x))),
        ClassifierGuidance(steady, ConstantRule(gamma)), ABAR, **options,
    )  # fmt: skip


def sigmas_of(steps: int, lowest: float = 0.02, highest: float = 80.0, rho: float = 7.0) -> Tensor:
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return (highest ** (1 / rho) + ramp * (lowest ** (1 / rho) - highest ** (1 / rho))) ** rho


def heun(net, x: Tensor, sigmas: Tensor) -> Tensor:
    """Karras et al. 2022, Alg. 1."""
    for now, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        d = (x - net(x, now, Y)) / now
        ahead = x + (following - now) * d
        x = x + (following - now) * (d + (ahead - net(ahead, following, Y)) / following) / 2
    return x


@cache
def solution() -> Tensor:
    """Where the guided path from 80 * START ends."""
    return heun(guided(), 80 * START, sigmas_of(320))


class TestDenoisers:
    def test_the_formula(self):
        """D + sigma^2 times the gradient of log p(y | x / sqrt(1 + sigma^2)) for x."""
        sigma = torch.tensor([0.05, 1.0, 20.0], dtype=torch.float64)
        x = START * sigma.reshape(-1, 1, 1, 1)
        net = GuidedDenoiser(DATA.denoised, ClassifierGuidance(CLASSIFIER, ConstantRule(2.0)), ABAR)
        x_in = x.clone().requires_grad_(True)
        logits = CLASSIFIER(x_in / (1 + sigma**2).sqrt().reshape(-1, 1, 1, 1), net.t_of(sigma))
        (gradient,) = torch.autograd.grad(logits.log_softmax(1)[range(3), Y].sum(), x_in)
        expected = DATA.denoised(x, sigma) + 2 * (sigma**2).reshape(-1, 1, 1, 1) * gradient
        found = GuidedDenoiser(lambda x, s, labels: DATA.denoised(x, s), net.guidance, ABAR)(x, sigma, Y)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)

    def test_timesteps_between_whole_ones(self):
        net = guided()
        sigma_T = ((1 - ABAR) / ABAR).sqrt()
        whole = torch.tensor([0, 17, 400, 999])
        torch.testing.assert_close(net.t_of(sigma_T[whole]), whole.double(), rtol=0, atol=1e-6)
        between = (sigma_T[400] * sigma_T[401]).sqrt().reshape(1)
        assert net.t_of(between).item() == pytest.approx(400.5)
        assert guided(whole_t=True).t_of(sigma_T[[17]] * 1.0001).tolist() == [17]
        assert net.t_of(torch.tensor([1e-6, 1e6])).tolist() == [0, 999]

    def test_the_order_of_heun(self):
        """Both stages are guided: twice the steps, a quarter of the error. With one it would be half."""
        x = 80 * START
        errors = [float((heun(guided(), x, sigmas_of(n)) - solution()).abs().max()) for n in (20, 40, 80)]
        ratios = [coarse / fine for coarse, fine in zip(errors, errors[1:], strict=False)]
        assert all(ratio > 3.5 for ratio in ratios), errors
        assert (solution() - heun(guided(0.0), x, sigmas_of(80))).abs().max() > 0.05

    def test_an_interval_of_sigma(self):
        x, net = START, guided(interval=(0.5, 3.0))
        everywhere = guided()
        sigma = torch.tensor([0.4, 0.5, 3.1], dtype=torch.float64)
        found = net(x, sigma, Y)
        assert torch.equal(found[1], everywhere(x, sigma, Y)[1])
        assert torch.equal(found[[0, 2]], DATA.denoised(x, sigma)[[0, 2]])
        assert torch.equal(net(x, 5.0, Y), DATA.denoised(x, torch.full((3,), 5.0)))
        with pytest.raises(ValueError, match=r"interval: found \(3, 1\)"):
            guided(interval=(3, 1))

    def test_labels_and_attributes_of_edm(self):
        net = types.SimpleNamespace(sigma_min=0.002, round_sigma=lambda sigma: sigma)

        class Network:
            sigma_min = 0.002

            def __call__(self, x, sigma, labels):
                return DATA.denoised(x, torch.as_tensor(sigma).expand(len(x)))

        net = GuidedDenoiser(Network(), ClassifierGuidance(steady, ConstantRule()), ABAR)
        onehot = torch.nn.functional.one_hot(Y, 5).double()
        assert net.sigma_min == 0.002
        torch.testing.assert_close(net(START, 1.0, onehot), net(START, torch.ones(3), Y))

    def test_it_is_the_papers_own_wrapper_at_whole_timesteps(self):
        t = torch.tensor([10, 300, 900])
        sigma = ((1 - ABAR) / ABAR).sqrt()[t]
        guidance = ClassifierGuidance(CLASSIFIER, EntropyRule(2.0))
        expected = guidance.guide_denoised(DATA.denoised(START, sigma), START, sigma, Y, ABAR)
        found = GuidedDenoiser(lambda x, s, y: DATA.denoised(x, s), guidance, ABAR)(START, sigma, y=Y)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.fixture(scope="module")
def k_sampling():
    """k-diffusion's own sampling.py, without what its package imports for training."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        pytest.skip("the host: pip install --no-deps k-diffusion")
    folder = Path(spec.submodule_search_locations[0])
    stubs = {name: types.ModuleType(name) for name in ("torchdiffeq", "torchsde", "k_host", "k_host.utils")}
    stubs["torchdiffeq"].odeint = None
    stubs["k_host"].__path__ = []
    stubs["k_host"].utils = stubs["k_host.utils"]
    stubs["k_host.utils"].append_dims = lambda x, dims: x.reshape(*x.shape, *[1] * (dims - x.dim()))
    before = {name: sys.modules.get(name) for name in stubs}
    sys.modules.update({name: stub for name, stub in stubs.items() if before[name] is None})
    loader = importlib.util.spec_from_file_location("k_host.sampling", folder / "sampling.py")
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    yield module
    for name, was in before.items():
        if was is None:
            del sys.modules[name]


class TestKDiffusion:
    @pytest.mark.parametrize(("name", "ours"), [("sample_euler", "ddim"), ("sample_heun", "heun")])
    def test_its_samplers_are_ours(self, k_sampling, name, ours):
        """On the process's own sigmas the two are one formula."""
        diffusion = process()
        sigmas = torch.from_numpy(np.append(np.sqrt(1 / diffusion.alphas_cumprod - 1)[::-1], 0.0))
        net = GuidedDenoiser(lambda x, sigma, y: DATA.denoised(x, sigma), GUIDANCES["eds"](), ABAR)
        start = START * float((1 + sigmas[0] ** 2) ** 0.5)
        found = getattr(k_sampling, name)(net, start, sigmas, extra_args={"y": Y}, disable=True)
        options = {"noise": START, "cond_fn": GUIDANCES["eds"](), "model_kwargs": {"y": Y}, "clip_denoised": False}
        expected = sampling_loop(diffusion, ours)(DATA.eps, SHAPE, **options)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize(("name", "tolerance"), [("sample_heun", 5e-3), ("sample_dpmpp_2m", 2e-2)])
    def test_second_order(self, k_sampling, name, tolerance):
        sample = getattr(k_sampling, name)
        found = sample(guided(), 80 * START, sigmas_of(80), extra_args={"y": Y}, disable=True)
        assert (found - solution()).abs().max() < tolerance

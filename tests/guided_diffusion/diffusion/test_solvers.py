"""DPM-Solver++(2M) and UniPC-2: against diffusers' schedulers, closed forms, DDIM; and as --sampler of the scripts."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ed_dpm_patches import ClassifierGuidance, EntropyRule
from guided_diffusion.diffusion import samplers
from guided_diffusion.diffusion.solvers import SAMPLERS, DPMSolverPP2M, UniPC2, sampling_loop
from guided_diffusion.errors import InputError
from guided_diffusion.gaussian_diffusion import (
    GaussianDiffusion,
    LossType,
    ModelMeanType,
    ModelVarType,
    get_named_beta_schedule,
)
from guided_diffusion.respace import SpacedDiffusion, space_timesteps
from guided_diffusion.sampling.shards import ShardStore
from tests.support.helpers import read_npz

SOLVERS = {"dpmpp2m": DPMSolverPP2M, "unipc": UniPC2}
BETAS = get_named_beta_schedule("linear", 1000)
MEAN_TYPES = {"epsilon": ModelMeanType.EPSILON, "sample": ModelMeanType.START_X}


def process(timesteps, mean="epsilon", variance=ModelVarType.FIXED_SMALL, betas=BETAS) -> SpacedDiffusion:
    """The process over some timesteps, or over as many as a number says."""
    chosen = space_timesteps(len(betas), [timesteps]) if isinstance(timesteps, int) else timesteps
    return SpacedDiffusion(
        chosen, betas=betas, model_mean_type=MEAN_TYPES[mean], model_var_type=variance, loss_type=LossType.MSE
    )


def wavy(x: Tensor, t: Tensor, **kwargs) -> Tensor:
    """A network that is not linear in x and depends on t; sample by sample the same in any batch."""
    return 0.8 * torch.tanh(1.3 * x + t.reshape(-1, 1, 1, 1) / 500 - 0.5)


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


class TestAgainstDiffusers:
    """Their schedulers on the same betas and timesteps, with the same network.

    Their grid ends at the noise of t = 0, as the papers' does, with a step of lower order. Ours goes on from there
    to the image, so what is compared is x before the last step; that returns x_0.
    """

    def both(self, sampler: str, steps: int, mean: str, schedule: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        diffusers = pytest.importorskip("diffusers", reason="the oracle: pip install -c constraints.txt diffusers")
        betas = get_named_beta_schedule(schedule, 1000)
        name = {"dpmpp2m": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler"}[sampler]
        lower_at_the_end = {"euler_at_final": True} if sampler == "dpmpp2m" else {}  # UniPC's always is
        scheduler = getattr(diffusers, name)(
            trained_betas=betas, prediction_type=mean, solver_order=2, final_sigmas_type="sigma_min", **lower_at_the_end
        )
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps.tolist()
        diffusion = process([*timesteps, 0], mean, betas=betas)
        assert diffusion.timestep_map == [0, *timesteps[::-1]]
        sigmas = np.sqrt(1 / diffusion.alphas_cumprod - 1)[::-1]
        assert np.allclose(scheduler.sigmas, sigmas, rtol=1e-2)
        if dtype is torch.float64:  # theirs are of single precision
            scheduler.sigmas = torch.from_numpy(sigmas.copy())
        start = noise(3, 1, 8, 8, dtype=dtype)
        theirs = start
        for t in timesteps:
            theirs = scheduler.step(wavy(theirs, torch.tensor([t] * 3)), t, theirs).prev_sample
        ours = list(
            samplers.sample_progressively(
                diffusion, SOLVERS[sampler](diffusion), wavy, start.shape, noise=start, clip_denoised=False
            )
        )
        assert torch.equal(ours[-1]["sample"], ours[-1]["pred_xstart"])
        return theirs, ours[-2]["sample"]

    @pytest.mark.parametrize("steps", [1, 2, 3, 5, 14, 15, 50])
    @pytest.mark.parametrize("sampler", SOLVERS)
    def test_single_precision(self, sampler, steps):
        theirs, ours = self.both(sampler, steps, "sample", "linear", torch.float32)
        assert ours.dtype is torch.float32 and (ours - theirs).abs().max() < 1e-5

    @pytest.mark.parametrize("schedule", ["linear", "cosine"])
    @pytest.mark.parametrize("steps", [2, 5, 25])
    def test_unipc_in_double_precision(self, steps, schedule):
        theirs, ours = self.both("unipc", steps, "sample", schedule, torch.float64)
        assert ours.dtype is torch.float64 and (ours - theirs).abs().max() < 1e-12

    # They compute this one's steps in single precision whatever they are given.
    def test_dpm_solver_in_double_precision(self):
        theirs, ours = self.both("dpmpp2m", 25, "sample", "linear", torch.float64)
        assert (ours - theirs).abs().max() < 1e-6

    @pytest.mark.parametrize("sampler", SOLVERS)
    def test_models_of_the_noise(self, sampler):
        theirs, ours = self.both(sampler, 25, "epsilon", "linear", torch.float32)
        assert theirs.abs().max() > 100, "relative, as this network's images are large"
        assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-6


# --- closed forms ------------------------------------------------------------------------------------------

MU, STD = 0.3, 0.5  # of Gaussian data


def path(abar: float, z: Tensor, mu: float = MU) -> Tensor:
    """Where the deterministic path of quantile z is, for data from N(mu, STD^2)."""
    return mu * abar**0.5 + (abar * STD**2 + 1 - abar) ** 0.5 * z


def even_process(steps: int) -> GaussianDiffusion:
    """Points at equal distances of lambda from -3 to 3."""
    abar = 1 / (1 + np.exp(-2 * np.linspace(3, -3, steps + 1)))
    return GaussianDiffusion(
        betas=1 - abar / np.append(1.0, abar[:-1]), model_mean_type=ModelMeanType.START_X,
        model_var_type=ModelVarType.FIXED_SMALL, loss_type=LossType.MSE,
    )  # fmt: skip


def error_at_the_last_point(sampler: str, steps: int) -> float:
    """Before the two final steps, which are of first order."""
    diffusion = even_process(steps)
    step = SOLVERS[sampler](diffusion) if sampler in SOLVERS else samplers.ddim_step

    def mean_of_x_start(x: Tensor, t: Tensor) -> Tensor:
        abar = torch.from_numpy(diffusion.alphas_cumprod)[t].reshape(-1, 1)
        return MU + abar.sqrt() * STD**2 / (abar * STD**2 + 1 - abar) * (x - abar.sqrt() * MU)

    z = torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(1, 5)
    start = path(diffusion.alphas_cumprod[-1], z)
    results = list(
        samplers.sample_progressively(diffusion, step, mean_of_x_start, (1, 5), noise=start, clip_denoised=False)
    )
    return float((results[-3]["sample"] - path(diffusion.alphas_cumprod[1], z)).abs().max())


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp2m", 2), ("unipc", 3)])
def test_order_of_convergence(sampler, order):
    """UniPC of order p converges with order p + 1 (2302.04867, after Theorem 3.1)."""
    coarse, fine = error_at_the_last_point(sampler, 80), error_at_the_last_point(sampler, 160)
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.05)


class Mixture:
    """Two Gaussians in every pixel, at -0.6 and 0.6: the exact network and the exact classifier."""

    means = torch.tensor([-0.6, 0.6])

    def log_joint(self, x: Tensor, t: Tensor) -> Tensor:
        """log p(x_t, class) up to a constant, [B, 2, ...]."""
        abar = torch.from_numpy(np.cumprod(1 - BETAS)).float()[t].reshape(-1, 1, 1, 1, 1)
        distance = x.unsqueeze(1) - abar.sqrt() * self.means.reshape(1, 2, 1, 1, 1)
        return -(distance**2) / (2 * (abar * STD**2 + 1 - abar))

    def eps(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        abar = torch.from_numpy(np.cumprod(1 - BETAS)).float()[t].reshape(-1, 1, 1, 1)
        return -(1 - abar).sqrt() * self._gradient(lambda x: self.log_joint(x, t).logsumexp(1), x)

    def guidance(self, scale: float):
        def cond_fn(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            def log_p(x: Tensor) -> Tensor:
                return self.log_joint(x, t).log_softmax(1)[torch.arange(len(x)), y]

            return scale * self._gradient(log_p, x)

        return cond_fn

    def _gradient(self, function, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(function(x).sum(), x)[0]

    def sample(self, sampler: str, steps: int, scale: float) -> tuple[Tensor, Tensor]:
        """Samples of the classes 0, 1, 1 and the noise they began with."""
        start = noise(3, 1, 4, 4)
        loop = sampling_loop(process(steps), sampler)
        options = {"cond_fn": self.guidance(scale), "model_kwargs": {"y": torch.tensor([0, 1, 1])}}
        return loop(self.eps, start.shape, noise=start, clip_denoised=False, **options), start


class TestGuided:
    @pytest.mark.slow
    @pytest.mark.parametrize("sampler", SOLVERS)
    def test_same_point_as_ddim_with_all_steps(self, sampler):
        ddim, _ = Mixture().sample("ddim", 1000, scale=3.0)
        found, _ = Mixture().sample(sampler, 250, scale=3.0)
        unguided, _ = Mixture().sample(sampler, 250, scale=0.0)
        assert (found - ddim).abs().max() < 0.01 < 0.1 < (found - unguided).abs().max()

    @pytest.mark.parametrize("sampler", SOLVERS)
    def test_scale_one_samples_from_the_class(self, sampler):
        """Score of the mixture plus gradient of the classifier is the score of one Gaussian: a closed form."""
        found, start = Mixture().sample(sampler, 50, scale=1.0)
        first = np.prod(1 - BETAS)
        mu = Mixture.means[torch.tensor([0, 1, 1])].reshape(3, 1, 1, 1)
        z = (start - first**0.5 * mu) / (first * STD**2 + 1 - first) ** 0.5
        error = (found - path(1.0, z, mu)).abs().max()
        ddim = (Mixture().sample("ddim", 50, scale=1.0)[0] - path(1.0, z, mu)).abs().max()
        assert error < 0.005 and error < ddim / 10

    @pytest.mark.parametrize("sampler", [*SOLVERS, "heun", "strang"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_entropy_driven_guidance_of_any_batch(self, sampler, channels):
        """Learned variance, any channels: finite, and a sample is the same bit for bit in another batch."""

        class MeanColour(nn.Module):
            def forward(self, x: Tensor, t: Tensor) -> Tensor:
                return torch.stack([(k - 1) * x.sum((1, 2, 3)) for k in range(3)], dim=1)

        def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return torch.cat([wavy(x, t), torch.zeros_like(x)], dim=1)

        guidance = ClassifierGuidance(MeanColour(), EntropyRule(2.0))
        calls = []

        def cond_fn(x, t, y):
            calls.append(t)
            return guidance(x, t, y)

        def sample(rows: slice) -> Tensor:
            start = noise(4, channels, 8, 8)[rows]
            labels = torch.tensor([0, 2, 1, 2])[rows]
            loop = sampling_loop(process(6, variance=ModelVarType.LEARNED_RANGE), sampler)
            return loop(model, start.shape, noise=start, cond_fn=cond_fn, model_kwargs={"y": labels})

        together = sample(slice(None))
        assert together.isfinite().all() and len(calls) == SAMPLERS[sampler].evaluations(6)
        assert torch.equal(torch.cat([sample(slice(0, 1)), sample(slice(1, 4))]), together)


class TestSteps:
    @pytest.mark.parametrize("solver", SOLVERS.values())
    def test_the_image_is_the_last_prediction(self, solver):
        diffusion = process(5)
        results = list(samplers.sample_progressively(diffusion, solver(diffusion), wavy, (2, 1, 4, 4), device="cpu"))
        assert torch.equal(results[-1]["sample"], results[-1]["pred_xstart"])
        assert all(result["pred_xstart"].abs().max() <= 1 for result in results), "clamped"

    @pytest.mark.parametrize("solver", SOLVERS.values())
    def test_two_steps_are_those_of_ddim(self, solver):
        """Where there is no past and where it ends they are of first order; UniPC corrects what is between."""
        start = noise(2, 1, 4, 4)
        diffusion = process(2)
        steps = solver(diffusion), samplers.ddim_step
        ours, ddim = (
            list(samplers.sample_progressively(diffusion, step, wavy, start.shape, noise=start)) for step in steps
        )
        for index in (0, 1):
            assert torch.allclose(ours[index]["sample"], ddim[index]["sample"], atol=1e-5)

    def test_an_object_is_one_run(self):
        diffusion = process(1)
        step = UniPC2(diffusion)
        x, t = noise(1, 1, 4, 4), torch.zeros(1, dtype=torch.long)
        step(diffusion, wavy, x, t)
        with pytest.raises(ValueError, match="more steps than the 1"):
            step(diffusion, wavy, x, t)

    def test_no_random_numbers_but_the_start(self):
        start = noise(2, 1, 4, 4)
        for sampler in SOLVERS:
            torch.manual_seed(0)
            sampling_loop(process(3), sampler)(wavy, start.shape, noise=start, noise_fn=None)
            after = torch.rand(1)
            torch.manual_seed(0)
            assert torch.equal(after, torch.rand(1))


# --- flags -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("ddim999", "found ddim999, but no integer stride takes 999 of 1000 timesteps; expected another number such as "
                    "ddim500 or ddim1000"),
        ("ddim45", "no integer stride takes 45 of 1000 timesteps; expected another number such as ddim44 or ddim46"),
        ("2000", "found 2000 for a section of 1000 timesteps, expected at most 1000"),
    ],
)  # fmt: skip
def test_numbers_of_timesteps_that_there_are_not(asked, says):
    with pytest.raises(ValueError, match=says):
        space_timesteps(1000, asked)


class TestFlags:
    def test_names(self):
        diffusion = process(4)
        for sampler in SAMPLERS:
            assert callable(sampling_loop(diffusion, sampler))
        assert sampling_loop(diffusion, "ddim") == sampling_loop(diffusion, "", True) == diffusion.ddim_sample_loop
        assert sampling_loop(diffusion) == sampling_loop(diffusion, "ddpm") == diffusion.p_sample_loop

    @pytest.mark.parametrize("sampler", ["ddpm", "unipc"])
    def test_contradiction(self, sampler):
        with pytest.raises(InputError, match=f"--sampler: found {sampler} together with --use_ddim, expected ddim"):
            sampling_loop(process(4), sampler, use_ddim=True)

    @pytest.mark.slow
    @pytest.mark.parametrize("sampler", [*SOLVERS, "heun", "strang"])
    def test_guided_samples_resumed_and_in_two_processes(self, run, tmp_path, checkpoints, sampler):
        flags = {
            "model_path": checkpoints["model"], "classifier_path": checkpoints["classifier"], "eds": None,
            "num_samples": 5, "batch_size": 2, "timestep_respacing": "4", "sampler": sampler, "trace": "trace.npz",
        }  # fmt: skip
        name = "samples_5x8x8x3.npz"
        run("classifier_sample", flags | {"log_dir": "one"})
        run("classifier_sample", flags | {"log_dir": "two", "trace": "two.npz"}, launcher="fork2")
        one, two = (read_npz(tmp_path / folder / name) for folder in ("one", "two"))
        assert all(np.array_equal(one[key], two[key]) for key in one)
        assert read_npz(tmp_path / "trace.npz")["scale"].shape == (5, 4)

        flags.pop("trace")
        run("classifier_sample", flags | {"log_dir": "cut"})
        (tmp_path / "cut" / name).unlink()
        ShardStore(tmp_path / "cut").write(0, {"arr_0": np.zeros((2, 8, 8, 3), np.uint8), "arr_1": np.zeros(2, int)})
        assert "resuming: 2 of 5" in run("classifier_sample", flags | {"log_dir": "cut"}).stdout
        cut = read_npz(tmp_path / "cut" / name)["arr_0"]
        assert not cut[:2].any() and np.array_equal(cut[2:], one["arr_0"][2:])

        (line,) = run("classifier_sample", flags | {"log_dir": "cut", "sampler": "ddim"}, fails=True).error_lines
        assert f"--sampler ddim (the run there has {sampler})" in line

    @pytest.mark.slow
    @pytest.mark.parametrize("launcher", ["fork", "fork2"])
    def test_unguided_samples(self, run, tmp_path, checkpoints, launcher):
        flags = {"model_path": checkpoints["model"], "num_samples": 3, "batch_size": 2, "timestep_respacing": "4"}
        made = {}
        for sampler in ("ddim", *SOLVERS, "heun"):
            run("image_sample", flags | {"sampler": sampler, "log_dir": sampler}, launcher=launcher)
            made[sampler] = read_npz(tmp_path / sampler / "samples_3x8x8x3.npz")["arr_0"]
        run("image_sample", flags | {"use_ddim": None, "log_dir": "upstream"}, launcher=launcher)
        assert np.array_equal(made["ddim"], read_npz(tmp_path / "upstream" / "samples_3x8x8x3.npz")["arr_0"])
        assert not any(np.array_equal(made["ddim"], made[sampler]) for sampler in SOLVERS)

    @pytest.mark.parametrize("script", ["image_sample", "classifier_sample", "super_res_sample"])
    def test_contradictory_flags_in_one_line(self, run, tmp_path, checkpoints, script):
        flags = {"model_path": checkpoints["model"], "use_ddim": None, "sampler": "unipc"}
        if script == "classifier_sample":
            flags["classifier_path"] = checkpoints["classifier"]
        if script == "super_res_sample":
            np.savez(tmp_path / "base.npz", np.zeros((1, 4, 4, 3), np.uint8))
            flags |= {"model_path": checkpoints["super_res"], "base_samples": "base.npz"}
        ended = run(script, flags, fails=True)
        told = "error: --sampler: found unipc together with --use_ddim, expected ddim or no --use_ddim"
        assert ended.error_lines == [told] and ended.statuses == [2]

    def test_unknown_sampler(self, run):
        (line,) = run("image_sample", {"sampler": "euler"}, fails=True).error_lines
        assert 'found \'euler\', expected one of "", ddpm, ddim, dpmpp2m, unipc' in line

    def test_a_run_from_before_the_flag_goes_on(self, run, tmp_path, checkpoints):
        flags = {"model_path": checkpoints["model"], "num_samples": 2, "timestep_respacing": "2", "log_dir": "out"}
        run("image_sample", flags)
        shutil.copytree(tmp_path / "out", tmp_path / "old")
        manifest = tmp_path / "old" / "run.json"
        saved = json.loads(manifest.read_text())
        assert saved.pop("sampler") == ""
        manifest.write_text(json.dumps(saved))
        assert "already complete" in run("image_sample", flags | {"log_dir": "old"}).stdout
        manifest.write_text(json.dumps(saved))
        (line,) = run("image_sample", flags | {"log_dir": "old", "sampler": "unipc"}, fails=True).error_lines
        assert "--sampler unipc" in line

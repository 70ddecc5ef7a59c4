"""Trace: its numbers and maps against formulas, which samples it keeps, and the file a run leaves."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ed_dpm_patches import ClassifierGuidance, ConstantRule, EntropyRule
from ed_dpm_patches.trace import Trace
from guided_diffusion.config.class_labels import Classes
from guided_diffusion.gaussian_diffusion import GaussianDiffusion, LossType, ModelMeanType, ModelVarType
from guided_diffusion.sampling.noise import LabelPlan
from guided_diffusion.sampling.run import Batch, SampleRun
from guided_diffusion.script_util import create_gaussian_diffusion
from tests.support.helpers import Runner, make_checkpoint, read_npz
from tests.support.networks import LINEAR_CLASSES, LINEAR_SHAPE, LINEAR_WEIGHT, linear_classifier, sine_model

MEASURES = {"t", "entropy_ratio", "p_y", "grad_norm", "scale", "relative_guidance"}
MAPS = {"map_t", "map_x_t", "map_pred_xstart", "map_guidance"}


def slope_of_log_p(x: Tensor, y: Tensor) -> Tensor:
    """The gradient of log p_y by hand: W_y - sum_k p_k W_k."""
    p = linear_classifier(x, x).softmax(dim=1)
    return LINEAR_WEIGHT[y] - torch.einsum("bk,kchw->bchw", p, LINEAR_WEIGHT)


def loop(diffusion: GaussianDiffusion, sampler: str, trace: Trace, rule, count: int = 3) -> list[tuple]:
    """Sample `count` guided images; (x_t, t, guidance) of every step."""
    guidance, seen = ClassifierGuidance(linear_classifier, rule, observer=trace.observe), []

    def remember(x: Tensor, t: Tensor, **kwargs) -> Tensor:
        seen.append((x, t, guidance(x, t, **kwargs)))
        return seen[-1][2]

    torch.manual_seed(1)
    y = torch.arange(count) % LINEAR_CLASSES
    trace.begin()
    options = {"cond_fn": remember, "model_kwargs": {"y": y}, "callback": trace.step}
    getattr(diffusion, sampler)(sine_model, (count, *LINEAR_SHAPE), device="cpu", **options)
    return seen


@pytest.mark.parametrize("sampler", ["p_sample_loop", "ddim_sample_loop"])
@pytest.mark.parametrize("predict_xstart", [False, True])
@pytest.mark.parametrize("respacing", ["ddim5", "", "7"])
def test_contents(sampler, predict_xstart, respacing):
    diffusion = create_gaussian_diffusion(
        steps=1000 if respacing else 60, predict_xstart=predict_xstart, timestep_respacing=respacing
    )
    gamma = 0.05  # weak: unclipped DDIM with a toy network must not run away
    trace = Trace(diffusion, samples=2, maps=3)
    seen = loop(diffusion, sampler, trace, EntropyRule(gamma))
    arrays = trace.take()
    assert set(arrays) == MEASURES | MAPS | {"y"}
    assert arrays["t"].tolist() == [[int(t[0]) for _, t, _ in seen]] * 3 and arrays["t"].dtype == np.int64
    assert arrays["y"].tolist() == [0, 1, 2] and arrays["y"].dtype == np.int64

    y = torch.arange(3)
    kept = {0, round((len(seen) - 1) / 2), len(seen) - 1}
    column = 0
    for step, (x, t, g) in enumerate(seen):
        p = linear_classifier(x, t).double().softmax(-1)
        entropy = -(p * p.log()).sum(-1)
        scale = gamma * math.log(LINEAR_CLASSES) / entropy
        torch.testing.assert_close(g, scale[:, None, None, None].float() * slope_of_log_p(x, y), rtol=1e-4, atol=1e-5)

        abar = float(diffusion.alphas_cumprod[-1 - step])
        signal, noise = abar**0.5, (1 - abar) ** 0.5
        output = sine_model(x.double(), t, y)
        eps = (x - signal * output) / noise if predict_xstart else output
        x_start = output if predict_xstart else (x - noise * output) / signal
        for name, expected in {
            "entropy_ratio": entropy / math.log(LINEAR_CLASSES),
            "p_y": p[range(3), y],
            "scale": scale,
            "grad_norm": slope_of_log_p(x, y).flatten(1).norm(dim=1),
            "relative_guidance": noise * g.flatten(1).norm(dim=1) / eps.flatten(1).norm(dim=1),
        }.items():
            assert arrays[name].dtype == np.float32
            np.testing.assert_allclose(arrays[name][:, step], expected.numpy(), rtol=2e-4, err_msg=name)
        if step in kept:
            assert (arrays["map_t"][:, column] == int(t[0])).all() and arrays["map_t"].dtype == np.int64
            assert np.array_equal(arrays["map_x_t"][:, column], x[:2])
            assert np.array_equal(arrays["map_guidance"][:, column], g[:2]), "what the cond_fn returned"
            expected = x_start[:2].clamp(-1, 1).numpy()
            np.testing.assert_allclose(arrays["map_pred_xstart"][:, column], expected, atol=1e-3)
            column += 1
    assert column == 3 == arrays["map_t"].shape[1]
    assert all(arrays[f"map_{name}"].dtype == np.float32 for name in ("x_t", "pred_xstart", "guidance"))


def test_a_model_of_the_previous_x_agrees_with_the_process():
    diffusion = GaussianDiffusion(
        betas=np.linspace(0.1, 0.6, 6), model_mean_type=ModelMeanType.PREVIOUS_X,
        model_var_type=ModelVarType.FIXED_SMALL, loss_type=LossType.MSE,
    )  # fmt: skip
    trace = Trace(diffusion, samples=3, maps=99)
    seen = loop(diffusion, "p_sample_loop", trace, ConstantRule(1.5))
    arrays = trace.take()
    for step, (x, t, g) in enumerate(seen):
        expected = diffusion.p_mean_variance(sine_model, x, t, model_kwargs={"y": t})["pred_xstart"]
        np.testing.assert_allclose(arrays["map_pred_xstart"][:, step], expected, atol=1e-5)
        raw = diffusion.p_mean_variance(sine_model, x, t, clip_denoised=False, model_kwargs={"y": t})["pred_xstart"]
        eps = diffusion._predict_eps_from_xstart(x, t, raw)
        noise = (1 - diffusion.alphas_cumprod[int(t[0])]) ** 0.5
        relative = noise * g.flatten(1).norm(dim=1) / eps.flatten(1).norm(dim=1)
        np.testing.assert_allclose(arrays["relative_guidance"][:, step], relative, rtol=1e-4)


@pytest.mark.parametrize(
    ("maps", "kept"), [(1, [4]), (2, [4, 0]), (3, [4, 2, 0]), (4, [4, 3, 1, 0]), (9, [4, 3, 2, 1, 0])]
)
def test_steps_of_the_maps(maps, kept):
    diffusion = create_gaussian_diffusion(steps=5, noise_schedule="cosine")
    trace = Trace(diffusion, samples=1, maps=maps)
    loop(diffusion, "ddim_sample_loop", trace, ConstantRule(1.0))
    assert trace.take()["map_t"].tolist() == [kept]


def test_rescaled_timesteps_are_recorded_as_they_are():
    diffusion = create_gaussian_diffusion(steps=40, timestep_respacing="4", rescale_timesteps=True)
    trace = Trace(diffusion, samples=1)
    loop(diffusion, "ddim_sample_loop", trace, ConstantRule(1.0))
    arrays = trace.take()
    assert arrays["t"][0].tolist() == arrays["map_t"][0].tolist() == diffusion.timestep_map[::-1]


def test_an_unfinished_batch_is_refused_and_dropped_by_the_next():
    diffusion = create_gaussian_diffusion(steps=4, noise_schedule="cosine")
    trace = Trace(diffusion, samples=2)
    guidance = ClassifierGuidance(linear_classifier, ConstantRule(1.0), observer=trace.observe)
    options = {"cond_fn": guidance, "model_kwargs": {"y": torch.tensor([0])}, "callback": trace.step}
    next(diffusion.p_sample_loop_progressive(sine_model, (1, *LINEAR_SHAPE), device="cpu", **options))
    with pytest.raises(ValueError, match="found 1 observed steps, expected 4"):
        trace.take()
    loop(diffusion, "ddim_sample_loop", trace, ConstantRule(1.0))
    assert trace.take()["t"].shape == (3, 4)


class TestRun:
    """Through SampleRun, with a network whose numbers do not depend on the batch."""

    def sample(self, folder: Path, *, batch_size: int = 2, samples: int = 3, dies_at: int | None = None, gamma=2.0):
        diffusion = create_gaussian_diffusion(steps=50, noise_schedule="cosine", timestep_respacing="ddim5")
        trace = Trace(diffusion, samples=samples, maps=2)
        guidance = ClassifierGuidance(linear_classifier, EntropyRule(gamma), observer=trace.observe)

        def draw(batch: Batch) -> Tensor:
            if dies_at in batch.indices:
                raise KeyboardInterrupt
            trace.begin(batch.indices[0])
            options = {"cond_fn": guidance, "model_kwargs": {"y": batch.labels}}
            return diffusion.ddim_sample_loop(sine_model, **batch.loop_arguments(LINEAR_SHAPE, trace.step), **options)

        run = SampleRun(
            num_samples=7, batch_size=batch_size, shape=LINEAR_SHAPE, seed=0, directory=folder, flags={},
            labels=LabelPlan("", False, Classes(LINEAR_CLASSES)), extras_path=folder / "trace.npz",
        )  # fmt: skip
        samples_path = run.generate(draw, extras=trace.take)
        return read_npz(folder / "trace.npz"), read_npz(samples_path)

    def test_first_samples_only(self, tmp_path):
        trace, arrays = self.sample(tmp_path)
        assert {name: a.shape for name, a in trace.items()} == {
            "t": (7, 5), "entropy_ratio": (7, 5), "p_y": (7, 5), "grad_norm": (7, 5), "scale": (7, 5),
            "relative_guidance": (7, 5), "y": (7,), "map_t": (3, 2), "map_x_t": (3, 2, *LINEAR_SHAPE),
            "map_pred_xstart": (3, 2, *LINEAR_SHAPE), "map_guidance": (3, 2, *LINEAR_SHAPE),
        }  # fmt: skip
        assert np.array_equal(trace["y"], arrays["arr_1"])
        assert np.array_equal(trace["map_t"], trace["t"][:3, [0, 4]])
        # Sample 2 alone in the second batch: its maps belong to its row of the measures.
        for row, y in enumerate(trace["y"][:3]):
            x = torch.from_numpy(trace["map_x_t"][row])
            slope = slope_of_log_p(x, torch.full((2,), int(y)))
            scale = torch.from_numpy(trace["scale"][row, [0, 4]]).reshape(2, 1, 1, 1)
            np.testing.assert_allclose(trace["map_guidance"][row], scale * slope, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("batch_size", [1, 5, 9])
    def test_batch_size(self, tmp_path, batch_size):
        expected, _ = self.sample(tmp_path / "2")
        found, _ = self.sample(tmp_path / "other", batch_size=batch_size)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6, err_msg=name)

    @pytest.mark.parametrize("dies_at", [1, 2, 6])
    def test_interrupted_and_continued(self, tmp_path, dies_at):
        self.sample(tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            self.sample(tmp_path / "cut", dies_at=dies_at)
        assert not (tmp_path / "cut" / "trace.npz").exists()
        self.sample(tmp_path / "cut")
        assert (tmp_path / "cut" / "trace.npz").read_bytes() == (tmp_path / "whole" / "trace.npz").read_bytes()

    def test_more_than_there_are(self, tmp_path):
        trace, _ = self.sample(tmp_path, samples=100)
        assert trace["map_x_t"].shape == (7, 2, *LINEAR_SHAPE)


@pytest.fixture(scope="module")
def sample(fork_server, tmp_path_factory, checkpoints):
    """Runs classifier_sample with a trace in a folder of its own: (trace or None, samples, folder)."""

    def go(launcher: str = "fork", trace: bool = True, **changes):
        folder = tmp_path_factory.mktemp("traced")
        flags = {
            "model_path": checkpoints["conditional"], "classifier_path": checkpoints["classifier"], "eds": None,
            "num_samples": 5, "batch_size": 2, "use_ddim": None, "timestep_respacing": "ddim4",
            "classifier_scale": 2.0, "log_dir": "out",
        } | ({"trace": "trace.npz"} if trace else {}) | changes  # fmt: skip
        Runner(fork_server, folder)("classifier_sample", flags, launcher=launcher)
        (samples,) = (folder / "out").glob("samples*.npz")
        return read_npz(folder / "trace.npz") if trace else None, read_npz(samples), folder

    return go


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def traced(sample):
    return sample(trace_samples=3, trace_maps=2)


class TestScript:
    def test_arrays(self, traced):
        trace, arrays, folder = traced
        assert set(trace) == MEASURES | MAPS | {"y"}
        assert all(trace[name].shape == (5, 4) and np.isfinite(trace[name]).all() for name in MEASURES)
        assert (trace["t"] == [15, 10, 5, 0]).all(), "original timesteps, in the order of sampling"
        assert (trace["map_t"] == [15, 0]).all() and trace["map_t"].shape == (3, 2)
        assert trace["map_x_t"].shape == trace["map_guidance"].shape == (3, 2, 3, 8, 8)
        assert np.abs(trace["map_pred_xstart"]).max() <= 1
        assert np.array_equal(trace["y"], arrays["arr_1"])
        assert ((trace["entropy_ratio"] > 0) & (trace["entropy_ratio"] <= 1 + 1e-6)).all()
        assert ((trace["p_y"] > 0) & (trace["p_y"] < 1)).all()
        # Eq. 9: gamma * log K / H.
        assert np.allclose(trace["scale"] * trace["entropy_ratio"], 2.0, rtol=1e-4)
        norm = np.linalg.norm(trace["map_guidance"].reshape(3, 2, -1), axis=2)
        np.testing.assert_allclose(norm, (trace["scale"] * trace["grad_norm"])[:3, [0, 3]], rtol=1e-4)
        saved = json.loads((folder / "out" / "run.json").read_text())
        assert saved["trace_samples"] == 3 and saved["trace_maps"] == 2

    def test_two_processes(self, sample, traced):
        trace, arrays, _ = sample("fork2", trace_samples=3, trace_maps=2)
        assert same(trace, traced[0]) and same(arrays, traced[1])

    def test_no_maps(self, sample, traced):
        trace, arrays, _ = sample(trace_samples=0)
        assert set(trace) == MEASURES | {"y"} and same(arrays, traced[1])
        assert all(np.array_equal(trace[name], traced[0][name]) for name in trace)

    @pytest.mark.parametrize("scale", [2.0, 0.0])
    @pytest.mark.parametrize("use_ddim", [True, False])
    def test_samples_are_those_of_a_run_without_a_trace(self, sample, scale, use_ddim):
        flags = {"classifier_scale": scale, "use_ddim": use_ddim}
        trace, arrays, _ = sample(**flags)
        _, untraced, _ = sample(trace=False, **flags)
        assert same(arrays, untraced)
        assert trace["map_x_t"].shape == (4, 4, 3, 8, 8), "the defaults: 4 samples, up to 8 steps"
        if scale == 0:  # the classifier is watched
            assert (trace["entropy_ratio"] > 0).all() and (trace["p_y"] > 0).all()
            assert not any(trace[name].any() for name in ("scale", "relative_guidance", "map_guidance"))

    @pytest.mark.slow
    def test_one_channel_and_a_model_of_x_0(self, sample, tmp_path):
        paths = {
            "model_path": make_checkpoint(tmp_path / "model", "model", in_channels=1, predict_xstart=True),
            "classifier_path": make_checkpoint(tmp_path / "classifier", "classifier", in_channels=1),
        }
        trace, _, _ = sample(trace_maps=1, **paths)
        assert trace["map_pred_xstart"].shape == (4, 1, 1, 8, 8)
        assert all(np.isfinite(array).all() for array in trace.values())


def test_a_trace_without_a_process():
    """Any sampler's steps, as the guidance saw them: equal to what a process's trace holds."""
    diffusion = create_gaussian_diffusion(steps=100, timestep_respacing="ddim4")
    traces = [Trace(), Trace(diffusion)]
    for trace in traces:
        guidance = ClassifierGuidance(linear_classifier, EntropyRule(2.0), observer=trace.observe)
        torch.manual_seed(0)
        options = {"cond_fn": guidance, "model_kwargs": {"y": torch.tensor([0, 1, 2])}, "device": "cpu"}
        callback = None if trace is traces[0] else trace.step
        diffusion.ddim_sample_loop(sine_model, (3, *LINEAR_SHAPE), **options, callback=callback)
    free, full = (trace.take() for trace in traces)
    assert set(full) - set(free) == {"relative_guidance"}
    assert all(np.array_equal(free[name], full[name]) for name in free)
    with pytest.raises(ValueError, match="trace: found 0 observed steps"):
        traces[0].take()
    with pytest.raises(ValueError, match="samples: found 2 without a process, expected 0"):
        Trace(samples=2)


def test_a_trace_whose_guidance_is_not_observed():
    diffusion = create_gaussian_diffusion(steps=4, noise_schedule="cosine")
    with pytest.raises(ValueError, match="trace: found 0 observed steps, expected 1"):
        options = {"model_kwargs": {"y": torch.tensor([0])}, "callback": Trace(diffusion).step}
        diffusion.p_sample_loop(sine_model, (1, *LINEAR_SHAPE), device="cpu", **options)

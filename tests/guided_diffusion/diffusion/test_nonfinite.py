"""inf and nan: found where they first appear, named, and confined to their own sample."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ed_dpm_patches import ClassifierGuidance, EntropyRule
from guided_diffusion import logger
from guided_diffusion.diffusion.nonfinite import SKIP, STOP, NonfiniteDetector, check_loss, peak
from guided_diffusion.errors import InputError
from guided_diffusion.io import checkpoint
from guided_diffusion.io.checkpoint import check_weights
from guided_diffusion.sampling.run import Batch, SampleRun
from guided_diffusion.script_util import create_gaussian_diffusion
from tests.support.helpers import make_checkpoint, read_npz

DIFFUSION = create_gaussian_diffusion(steps=20, noise_schedule="cosine", timestep_respacing="5")
TIMESTEPS = DIFFUSION.timestep_map[::-1]
SHAPE = (3, 4, 4)


@pytest.fixture(autouse=True)
def quiet_logger(tmp_path_factory):
    with logger.scoped_configure(dir=str(tmp_path_factory.mktemp("log")), format_strs=[]):
        yield


class Poison:
    """Puts a value into one row of its input at one call, counted from 1."""

    def __init__(self, function, value: float = 0.0, row: int | None = None, call: int = 1):
        self.function, self.value, self.row, self.call, self.calls = function, value, row, call, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        output = self.function(*args, **kwargs)
        if self.row is None or self.calls != self.call:
            return output
        poison = torch.zeros_like(output)
        poison[self.row] = self.value
        return output + poison


class Overflowing(torch.autograd.Function):
    """The identity, whose gradient is nan in one row."""

    @staticmethod
    def forward(ctx, x, row):
        ctx.row = row
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient[ctx.row] = math.nan
        return gradient, None


def model(x, t, **kwargs):
    return torch.tanh(x) + 0.01 * t.reshape(-1, 1, 1, 1) / 20


def classifier(x, t):
    return x.flatten(1) @ torch.linspace(-1, 1, 48 * 5).reshape(48, 5)


def sample_batch(
    detector: NonfiniteDetector, network=model, classify=classifier, loop=DIFFUSION.ddim_sample_loop
) -> torch.Tensor:
    torch.manual_seed(0)
    guidance = ClassifierGuidance(classify, EntropyRule(1.0))
    options = {"cond_fn": guidance, "model_kwargs": {"y": torch.arange(4)}, "callback": detector.step}
    return loop(network, (4, *SHAPE), device="cpu", **options)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["model output", "classifier logits"])
def test_named_where_it_first_appears(place, value):
    detector = NonfiniteDetector()
    if place == "model output":
        images = sample_batch(detector, Poison(model, value, row=2, call=3))
    else:
        images = sample_batch(detector, classify=Poison(classifier, value, row=2, call=3))
    expected = "nan" if math.isnan(value) else "inf"
    message = rf"sample 12: found {expected} in the {place} at step 3 \(t = {TIMESTEPS[2]}\), expected"
    with pytest.raises(InputError, match=message):
        detector.take(images, range(10, 14))


def test_an_image_that_left_the_numbers_is_named_before_the_models_output():
    detector = NonfiniteDetector()

    def jumps(x, t, **kwargs):  # finite, but the step to x_{t-1} overflows
        return torch.full_like(x, 3e38) if t[0] == TIMESTEPS[1] else model(x, t)

    options = {"device": "cpu", "clip_denoised": False, "callback": detector.step}
    images = DIFFUSION.ddim_sample_loop(jumps, (2, *SHAPE), **options)
    with pytest.raises(InputError, match=rf"in the image x_t at step 3 \(t = {TIMESTEPS[2]}\)"):
        detector.take(images, range(2))


def test_a_gradient_that_overflows_behind_finite_logits():
    detector = NonfiniteDetector()
    images = sample_batch(detector, classify=lambda x, t: classifier(Overflowing.apply(x, 1), t))
    with pytest.raises(InputError, match=r"sample 1: found nan in the guidance gradient at step 1 \(t = "):
        detector.take(images, range(4))


def test_the_earliest_is_named_and_a_new_batch_starts_anew():
    detector = NonfiniteDetector()
    late_then_early = Poison(Poison(model, math.nan, row=0, call=4), math.inf, row=3, call=2)
    with pytest.raises(InputError, match="sample 3: found inf in the model output at step 2"):
        detector.take(sample_batch(detector, late_then_early), range(4))
    assert detector.take(sample_batch(detector), range(4)) == []


@pytest.mark.parametrize("loop", ["p_sample_loop", "ddim_sample_loop"])
def test_skipping_leaves_the_others_bitwise_as_they_were(loop):
    detector = NonfiniteDetector(SKIP)
    loop = getattr(DIFFUSION, loop)
    clean = sample_batch(detector, loop=loop)
    assert detector.take(clean, range(4)) == []
    images = sample_batch(detector, Poison(model, math.nan, row=2, call=2), loop=loop)
    (found,) = detector.take(images, range(20, 24))
    assert (found.sample, found.place, found.step, found.t) == (22, "model output", 2, TIMESTEPS[1])
    keep = [0, 1, 3]
    assert torch.equal(images[keep], clean[keep]) and not images[2].isfinite().all()


class TestRun:
    def run(self, folder: Path, mode: str, bad: dict[int, int]) -> Path:
        """7 samples in batches of 3; `bad`: sample -> the step at which the model answers nan."""
        detector = NonfiniteDetector(mode)

        def draw(batch: Batch):
            def network(x, t, **kwargs):
                steps = torch.tensor([bad.get(sample, 0) for sample in batch.indices])
                poison = torch.where(steps == TIMESTEPS.index(int(t[0])) + 1, math.nan, 0.0)
                return model(x, t) + poison.reshape(-1, 1, 1, 1)

            return DIFFUSION.ddim_sample_loop(network, **batch.loop_arguments(SHAPE))

        options = {"num_samples": 7, "batch_size": 3, "shape": SHAPE, "seed": 0, "flags": {"nonfinite": mode}}
        return SampleRun(directory=folder, detector=detector, **options).generate(draw)

    def test_it_stops_and_nothing_of_the_batch_is_written(self, tmp_path):
        with pytest.raises(InputError, match=rf"sample 4: found nan .* at step 2 \(t = {TIMESTEPS[1]}\)"):
            self.run(tmp_path, STOP, {4: 2, 6: 1})
        assert [path.name for path in (tmp_path / "parts").iterdir()] == ["part-000000000.npz"]
        assert not list(tmp_path.glob("samples*"))

    def test_skipped_samples_are_listed_and_the_rest_is_untouched(self, tmp_path):
        clean = read_npz(self.run(tmp_path / "clean", STOP, {}))["arr_0"]
        assert not (tmp_path / "clean" / "nonfinite.json").exists()
        with pytest.raises(InputError):
            self.run(tmp_path / "bad", STOP, {4: 2, 6: 1})
        found = read_npz(self.run(tmp_path / "bad", SKIP, {4: 2, 6: 1}))  # goes on where it stopped
        assert list(found) == ["arr_0"] and found["arr_0"].shape == clean.shape
        keep = [0, 1, 2, 3, 5]
        assert np.array_equal(found["arr_0"][keep], clean[keep])
        listed = json.loads((tmp_path / "bad" / "nonfinite.json").read_text())
        assert listed == [
            {"sample": 4, "place": "model output", "value": "nan", "step": 2, "t": TIMESTEPS[1]},
            {"sample": 6, "place": "model output", "value": "nan", "step": 1, "t": TIMESTEPS[0]},
        ]


@pytest.mark.slow
def test_a_script_skips_too(run, checkpoints, tmp_path):
    """The last bias sends the model's output to 2e38, and with it x_t beyond the largest number."""
    state = checkpoint.read_state_dict(checkpoints["model"])
    state["out.2.bias"][:3] = 2e38
    path = make_checkpoint(tmp_path / "huge", "model", learn_sigma=True)
    checkpoint.save(state, path)
    flags = {"model_path": path, "num_samples": 3, "batch_size": 2, "timestep_respacing": "4", "log_dir": "out"}
    flags |= {"clip_denoised": False}
    ended = run("image_sample", flags, fails=True)
    (line,) = ended.error_lines
    assert "sample 0: found" in line and "at step 2 (t = " in line and ended.statuses == [2]
    ended = run("image_sample", flags | {"nonfinite": "skip"})
    assert "3 of 3 samples are not finite" in ended.stdout
    assert [entry["sample"] for entry in json.loads((tmp_path / "out" / "nonfinite.json").read_text())] == [0, 1, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_are_looked_at_when_they_are_loaded(tmp_path, value):
    network = torch.nn.Linear(3, 2)
    state = {name: values.clone() for name, values in network.state_dict().items()}
    state["weight"][1, 2] = value
    checkpoint.save(state, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt: weight: found inf or nan in 1 of 6 values, expected none"):
        checkpoint.load_weights(network, tmp_path / "model.pt")
    assert network.weight.isfinite().all()
    check_weights({"empty": torch.zeros(0), "whole": torch.tensor(3)}, "x")


def test_a_loss_that_is_not_finite_names_the_step():
    check_loss(torch.ones(3), torch.arange(3), 7)
    losses = torch.tensor([1.0, math.nan, math.inf])
    with pytest.raises(InputError, match=r"step 7: found a loss of nan at t = 5 \(sample 1 of the batch\)"):
        check_loss(losses, torch.tensor([4, 5, 6]), 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_peaks(dtype):
    values = torch.randn(5, 3, 7).to(dtype)
    assert torch.equal(peak(values), values.abs().flatten(1).amax(dim=1))
    for row, bad in enumerate((math.nan, math.inf, -math.inf)):
        values[row, 2, 6] = bad
    assert peak(values).isfinite().tolist() == [False] * 3 + [True] * 2

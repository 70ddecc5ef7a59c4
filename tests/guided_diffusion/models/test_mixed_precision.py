"""Low precision that stays near the true result, and optimizer steps that survive an overflow."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from benchmarks.gpu.checks import float64
from guided_diffusion import logger
from guided_diffusion.config.configs import RunConfig
from guided_diffusion.distributed import collectives, process_group
from guided_diffusion.errors import InputError
from guided_diffusion.models.attention import QKVAttention
from guided_diffusion.models.mixed_precision import (
    AMP_DTYPES,
    LowPrecision,
    OptimizerStepper,
    amp_dtype,
    fastest_amp,
)
from guided_diffusion.sampling import setup
from guided_diffusion.script_util import create_classifier, create_model

CPU = torch.device("cpu")
# Of the output's norm: a few units in the last place (2**-11, 2**-8) over two dozen layers.
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.fixture(autouse=True)
def quiet_logger(tmp_path):
    with logger.scoped_configure(dir=str(tmp_path), format_strs=[]):
        yield


@pytest.fixture(scope="module", params=["model", "classifier"])
def network(request) -> nn.Module:
    torch.manual_seed(0)
    if request.param == "model":
        made = create_model(8, 32, 1, attention_resolutions="4", resblock_updown=True, use_scale_shift_norm=True)
    else:
        made = create_classifier(8, False, 32, 1, "4", True, True, "attention", num_classes=10,
                                 classifier_num_head_channels=32)  # fmt: skip
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)
    return made.eval().requires_grad_(False)


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 8, 8, generator=generator), torch.tensor([0, 13, 500, 999])


CUDA = torch.device("cuda")  # only as a name


@pytest.mark.parametrize("name", AMP_DTYPES)
def test_amp_dtype(name):
    assert amp_dtype(False, name, "model.pt", CUDA) is None
    assert amp_dtype(True, name, "model.pt", CUDA) is AMP_DTYPES[name]


@pytest.mark.parametrize(
    ("units", "fastest", "slow"),
    [
        ((), "fp32", {"fp16", "bf16"}),
        (("avx512_f", "avx512_bf16"), "bf16", {"fp16"}),
        (("amx_bf16", "avx512_fp16"), "bf16", set()),
    ],
)
def test_a_cpu_computes_in_what_it_has_units_for(monkeypatch, units, fastest, slow):
    known = {"avx2": True, "avx512_f": False, "avx512_bf16": False, "avx512_fp16": False, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known | dict.fromkeys(units, True), raising=False)
    monkeypatch.setattr(collectives, "dev", lambda: CPU)
    assert RunConfig(amp_dtype="auto").amp_dtype == fastest_amp(CPU) == fastest and fastest_amp(CUDA) == "fp16"
    said: list[str] = []
    monkeypatch.setattr(logger, "warn", said.append)
    for name in AMP_DTYPES:
        assert amp_dtype(True, name, "model.pt", CPU) is AMP_DTYPES[name]
    assert {text.split()[2].rstrip(":") for text in said} == slow
    assert all("model.pt: this CPU has none of" in text and "--amp_dtype auto" in text for text in said)


def test_processes_that_would_compute_in_different_dtypes(monkeypatch):
    monkeypatch.setattr(process_group, "setup_dist", lambda: None)
    monkeypatch.setattr(collectives, "broadcast_object", lambda own: "fp32")  # rank 0's
    with pytest.raises(InputError, match="--amp_dtype auto: found fp32 and elsewhere bf16, expected one of them by na"):
        setup.begin(RunConfig(amp_dtype="bf16"))


def test_without_dtype_the_network_is_untouched(network, inputs):
    assert torch.equal(LowPrecision(network, None)(*inputs), network(*inputs))


HALF = ("fp16", "bf16")


@pytest.mark.parametrize("name", HALF)
def test_close_to_float64_with_float32_output(network, inputs, name):
    x, t = inputs
    with float64(network) as double:
        exact = double(x.double(), t)
    assert exact.dtype is torch.float64
    size = exact.square().mean().sqrt()
    assert size > 0.05, "an output near zero would hide any error"
    full = network(*inputs)
    assert (full - exact).abs().max() < 2e-5 * size
    dtype = AMP_DTYPES[name]
    low = LowPrecision(network, dtype)(*inputs)
    assert low.dtype is torch.float32
    error = (low - exact).norm() / exact.norm()
    assert error < TOLERANCE[dtype]
    assert error > 1e-5, "nothing was computed in low precision"


@pytest.mark.parametrize("name", HALF)
def test_gradient_of_the_input_close_to_float64(network, inputs, name):
    """What guidance needs."""
    x, t = inputs

    def gradient(function, x):
        x = x.clone().requires_grad_(True)
        output = function(x, t)
        return torch.autograd.grad(output.square().sum(), x)[0]

    with float64(network) as double:
        exact = gradient(double, x.double())
    assert exact.dtype is torch.float64
    low = gradient(LowPrecision(network, AMP_DTYPES[name]), x)
    assert low.dtype is torch.float32
    assert (low - exact).norm() / exact.norm() < 2 * TOLERANCE[AMP_DTYPES[name]]


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("wants_gradient", [True, False])
def test_attention_for_a_gradient_computes_in_float32_on_a_cpu(monkeypatch, name, wants_gradient):
    """Values and gradient against float64, for a batch in the dtype under autocast."""
    dtype, kernel, seen = AMP_DTYPES[name], torch.nn.functional.scaled_dot_product_attention, []

    def watched(q, k, v):
        out = kernel(q, k, v)
        seen.append(out.dtype)
        return out

    qkv = torch.randn(2, 3 * 64, 100, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_(True)
    attention = QKVAttention(2).eval()
    exact = attention(double := qkv.detach().double().requires_grad_(True))
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    with torch.autocast("cpu", dtype), torch.set_grad_enabled(wants_gradient):
        found = attention(qkv)
    assert seen == [torch.float32 if wants_gradient else dtype] and found.dtype is dtype
    assert (found - exact).norm() < TOLERANCE[dtype] * exact.norm()
    if wants_gradient:
        ours, true = (torch.autograd.grad(out.square().sum(), x)[0] for out, x in ((found, qkv), (exact, double)))
        assert ours.dtype is dtype and (ours - true).norm() < TOLERANCE[dtype] * true.norm()


@pytest.mark.parametrize("size", [1e6, -1e6, 1e30])
def test_float16_stays_finite_on_huge_input(network, inputs, size):
    x, t = inputs
    x = x.clone()
    x[1] = size * x[1].sign()
    low = LowPrecision(network, torch.float16)(x, t)
    assert low.isfinite().all()
    usual = LowPrecision(network, torch.float16)(*inputs)
    assert torch.allclose(low[[0, 2, 3]], usual[[0, 2, 3]], atol=1e-5), "the others must not feel it"


def test_clamping_leaves_usual_input_alone(network, inputs):
    x, t = inputs
    with torch.autocast("cpu", torch.float16):
        unclamped = network(x * 100, t).float()
    assert torch.equal(LowPrecision(network, torch.float16)(x * 100, t), unclamped)


class Line:
    """A parameter, AdamW on it, and a loss with gradient `slope`."""

    def __init__(self, dtype, **options):
        self.parameter = nn.Parameter(torch.ones(3))
        self.opt = torch.optim.AdamW([self.parameter], lr=0.1)
        self.stepper = OptimizerStepper(nn.ParameterList([self.parameter]), dtype, CPU, **options)

    def step(self, slope: float) -> bool:
        self.stepper.zero_grad()
        self.stepper.backward((self.parameter * slope).sum())
        return self.stepper.optimize(self.opt)


def test_a_step_logs_norms():
    line = Line(None)
    assert line.step(2.0)
    logged = logger.getkvs()
    assert logged["grad_norm"] == pytest.approx(2 * math.sqrt(3))
    assert logged["param_norm"] == pytest.approx(math.sqrt(3))  # before the step
    assert "lg_loss_scale" not in logged
    assert torch.allclose(line.parameter, torch.full((3,), 0.9), atol=2e-3)


def test_float16_steps_like_float32():
    full, half = Line(None), Line(torch.float16)
    for slope in (2.0, -1.0, 0.5):
        assert full.step(slope) and half.step(slope)
    assert torch.allclose(full.parameter, half.parameter, atol=1e-6)
    assert logger.getkvs()["lg_loss_scale"] == 20.0


def test_an_overflow_is_skipped_and_halves_the_scale():
    line = Line(torch.float16, initial_lg_loss_scale=16.0)
    assert line.step(1.0)
    before, state = line.parameter.detach().clone(), copy.deepcopy(line.opt.state_dict())
    assert line.step(1e38) is False
    assert torch.equal(line.parameter, before)
    assert line.opt.state_dict()["state"][0]["step"] == state["state"][0]["step"] == 1
    assert line.stepper.scaler.get_scale() == 2.0**15
    assert line.step(1.0)
    assert not torch.equal(line.parameter, before)


def test_overflows_are_not_in_the_logged_norms():
    line = Line(torch.float16)
    line.step(1e38)
    line.step(1.0)
    assert logger.getkvs()["grad_norm"] == pytest.approx(math.sqrt(3))


def test_a_scale_below_one_ends_training():
    line = Line(torch.float16, initial_lg_loss_scale=2.0)
    assert line.step(math.inf) is False
    assert line.step(math.inf) is False
    assert line.stepper.scaler.get_scale() == 1.0
    with pytest.raises(InputError, match="diverged.*loss scale of 0.5"):
        line.step(math.inf)


def test_the_scale_grows():
    line = Line(torch.float16, scale_growth=0.5, initial_lg_loss_scale=4.0)
    for _ in range(4):
        line.step(1.0)
    assert line.stepper.scaler.get_scale() == 2.0**6  # half a power of two a step, in whole powers


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("slope", [math.inf, math.nan])
def test_non_finite_gradients_end_training_where_nothing_can_overflow(dtype, slope):
    line = Line(dtype)
    with pytest.raises(InputError, match="diverged.*gradient norm"):
        line.step(slope)
    assert torch.equal(line.parameter, torch.ones(3)), "no step may have been taken"


def test_gradients_accumulate_between_zero_grads():
    line = Line(None)
    line.stepper.zero_grad()
    for _ in range(2):
        line.stepper.backward(line.parameter.sum())
    assert torch.equal(line.parameter.grad, torch.full((3,), 2.0))

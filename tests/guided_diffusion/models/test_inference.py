"""Frozen networks: the same numbers in another layout, contiguous for callers, compiled or with a warning not."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from guided_diffusion import dist_util
from guided_diffusion.config.configs import SamplingConfig
from guided_diffusion.models import compiling
from guided_diffusion.models.compiling import CompiledForTraining
from guided_diffusion.models.inference import Frozen
from guided_diffusion.models.mixed_precision import LowPrecision
from guided_diffusion.nn import pointwise, to_fast_layout
from guided_diffusion.sampling import setup
from tests.support.networks import small_classifier, small_unet

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0, 10, 500, 999])


def gradient(network, x: Tensor = X) -> Tensor:
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(network(x, T[: len(x)]).log_softmax(1)[:, 3].sum(), x)[0]


@pytest.fixture
def messages(monkeypatch) -> Iterator[list[str]]:
    """What is logged after the line that compiling begins, which there must be."""
    begun, found = [], []
    for level in ("log", "warn"):
        monkeypatch.setattr(
            compiling.logger, level, lambda line: (begun if line.startswith("compiling ") else found).append(line)
        )
    yield found
    assert begun


@pytest.mark.parametrize("width", [32, 64])
def test_the_layout_changes_nothing_but_the_layout(width):
    expected = small_unet(width)(X, T)
    network = Frozen(small_unet(width).train().requires_grad_(True))
    found = network(X, T)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.is_contiguous() and not found.requires_grad
    assert not any(module.training for module in network.network.modules())
    weights = [p for p in network.parameters() if p.dim() == 4]
    # Narrow layers are faster as they are.
    layout = torch.channels_last if width >= 64 else torch.contiguous_format
    assert weights and all(p.is_contiguous(memory_format=layout) for p in weights)
    torch.testing.assert_close(gradient(Frozen(small_classifier())), gradient(small_classifier()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 8, 5, 7), (1, 8, 1, 1), (2, 8, 1, 9), (2, 1, 4, 4)])
def test_pointwise_is_a_convolution(layout, shape):
    """Values, gradient and layout."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(memory_format=layout)
    weight = torch.randn(6, shape[1], 1, 1, generator=generator)
    results = []
    for function in (pointwise, nn.functional.conv2d):
        x_in = x.clone().requires_grad_(True)
        out = function(x_in, weight, torch.arange(6.0))
        assert out.is_contiguous(memory_format=layout) or 1 in shape
        results += [out, *torch.autograd.grad(out.square().sum(), x_in)]
    torch.testing.assert_close(results[:2], results[2:], rtol=1e-5, atol=1e-5)


class Compiler:
    """Stands in for torch.compile: remembers the shapes that it was run with."""

    def __init__(self, fails: bool = False):
        self.fails, self.shapes = fails, []

    def __call__(self, network: nn.Module, *, dynamic: bool, mode: str | None = None):
        def run(x: Tensor, *args) -> Tensor:
            if self.fails:
                raise RuntimeError("no working compiler\nand a long explanation")
            self.shapes.append(tuple(x.shape))
            return network(x, *args)

        return run


class MisCompiler(Compiler):
    """Right for the first input alone, as a graph would be that was recorded with its values."""

    def __call__(self, network: nn.Module, **_):
        first = []

        def run(x: Tensor, *args) -> Tensor:
            first.append(x)
            return network(first[0], *args)

        return run


class GraphCompiler(Compiler):
    """Returns the same memory at every call, as replayed CUDA graphs do."""

    def __call__(self, network: nn.Module, *, dynamic: bool, mode: str | None):
        assert mode == "reduce-overhead"
        memory = []

        def run(x: Tensor, *args) -> Tensor:
            out = network(x, *args)
            memory.append(out)
            return memory[0].copy_(out)

        return run


def test_only_whole_batches_are_compiled(monkeypatch, messages):
    compiler = Compiler()
    monkeypatch.setattr(torch, "compile", compiler)
    network, plain = Frozen(small_unet(), compile=True), small_unet()
    for count in (4, 4, 3, 4):
        torch.testing.assert_close(network(X[:count], T[:count]), plain(X[:count], T[:count]), rtol=1e-5, atol=1e-5)
    assert set(compiler.shapes) == {tuple(X.shape)}
    assert len(messages) == 1 and messages[0].startswith("compiled UNetModel in 0 s: ")


def test_without_a_compiler_one_warning(monkeypatch, messages):
    monkeypatch.setattr(torch, "compile", Compiler(fails=True))
    network = Frozen(small_classifier(), compile=True)
    for _ in range(3):
        torch.testing.assert_close(gradient(network), gradient(small_classifier()), rtol=1e-5, atol=1e-6)
    assert messages == ["warning: --compile: EncoderUNetModel is kept as it is, compiling failed (no working compiler)"]


def test_other_numbers_are_noticed(monkeypatch, messages):
    monkeypatch.setattr(torch, "compile", MisCompiler())
    network, plain = Frozen(small_unet(), compile=True), small_unet()
    for x in (X, 2 * X):
        torch.testing.assert_close(network(x, T), plain(x, T), rtol=1e-5, atol=1e-5)
    assert len(messages) == 1
    assert messages[0].startswith("warning: --compile: UNetModel is kept as it is, compiled it differs by ")


@pytest.mark.slow
def test_memory_of_graphs_is_copied_out(monkeypatch, messages):
    monkeypatch.setattr(torch, "compile", GraphCompiler())
    monkeypatch.setattr(compiling, "_replays_graphs", lambda x: True)
    network, plain = Frozen(small_unet(), compile=True), small_unet()
    inputs = (X, 2 * X, 3 * X)
    with torch.no_grad():
        found = [network(x, T) for x in inputs]
    for x, out in zip(inputs, found, strict=True):
        torch.testing.assert_close(out, plain(x, T), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_once_is_casting_at_every_call(dtype):
    """Bitwise; the normalisations keep their float32 weights."""
    for network, twin in ((small_unet(64), small_unet(64)), (small_classifier(), small_classifier())):
        autocast = LowPrecision(to_fast_layout(twin).requires_grad_(False).eval(), dtype)
        frozen = Frozen(network, dtype)
        assert {p.dtype for p in frozen.parameters()} == {dtype, torch.float32}
        assert torch.equal(frozen(X, T), autocast(X, T))
        assert torch.equal(_summed_gradient(frozen), _summed_gradient(autocast))


def _summed_gradient(network: nn.Module) -> Tensor:
    x = X.clone().requires_grad_(True)
    return torch.autograd.grad(network(x, T).square().sum(), x)[0]


class Tiny(nn.Module):
    """The least that has a convolution, a normalisation and an embedding of t: quickly compiled."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = nn.functional.silu(self.norm(self.conv(x)) * (1 + t.reshape(-1, 1, 1, 1) / 1000))
        return self.head(h.mean(dim=(2, 3)))


@pytest.mark.slow
def test_compiled_networks_agree(messages):
    """The real compiler, or its warning where there is none."""
    network = Frozen(Tiny(), compile=True)
    torch.testing.assert_close(gradient(network), gradient(Tiny()), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient(network, X[:3]), gradient(Tiny(), X[:3]), rtol=1e-5, atol=1e-6)
    assert len(messages) == 1


def test_training_compiles_where_there_are_gradients_alone(monkeypatch, messages):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda network, **_: lambda *args: calls.append(1) or network(*args))
    network = CompiledForTraining(Tiny(), "Tiny", 1e-3)
    with torch.no_grad():
        assert torch.equal(network(X, T), Tiny()(X, T)) and not calls
    state = torch.random.get_rng_state()
    assert torch.equal(network(X, T), Tiny()(X, T)) and calls == [1, 1]  # a trial first
    assert torch.equal(network(X, T), Tiny()(X, T)) and calls == [1, 1, 1]
    assert torch.equal(torch.random.get_rng_state(), state) and messages[0].startswith("compiled Tiny in ")
    assert [name.removeprefix("network.") for name in network.state_dict()] == list(Tiny().state_dict())


@pytest.mark.slow
def test_compiled_training_has_the_same_gradients(messages):
    network, plain = CompiledForTraining(LowPrecision(Tiny(), None), "Tiny", 1e-3), Tiny()
    for x in (X, X / 2):
        for one in (network, plain):
            one.zero_grad()
            one(x, T).square().sum().backward()
        for found, expected in zip(network.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6)
    assert len(messages) == 1


@pytest.mark.parametrize(("compiler", "message"), [
    (Compiler(fails=True), "is kept as it is, compiling failed (no working compiler)"),
    (lambda network, **_: lambda *args: 1.01 * network(*args), "is kept as it is, compiled it differs by"),
])  # fmt: skip
def test_training_goes_on_with_what_cannot_be_compiled(monkeypatch, messages, compiler, message):
    monkeypatch.setattr(torch, "compile", compiler)
    network = CompiledForTraining(Tiny(), "Tiny", 1e-3)
    for _ in range(2):
        assert torch.equal(network(X, T), Tiny()(X, T))
    assert len(messages) == 1 and message in messages[0]


@pytest.mark.parametrize(
    ("asked", "device", "images", "wanted"),
    [
        (None, "cpu", 50000, False), (None, "cuda", 50000, True), (None, "cuda", 320, False),
        (True, "cpu", 1, True), (False, "cuda", 50000, False),
    ],
)  # fmt: skip
def test_when_to_compile(monkeypatch, asked, device, images, wanted):
    monkeypatch.setattr(dist_util, "dev", lambda: types.SimpleNamespace(type=device))
    sampling = SamplingConfig(num_samples=images, batch_size=32, compile=asked)
    assert setup.wants_compiling(sampling, steps=250) is wanted


@pytest.mark.parametrize(("sampler", "wanted"), [("", False), ("dpmpp2m", False), ("heun", True)])
def test_evaluations_count_not_steps(monkeypatch, sampler, wanted):
    monkeypatch.setattr(dist_util, "dev", lambda: types.SimpleNamespace(type="cuda"))
    sampling = SamplingConfig(num_samples=3000, batch_size=1, sampler=sampler)
    assert setup.wants_compiling(sampling, steps=1) is False
    assert setup.wants_compiling(dataclasses.replace(sampling, num_samples=600), steps=5) is wanted

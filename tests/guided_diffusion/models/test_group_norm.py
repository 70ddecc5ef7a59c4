"""Group normalisation in channels_last: PyTorch's values and gradients, and where it is used."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from guided_diffusion.models.layers import GroupNormOfRows, group_norm_is_faster, normalise_rows
from guided_diffusion.nn import GroupNorm32

group_norm = GroupNormOfRows.apply


def example(dtype: torch.dtype, channels: int = 64, side: int = 32) -> tuple[torch.Tensor, ...]:
    """x, weight and bias that want gradients, and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(2, channels, side, side, generator=generator, dtype=dtype) + 1
    weight, bias = torch.randn(2, channels, generator=generator, dtype=dtype)
    gradient = torch.randn(x.shape, generator=generator, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    return *(values.requires_grad_(True) for values in (x, weight, bias)), gradient


@pytest.mark.parametrize(("channels", "side"), [(64, 32), (96, 35), (32, 40)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_values_and_gradients_are_torchs(dtype, tolerance, channels, side):
    """In float32 against float64: no further off than PyTorch's own by much."""
    x, weight, bias, gradient = example(torch.float64, channels, side)
    expected = [out := F.group_norm(x, 32, weight, bias), *torch.autograd.grad(out, (x, weight, bias), gradient)]
    x, weight, bias = (values.detach().to(dtype).requires_grad_(True) for values in (x, weight, bias))
    gradient = gradient.to(dtype)
    found = [out := group_norm(x, 32, weight, bias, 1e-5), *torch.autograd.grad(out, (x, weight, bias), gradient)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)
    assert found[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
@pytest.mark.parametrize("mean", [0.0, 50.0])
def test_rows_as_on_cuda(dtype, tolerance, mean):
    """Channels of one group with means far apart, against float64."""
    x, weight, bias, _ = (values.detach() for values in example(torch.float64))
    x += mean * torch.linspace(-1, 1, 64, dtype=torch.float64).view(1, -1, 1, 1)
    expected, mean_BG, rstd_BG = torch.native_group_norm(x, weight, bias, 2, 64, 1024, 32, 1e-5)
    found = normalise_rows(x.to(dtype), 32, weight.to(dtype), bias.to(dtype), 1e-5)
    assert found[0].is_contiguous(memory_format=torch.channels_last) and found[0].shape == x.shape
    for one, other in zip(found, (expected, mean_BG, rstd_BG), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance * max(1, mean))


def test_a_contiguous_gradient_does_as_well():
    x, weight, bias, gradient = example(torch.float32)
    layouts = (gradient.contiguous(), gradient.contiguous(memory_format=torch.channels_last))
    one, other = (torch.autograd.grad(group_norm(x, 32, weight, bias, 1e-5), x, g)[0] for g in layouts)
    torch.testing.assert_close(one, other)


def test_the_second_derivative():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 3, 3, generator=generator, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    inputs = [values.requires_grad_() for values in (x, weight, bias)]
    assert torch.autograd.gradgradcheck(lambda x, weight, bias: group_norm(x, 2, weight, bias, 1e-5), inputs)
    weight.requires_grad_(False)
    assert torch.autograd.gradgradcheck(lambda x: group_norm(x, 2, weight.detach(), bias.detach(), 1e-5), x)


def test_where_it_is_used():
    x, *_ = example(torch.float32)
    assert group_norm_is_faster(x)
    assert not group_norm_is_faster(x.contiguous())
    assert not group_norm_is_faster(x[:, :, :16, :16].contiguous(memory_format=torch.channels_last))
    with torch.no_grad():
        assert not group_norm_is_faster(x)


@pytest.mark.parametrize("shape", [(1, 64, 32, 32), (2, 64, 1, 1024), (2, 64, 1024, 1)])
@pytest.mark.parametrize("stride", [1, 7])
def test_axes_of_length_one(shape, stride):
    """Their strides are arbitrary, and no layout can be told from them."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
    odd = [stride if length == 1 else step for length, step in zip(x.shape, x.stride(), strict=True)]
    x = x.as_strided(shape, odd).requires_grad_(True)
    layer = GroupNorm32(32, 64)
    expected = F.group_norm(x, 32, layer.weight, layer.bias)
    found = layer(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), x)[0] for out in (found, expected)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_half_precision_without_a_gradient(monkeypatch, dtype, layout):
    """Large maps without a copy in float32, but as exact: to the last bit of the dtype, against float64."""
    x, weight, bias, _ = (values.detach() for values in example(torch.float64, side=40))
    x, layer = x.to(dtype).contiguous(memory_format=layout), GroupNorm32(32, 64)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
        exact = F.group_norm(x.double(), 32, weight.float().double(), bias.float().double())
        monkeypatch.setattr(torch.Tensor, "float", lambda values: pytest.fail("a copy in float32"))
        found = layer(x)
    assert found.dtype is dtype and found.is_contiguous(memory_format=layout)
    torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_the_layer_keeps_the_dtype():
    layer = GroupNorm32(32, 64)
    x, *_ = example(torch.float32)
    half = layer(x.bfloat16())
    assert half.dtype is torch.bfloat16
    torch.testing.assert_close(half.float(), layer(x.bfloat16().float()), rtol=1e-2, atol=1e-2)
    plain = F.group_norm(x.contiguous(), 32, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), plain, rtol=1e-5, atol=1e-5)

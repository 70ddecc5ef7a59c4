"""TensorFlow's operations in torch, one function each: ``op(node, *inputs) -> result``.

They are those between the images and the features of the published Inception graph. Tensors have TensorFlow's shapes,
images [B, H, W, C], whatever their strides: convolutions and pools see them as [B, C, H, W] without a copy.
``HOST_INPUTS`` names the inputs that are shapes and axes; they are lists of int (or an int), all others are tensors.
What cannot be done as in TensorFlow raises ``ValueError``, or what torch raises.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluations.features.graphdef import Node

MAX_SIDE, MAX_WINDOW = 4096, 256  # pixels; a damaged file must not ask for terabytes


def as_channels_first(x_BHWC: Tensor) -> Tensor:
    """Return the images as [B, C, H, W] in the memory order in which convolutions are fastest on their device."""
    order = torch.channels_last if x_BHWC.device.type == "cpu" else torch.contiguous_format
    return x_BHWC.permute(0, 3, 1, 2).contiguous(memory_format=order)


def lay_out_filter(filter_HWIO: Tensor) -> Tensor:
    """Return the filter strided in memory such that ``conv2d`` need not copy it."""
    return as_channels_first(filter_HWIO.permute(3, 0, 1, 2)).permute(2, 3, 1, 0)


def conv2d(node: Node, x: Tensor, filter_HWIO: Tensor, bias: Tensor | None = None) -> Tensor:
    """Cross-correlate images with a filter [H, W, in, out]; only ``fold_batch_norms`` gives nodes a bias [out]."""
    if any(factor != 1 for factor in node.attribute("dilations", tuple, ())):
        raise ValueError(f"found dilations {node.attributes['dilations']}, expected none")
    strides = _window(node, "strides")
    x, padding = _pad(node, x, filter_HWIO.shape[:2], strides)
    weight = as_channels_first(filter_HWIO.permute(3, 0, 1, 2))
    return F.conv2d(x, weight, bias, strides, padding).permute(0, 2, 3, 1)


def max_pool(node: Node, x: Tensor) -> Tensor:
    """Take the maximum over windows, of which padding is never one."""
    size, strides = _window(node, "ksize"), _window(node, "strides")
    x, padding = _pad(node, x, size, strides, value=-torch.inf)
    return F.max_pool2d(x, size, strides, padding).permute(0, 2, 3, 1)


def avg_pool(node: Node, x: Tensor) -> Tensor:
    """Take the mean over the pixels of windows; padding does not count."""
    size, strides = _window(node, "ksize"), _window(node, "strides")
    padded, padding = _pad(node, x, size, strides)
    mean = F.avg_pool2d(padded, size, strides, padding, count_include_pad=False)
    if padded.shape[2:] != x.shape[1:3]:  # zeros that were filled in did count: divide by the share of real pixels
        inside, _ = _pad(node, x.new_ones(1, *x.shape[1:3], 1), size, strides)
        mean = mean / F.avg_pool2d(inside, size, strides)
    return mean.permute(0, 2, 3, 1)


def batch_norm(node: Node, x: Tensor, mean: Tensor, variance: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """Normalise by stored statistics [C]; ``gamma`` counts only if the node says so."""
    scale = gamma if node.attribute("scale_after_normalization", bool) else None
    epsilon = node.attribute("variance_epsilon", float)
    x = x.permute(0, 3, 1, 2)
    return F.batch_norm(x, mean, variance, scale, beta, training=False, eps=epsilon).permute(0, 2, 3, 1)


def resize_bilinear(node: Node, x: Tensor, size: list[int]) -> Tensor:
    """Interpolate between the pixels i and i + 1 at i + fraction = out * scale: pixels are points, not squares."""
    if node.attribute("half_pixel_centers", bool, False):
        raise ValueError("found half_pixel_centers, expected pixels without a centre")
    aligned = node.attribute("align_corners", bool, False)
    if len(size) != 2 or not all(0 < side <= MAX_SIDE for side in size):
        raise ValueError(f"found size {str(size):.60}, expected height and width of 1 to {MAX_SIDE} pixels")
    height, width = size
    if height < x.shape[1]:  # either order will do: columns are the slower part, so do them on fewer rows
        return _interpolate(_interpolate(x.float(), 1, height, aligned), 2, width, aligned)
    return _interpolate(_interpolate(x.float(), 2, width, aligned), 1, height, aligned)


def _interpolate(x: Tensor, dim: int, length: int, aligned: bool) -> Tensor:
    found = x.shape[dim]
    step = (found - 1) / (length - 1) if aligned and length > 1 else found / length
    # Positions in single precision, as there: beyond a few hundred pixels the fractions depend on it.
    position = torch.arange(length, dtype=torch.float32) * torch.tensor(step, dtype=torch.float32)
    low = position.floor().long().clamp(max=found - 1)
    high = (low + 1).clamp(max=found - 1)
    shape = [-1 if axis == dim else 1 for axis in range(x.ndim)]
    fraction = (position - low).reshape(shape).to(x.device)
    first = x.index_select(dim, low.to(x.device))
    return (x.index_select(dim, high.to(x.device)) - first).mul_(fraction).add_(first)


def check_numerics(node: Node, x: Tensor) -> Tensor:
    """Return ``x``; ``ValueError`` if it holds nan or infinity."""
    if x.numel() and not torch.stack(torch.aminmax(x)).isfinite().all():  # one pass, no second tensor of this size
        message = node.attribute("message", bytes, b"").decode("utf-8", "replace")
        raise ValueError(f"found nan or infinite values ({message!r:.60})")
    return x


def _window(node: Node, key: str) -> tuple[int, int]:
    """Return height and width from an attribute that is written [1, height, width, 1]."""
    if node.attribute("data_format", bytes, b"NHWC") != b"NHWC":
        raise ValueError(f"found data_format {node.attributes['data_format']!r:.60}, expected NHWC")
    found = node.attribute(key, tuple)
    if len(found) != 4 or found[0] != 1 or found[3] != 1 or not all(0 < n <= MAX_WINDOW for n in found):
        raise ValueError(f"found {key} {str(found):.60}, expected four numbers, 1 for images and channels")
    return found[1:3]


def _pad(
    node: Node, x: Tensor, size: tuple[int, int], strides: tuple[int, int], value: float = 0.0
) -> tuple[Tensor, tuple[int, int]]:
    """Return ``x`` as [B, C, H, W] and the padding (of rows, of columns) that torch is to add on both sides.

    SAME makes ceil(length / stride) windows and puts an odd pixel of padding at the end; that is filled in here.
    """
    padding = node.attribute("padding", bytes)
    if padding not in (b"SAME", b"VALID"):
        raise ValueError(f"found padding {padding!r:.60}, expected SAME or VALID")
    x = as_channels_first(x)
    if padding == b"VALID":
        return x, (0, 0)
    height, width = (
        max((-(-length // stride) - 1) * stride + window - length, 0)
        for length, window, stride in zip(x.shape[2:], size, strides, strict=True)
    )
    if height % 2 == width % 2 == 0:
        return x, (height // 2, width // 2)
    around = (width // 2, width - width // 2, height // 2, height - height // 2)
    return F.pad(x, around, value=value), (0, 0)


OPS: dict[str, Callable[..., Tensor]] = {
    "Add": lambda _, a, b: a + b,
    "AvgPool": avg_pool,
    "BatchNormWithGlobalNormalization": batch_norm,
    "BiasAdd": lambda _, x, bias: x + bias,
    "CheckNumerics": check_numerics,
    "Concat": lambda _, axis, *parts: torch.cat(parts, axis),
    "ConcatV2": lambda _, *inputs: torch.cat(inputs[:-1], inputs[-1]),
    "Conv2D": conv2d,
    "Identity": lambda _, x: x,
    "MaxPool": max_pool,
    "Mul": lambda _, a, b: a * b,
    "Relu": lambda _, x: x.relu(),
    "Reshape": lambda _, x, shape: x.reshape(shape),
    "ResizeBilinear": resize_bilinear,
    "Sub": lambda _, a, b: a - b,
}
HOST_INPUTS = {"Concat": 0, "ConcatV2": -1, "Reshape": 1, "ResizeBilinear": 1}

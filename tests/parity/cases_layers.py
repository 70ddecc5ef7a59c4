"""Small layers, losses and precision conversion of single modules."""

from __future__ import annotations

import torch

from guided_diffusion import fp16_util, losses, nn
from tests.parity.compare import Cases, Refusal, outcome_of

CASES = Cases()
BITWISE = 0.0


@CASES.add("nn: timestep_embedding, odd and even, whole and fractional")
def embeddings(peer):
    for t in (torch.tensor([0, 1, 500, 999]), torch.tensor([0.0, 0.25, 731.5])):
        for dim in (2, 3, 7, 32, 127, 128):
            for keywords in ({}, {"max_period": 100}):
                label = f"{t.dtype}, {dim}, {keywords}"
                ours = outcome_of(nn.timestep_embedding, t, dim, **keywords)
                theirs = outcome_of(peer.nn.timestep_embedding, t, dim, **keywords)
                yield label, ours, theirs


@CASES.add("nn: update_ema, mean_flat, scale_module, zero_module")
def tensor_helpers(peer):
    for rate in ((), (0.0,), (0.9999,), (1.0,)):
        sides = []
        for side in (nn, peer.nn):
            torch.manual_seed(0)
            target, source = ([torch.nn.Parameter(torch.randn(3, 4))] for _ in range(2))
            side.update_ema(target, source, *rate)
            sides.append(target)
        yield f"update_ema {rate}", *sides
    for name, arguments in (("scale_module", (0.3,)), ("zero_module", ())):
        sides = []
        for side in (nn, peer.nn):
            torch.manual_seed(0)
            module = torch.nn.Linear(3, 4)
            returned = getattr(side, name)(module, *arguments)
            sides.append([returned is module, *module.state_dict().values()])
        yield name, *sides
    x = torch.randn(3, 4, 5, 6)
    yield "mean_flat", nn.mean_flat(x), peer.nn.mean_flat(x)
    yield "mean_flat of [N, K]", nn.mean_flat(x[:, :, 0, 0]), peer.nn.mean_flat(x[:, :, 0, 0])


@CASES.add("nn: SiLU, GroupNorm32, conv_nd, avg_pool_nd, linear")
def layers(peer):
    for dims in (1, 2, 3, 4):
        x = torch.randn(2, 64, *(4,) * dims)
        for maker, arguments in (("conv_nd", (64, 32, 3)), ("avg_pool_nd", (2,))):
            sides = []
            for side in (nn, peer.nn):
                torch.manual_seed(0)
                layer = outcome_of(getattr(side, maker), dims, *arguments)
                sides.append(layer if isinstance(layer, Refusal) else [type(layer).__name__, layer(x)])
            yield f"{maker}, {dims} dims", *sides
        normalised = [side.normalization(64)(x) for side in (nn, peer.nn)]
        yield f"normalization, {dims} dims", *normalised
    halves = [side.GroupNorm32(32, 64).half().float()(x.half()) for side in (nn, peer.nn)]
    yield "GroupNorm32 keeps the dtype of its input", *halves
    x = torch.linspace(-30, 30, 301)
    yield "SiLU", nn.SiLU()(x), peer.nn.SiLU()(x)
    yield "linear", type(nn.linear(2, 3)), type(peer.nn.linear(2, 3))


@CASES.add("nn: checkpoint, outputs and gradients")
def checkpointing(peer):
    for flag in (True, False):
        sides = []
        for side in (nn, peer.nn):
            torch.manual_seed(0)
            layer = torch.nn.Linear(5, 5)
            x, z = (torch.randn(3, 5, requires_grad=True) for _ in range(2))
            out = side.checkpoint(
                lambda a, b, f=layer: f(a * b).tanh(), (x, z), list(layer.parameters()), flag
            )
            out.square().sum().backward()
            sides.append([out, x.grad, z.grad, layer.weight.grad, layer.bias.grad])
        yield f"flag {flag}", *sides


@CASES.add("losses: normal_kl with tensors and scalars")
def gaussian_kl(peer):
    torch.manual_seed(0)
    a, b, c, d = torch.randn(4, 2, 3, 4, 4).unbind()
    for label, arguments in {
        "tensors": (a, b, c, d),
        "standard normal": (a, b, 0.0, 0.0),
        "scalar first": (0.3, -1.0, c, d),
        "one tensor": (0.3, -1.0, 0.1, d),
        "no tensor": (0.3, -1.0, 0.1, 0.2),
    }.items():
        yield label, outcome_of(losses.normal_kl, *arguments), outcome_of(peer.losses.normal_kl, *arguments)


@CASES.add("losses: normal CDF and discretised likelihood")
def likelihood(peer):
    x = torch.linspace(-8, 8, 2001)
    yield "cdf", losses.approx_standard_normal_cdf(x), peer.losses.approx_standard_normal_cdf(x)
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, 8, 8))
    pixels[0, 0] = 0
    pixels[1, 0] = 255
    x = pixels / 127.5 - 1
    means, log_scales = torch.randn(2, *x.shape).unbind()
    for shift in (-8.0, -3.0, 0.0):
        yield (
            f"log scale {shift}",
            losses.discretized_gaussian_log_likelihood(x, means=means, log_scales=log_scales + shift),
            peer.losses.discretized_gaussian_log_likelihood(x, means=means, log_scales=log_scales + shift),
        )


@CASES.add("fp16_util: convert_module_to_f16 and back touch convolutions only", BITWISE)
def module_conversion(peer):
    layers = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.ConvTranspose2d)
    for layer in layers:
        for bias in (True, False):
            sides = []
            for side in (fp16_util, peer.fp16_util):
                module = layer(2, 3, 1, bias=bias)
                side.convert_module_to_f16(module)
                half = [str(p.dtype) for p in module.parameters()]
                side.convert_module_to_f32(module)
                sides.append([half, [str(p.dtype) for p in module.parameters()]])
            yield f"{layer.__name__}, bias {bias}", *sides
    for layer in (torch.nn.Linear(2, 3), torch.nn.GroupNorm(1, 2), torch.nn.Embedding(2, 3)):
        sides = []
        for side in (fp16_util, peer.fp16_util):
            layer.apply(side.convert_module_to_f16)
            sides.append([str(p.dtype) for p in layer.parameters()])
            layer.float()
        yield type(layer).__name__, *sides

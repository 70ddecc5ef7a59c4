"""Classifiers and denoisers for a mixture: the exact ones, and ones that err in a known way."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.special import wrightomega
from torch import Tensor, nn

from experiments.mixture.distribution import Mixture
from guided_diffusion.models.layers import timestep_embedding

Network = Callable[[Tensor, Tensor], Tensor]


def sharpened(mixture: Mixture, factor: float) -> Network:
    """Return the classifier whose logits are `factor` times log p(y | x_t): 1 is exact, above 1 too certain."""
    return lambda x, t: factor * mixture.log_classes(x, t).log_softmax(dim=1)


def entropy_constrained(mixture: Mixture, eta: float) -> Network:
    """Return the classifier that minimises the ECT loss (Eq. 12) for every p = p(y | x_t), in closed form.

    The minimiser q of -sum p log q + eta (log K + sum q log q) satisfies p_k = q_k (c + eta log q_k), with the c for
    which q sums to 1. With Wright's omega, log q_k = omega(log(p_k / eta) + c / eta) - c / eta.
    """

    def logits(x: Tensor, t: Tensor) -> Tensor:
        log_p_BK = mixture.log_classes(x, t).log_softmax(dim=1)
        argument_BK = log_p_BK - math.log(eta)
        # c - eta H(q) = 1, so c is in [1, 1 + eta log K], where the sum of q falls with c: bisection, then a Newton
        # step through which c has its gradient.
        low_B1 = torch.ones_like(log_p_BK[:, :1])
        high_B1 = low_B1 + eta * math.log(log_p_BK.shape[1])
        with torch.no_grad():
            for _ in range(50):
                middle_B1 = (low_B1 + high_B1) / 2
                total_B1 = _log_q(argument_BK, middle_B1, eta).logsumexp(dim=1, keepdim=True)
                low_B1 = torch.where(total_B1 > 0, middle_B1, low_B1)
                high_B1 = torch.where(total_B1 > 0, high_B1, middle_B1)
        c_B1 = ((low_B1 + high_B1) / 2).requires_grad_()
        with torch.enable_grad():
            total_B1 = _log_q(argument_BK.detach(), c_B1, eta).logsumexp(dim=1, keepdim=True)
        (slope_B1,) = torch.autograd.grad(total_B1.sum(), c_B1)
        c_B1 = c_B1.detach()
        c_B1 = c_B1 - _log_q(argument_BK, c_B1, eta).logsumexp(dim=1, keepdim=True) / slope_B1
        return _log_q(argument_BK, c_B1, eta)

    return logits


def _log_q(argument_BK: Tensor, c_B1: Tensor, eta: float) -> Tensor:
    return _Omega.apply(argument_BK + c_B1 / eta) - c_B1 / eta


class _Omega(torch.autograd.Function):
    """Wright's omega function: the w with w + log w = z, float64."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        w = torch.from_numpy(wrightomega(z.detach().numpy()))
        ctx.save_for_backward(w)
        return w

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (w,) = ctx.saved_tensors
        return gradient * w / (1 + w)


def exact_noise(mixture: Mixture, deviation: float | None = None) -> Network:
    """Return the noise predictor of E[x_0 | x_t], [B, D] like x; with `deviation`, that of the blurred mixture."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        abar_B1 = mixture.abar_T[t.long()][:, None]
        x_0 = mixture.denoise(x, t, deviation)
        return ((x.double() - abar_B1.sqrt() * x_0) / (1 - abar_B1).sqrt()).to(x.dtype)

    return predict


class Perceptron(nn.Module):
    """A network of three hidden layers for x_t [B, D] and t [B], which it sees as sines and cosines."""

    def __init__(self, dimensions: int, outputs: int, width: int = 128):
        super().__init__()
        self.embedded = 32
        layers: list[nn.Module] = []
        for inputs in (dimensions + self.embedded, width, width):
            layers += [nn.Linear(inputs, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, outputs))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(torch.cat([x.float(), timestep_embedding(t, self.embedded)], dim=1))


def train(
    mixture: Mixture, outputs: int, loss: Callable[[Tensor, Tensor, Tensor], Tensor], steps: int, seed: int,
    batch_size: int = 512,
) -> Perceptron:  # fmt: skip
    """Train a network on fresh draws; `loss(output, y, noise)` is a scalar. The learning rate falls in a cosine."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = Perceptron(mixture.means_JD.shape[1], outputs)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        y = torch.randint(mixture.num_classes, (batch_size,), generator=generator)
        x_0 = mixture.draw(y, generator)
        t = torch.randint(len(mixture.abar_T), (batch_size,), generator=generator)
        noise = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype)
        abar_B1 = mixture.abar_T[t][:, None]
        x_t = abar_B1.sqrt() * x_0 + (1 - abar_B1).sqrt() * noise
        optimizer.zero_grad()
        loss(network(x_t, t), y, noise.float()).backward()
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(False)

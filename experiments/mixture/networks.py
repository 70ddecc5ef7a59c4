"""Classifiers and denoisers for a mixture: the exact ones, and ones that err in a known way."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.special import wrightomega
from torch import Tensor, nn

from ed_dpm_patches.ect import ect_terms
from experiments.mixture.distribution import Mixture
from guided_diffusion.models.layers import timestep_embedding

Network = Callable[..., Tensor]  # network(x_t [B, D], t [B]), some with y=[B]


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
        # c - eta H(q) = 1, so c is at least 1. The log of the sum of q is convex and falls with c, so Newton's steps
        # from there come to its 0 from below. One more has c's gradient.
        c_B1 = torch.ones_like(log_p_BK[:, :1])
        with torch.no_grad():
            for _ in range(50):
                total_B1, slope_B1 = _log_sum(argument_BK, c_B1, eta)
                c_B1 = c_B1 - total_B1 / slope_B1
                if total_B1.abs().max() < 1e-12:
                    break
        total_B1, _ = _log_sum(argument_BK, c_B1, eta)
        return _log_q(argument_BK, c_B1 - total_B1 / slope_B1, eta)

    return logits


def _log_q(argument_BK: Tensor, c_B1: Tensor, eta: float) -> Tensor:
    return _Omega.apply(argument_BK + c_B1 / eta) - c_B1 / eta


def _log_sum(argument_BK: Tensor, c_B1: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """The log of the sum of q, and its derivative by c, without a gradient of its own: [B, 1] each."""
    log_q_BK = _log_q(argument_BK, c_B1, eta)
    share_BK = log_q_BK.detach().softmax(dim=1)
    omega_BK = (log_q_BK + c_B1 / eta).detach()
    slope_B1 = -(share_BK / (1 + omega_BK)).sum(dim=1, keepdim=True) / eta
    return log_q_BK.logsumexp(dim=1, keepdim=True), slope_B1


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
    """Return the noise predictor of E[x_0 | x_t], [B, D] like x, or of E[x_0 | x_t, y] where it is called with y=.

    :param deviation: that of the blurred mixture; None: the mixture's own.
    """

    def predict(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        abar_B1 = mixture.abar_T[t.long()][:, None]
        x_0 = mixture.denoise(x, t, deviation, y)
        return ((x.double() - abar_B1.sqrt() * x_0) / (1 - abar_B1).sqrt()).to(x.dtype)

    return predict


class Perceptron(nn.Module):
    """A network of three hidden layers for x_t [B, D] and t [B], which it sees as sines and cosines.

    :param classes: of the labels y [B] that it is told, too; 0: none.
    :param gain_T: for each timestep, the factor of x_t in what is added to the output [B, D]; None: nothing is.
    """

    def __init__(self, dimensions: int, outputs: int, classes: int = 0, gain_T: Tensor | None = None, width: int = 128):
        super().__init__()
        self.embedded, self.classes, self.gain_T = 32, classes, gain_T
        layers: list[nn.Module] = []
        for inputs in (dimensions + self.embedded + classes, width, width):
            layers += [nn.Linear(inputs, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, outputs))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        x = x.float()
        inputs = [x, timestep_embedding(t, self.embedded)]
        if self.classes:
            inputs.append(nn.functional.one_hot(y, self.classes).float())
        output = self.layers(torch.cat(inputs, dim=1))
        return output if self.gain_T is None else output + self.gain_T[t.long()][:, None] * x


def train_classifier(mixture: Mixture, eta: float, steps: int) -> Perceptron:
    """Train a classifier of x_t with the cross entropy, or the ECT loss where eta is above 0."""

    def loss(logits: Tensor, y: Tensor, _: Tensor) -> Tensor:
        return ect_terms(logits, y, eta)["loss"].mean()

    return _train(mixture, lambda size: Perceptron(size, mixture.num_classes), loss, steps)


def train_denoiser(mixture: Mixture, steps: int, labelled: bool) -> Perceptron:
    """Train a noise predictor; with labels, one that is told y.

    Its gain is that of the best linear denoiser for one Gaussian of the data's mean square (Karras et al. 2022).
    """
    size = mixture.means_JD.square().mean() + mixture.deviation**2
    gain_T = ((1 - mixture.abar_T).sqrt() / (mixture.abar_T * size + 1 - mixture.abar_T)).float()

    def loss(output: Tensor, _: Tensor, noise: Tensor) -> Tensor:
        return (output - noise).square().mean()

    classes = mixture.num_classes if labelled else 0
    return _train(mixture, lambda size: Perceptron(size, size, classes, gain_T), loss, steps)


def _train(
    mixture: Mixture, make: Callable[[int], Perceptron], loss: Callable[[Tensor, Tensor, Tensor], Tensor], steps: int,
    seed: int = 0, batch_size: int = 256,
) -> Perceptron:  # fmt: skip
    """Train make(dimensions) on fresh draws; `loss(output, y, noise)` is a scalar. The rate falls in a cosine."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = make(mixture.means_JD.shape[1])
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
        loss(network(x_t, t, y), y, noise.float()).backward()
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(False)

"""Networks of a user's own, as --clean_classifier and --decoder name them; images are 8x8."""

import torch
from torch import nn


def _linear(outputs: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.ReLU(), nn.Linear(16, outputs))


def classifier() -> nn.Module:
    return _linear(4)


def of_other_classes() -> nn.Module:
    return _linear(7)


def score() -> nn.Module:
    return _linear(1, seed=1)


def discriminator() -> nn.Module:
    return nn.Sequential(_linear(1, seed=1), nn.Sigmoid())


def decoder() -> nn.Module:
    torch.manual_seed(2)
    return nn.Conv2d(3, 3, 1)


def no_network() -> int:
    return 3


class _Changed(nn.Module):
    """A network whose output goes through a function."""

    def __init__(self, change, outputs: int = 4):
        super().__init__()
        self.network, self.change = _linear(outputs), change

    def forward(self, x):
        return self.change(self.network(x))

    def get_extra_state(self):
        return {"outputs": 4}

    def set_extra_state(self, state):
        pass


def unchanged() -> nn.Module:
    return _Changed(lambda z: z)


def without_gradient() -> nn.Module:
    return _Changed(torch.no_grad()(lambda z: z.detach()))


def squeezed() -> nn.Module:
    return _Changed(torch.squeeze)


def no_probability() -> nn.Module:
    return _Changed(lambda z: z + 5, outputs=1)


def ends_the_program() -> nn.Module:
    raise SystemExit(0)


def unseeded() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))


class _Broken(nn.Module):
    """Returns nan for noise that is not the images it is first tried with."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x.flatten(1).mean(dim=1) * (1.0 if self.calls < 3 else torch.nan)


def broken_score() -> nn.Module:
    return _Broken()

"""How data is found in calls, and the ways of `python -m tests.ways` against their limits."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from ed_dpm_patches.softmax import Softmax
from tests.ways import count_ways, has_data


class Unrelated:
    """Not of the product."""

    def __init__(self, values: object):
        self.values = values


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(7, 3),
        torch.tensor(1.0),
        np.zeros(7),
        {"y": torch.zeros(7)},
        ([torch.zeros(7)],),
        Softmax.of(torch.zeros(7, 3)),
        Softmax.of(torch.zeros(7, 3)).residual,
        partial(print, torch.zeros(7)),
    ],
)
def test_data_is_found(value):
    assert has_data(value, 7)


@pytest.mark.parametrize("value", [None, 7, torch.zeros(3, 7), nn.Linear(3, 7), Unrelated(3), [{"step": 7}], "7"])
def test_what_is_no_data(value):
    assert not has_data(value, 7)


@pytest.mark.slow
def test_the_ways_are_no_longer_than_they_were(tmp_path):
    guided, unconditional, training = count_ways(tmp_path).values()
    assert len(guided.with_data) <= 13 and len(unconditional.with_data) <= 14 and len(training.with_data) <= 12
    assert len(guided.wrappers["UNetModel"]) == 2 and len(unconditional.wrappers["UNetModel"]) <= 3
    assert len(guided.wrappers["EncoderUNetModel"]) == 3 and len(training.wrappers["EncoderUNetModel"]) == 1
    assert {"ed_dpm_patches/guidance.py", "guided_diffusion/models/unet.py"} <= guided.with_data

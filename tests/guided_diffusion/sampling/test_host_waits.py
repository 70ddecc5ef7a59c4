"""The host never waits for the device inside a sampling step: nothing is read back, nothing copied over.

Steps run on the meta device, where there is nothing to read, after a first one that may fill the caches.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ed_dpm_patches import ClassifierGuidance, ConstantRule, EntropyRule, GradientNormRule
from ed_dpm_patches.trace import Trace
from guided_diffusion.diffusion import samplers
from guided_diffusion.diffusion.nonfinite import NonfiniteDetector
from guided_diffusion.models import unet
from guided_diffusion.models.inference import Frozen
from guided_diffusion.script_util import create_gaussian_diffusion
from tests.support.networks import small_classifier, small_unet

# Reading a value; a size that depends on values; data that came from the host (torch.tensor).
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "lift_fresh", "unique")


class NoWaiting(TorchDispatchMode):
    """Raises where the host would wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        tensors = [a for a in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
        if name.startswith(WAITING) or any(a.device.type == "cpu" and a.dim() for a in tensors):
            raise AssertionError(f"the host waits in {name}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("step", [samplers.ddpm_step, samplers.ddim_step])
@pytest.mark.parametrize("rule", [ConstantRule(), EntropyRule(2.0), GradientNormRule(factor=2.0)])
@pytest.mark.parametrize("traced", [False, True])
def test_a_guided_step(monkeypatch, step, rule, traced):
    monkeypatch.setattr(unet, "full_precision", lambda x: nullcontext())  # the meta device has no autocast
    diffusion = create_gaussian_diffusion(learn_sigma=True, timestep_respacing="ddim5")
    model, classifier = (Frozen(network.to("meta")) for network in (small_unet(), small_classifier()))
    trace = Trace(diffusion, samples=2)
    detector = NonfiniteDetector()
    observer = trace.observe if traced else None
    guidance = ClassifierGuidance(classifier, rule, cap=100.0, observer=observer)

    def unlabelled(x, t, y):
        return model(x, t)

    def look(*args):
        detector.step(*args)
        if traced:
            trace.step(*args)

    x, y = torch.empty(2, 1, 8, 8, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
    options = {"cond_fn": guidance, "model_kwargs": {"y": y}, "callback": look}
    steps = samplers.sample_progressively(diffusion, step, unlabelled, x.shape, x, **options)
    next(steps)
    with NoWaiting():
        assert next(steps)["sample"].shape == x.shape


@pytest.mark.parametrize(
    "wait", [lambda x: float(x), lambda x: bool(x), lambda x: x.new_tensor([1.0, 2.0]), lambda x: x + torch.ones(1)]
)
def test_the_test_notices(wait):
    with pytest.raises(AssertionError, match="the host waits"), NoWaiting():
        wait(torch.zeros(()))

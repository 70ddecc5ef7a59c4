"""What a trace costs: the same guided sampling loop of ours with and without one, interleaved."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.cases import CLASSES, Setting, classifier_arguments, our_network
from benchmarks.measure import paired
from ed_dpm_patches import ClassifierGuidance, EntropyRule
from ed_dpm_patches.trace import Trace
from guided_diffusion import script_util, unet
from guided_diffusion.frozen import Frozen

STEPS = 3
HEADER = ("config", "part", "plain ms", "traced ms", "ratio", "10-90 %", "own ms", "own share", "samples")


def measure(setting: Setting, device: torch.device, half: bool, rounds: int) -> dict[str, float | str | bool]:
    """Seconds of a short DDIM loop without and with a trace, and whether the samples are bitwise the same.

    The trace keeps images at every step, which is more than it does in a long run, and its arrays are taken
    inside the timed part. `own_seconds` is what the trace adds to the same loop around networks that cost
    nothing: where the machine is noisy it tells more than the difference of two long times.
    """
    plain, traced = loops(setting, device, *networks(setting, device, half))
    identical = torch.equal(plain(), traced())
    times = paired(plain, traced, device, rounds)
    own = paired(*loops(setting, device, free_model, _free_classifier), device, rounds=100)
    own_seconds = own["ours_seconds"] * (own["ratio"] - 1)
    names = {"ours_seconds": "plain_seconds", "peer_seconds": "traced_seconds"}
    times = {names.get(name, name): value for name, value in times.items()}
    return {
        "part": f"{STEPS} guided DDIM steps", **times, "own_seconds": own_seconds,
        "own_share": own_seconds / times["plain_seconds"], "samples_identical": identical,
    }  # fmt: skip


def networks(setting: Setting, device: torch.device, half: bool) -> tuple[Callable, Callable]:
    """Model and classifier with random weights, called as samplers do."""
    torch.manual_seed(0)
    dtype = torch.float16 if half else None
    network, classifier = (
        Frozen(our_network(build, setting.side, arguments)[0].to(device), dtype)
        for build, arguments in (
            (script_util.create_model, setting.model),
            (unet.EncoderUNetModel, classifier_arguments(setting)),
        )
    )

    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return network(x, t, y) if setting.model.get("class_cond") else network(x, t)

    return model, classifier


def free_model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """A diffusion model that costs nothing."""
    return torch.cat([x, x], dim=1)


def _free_classifier(x: Tensor, t: Tensor) -> Tensor:
    return x.flatten(1)[:, :CLASSES]


def loops(
    setting: Setting, device: torch.device, model: Callable, classifier: Callable
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The loop without and with a trace, each returning its samples."""
    diffusion = script_util.create_gaussian_diffusion(learn_sigma=True, timestep_respacing=str(STEPS))
    torch.manual_seed(1)
    noise = torch.randn(setting.batch_size, 3, setting.side, setting.side, device=device)
    labels = {"y": torch.arange(setting.batch_size, device=device) % CLASSES}
    trace = Trace(diffusion, samples=4)

    def sample(cond_fn: Callable, **options) -> Tensor:
        return diffusion.ddim_sample_loop(model, noise.shape, noise, cond_fn=cond_fn, model_kwargs=labels, **options)

    plain_guidance = ClassifierGuidance(classifier, EntropyRule(1.0))
    traced_guidance = ClassifierGuidance(classifier, EntropyRule(1.0), observer=trace.observe)

    def traced() -> Tensor:
        samples = sample(traced_guidance, callback=trace.step)
        trace.take()
        return samples

    return lambda: sample(plain_guidance), traced


def line(row: dict) -> str:
    """One row of the table."""
    return " | ".join(
        (
            row["config"], row["part"], f"{row['plain_seconds'] * 1e3:.1f}", f"{row['traced_seconds'] * 1e3:.1f}",
            f"{row['ratio']:.4f}", f"{row['ratio_p10']:.3f}-{row['ratio_p90']:.3f}",
            f"{row['own_seconds'] * 1e3:.2f}", f"{row['own_share']:.2%}",
            "identical" if row["samples_identical"] else "DIFFERENT",
        )
    )  # fmt: skip

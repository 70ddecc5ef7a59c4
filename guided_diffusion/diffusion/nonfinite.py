"""The nonfinite detector: where inf or nan first appears in a batch of samples, step by step, or in a loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guided_diffusion.diffusion.samplers import StepOutput
from guided_diffusion.errors import InputError

STOP, SKIP = MODES = ("stop", "skip")


@dataclass(frozen=True)
class Finding:
    """The first value of a sample that is not finite.

    :param sample: its number in the run; step: 1 for the noisiest, None for the finished image; t: the timestep of
        the original process; place: what holds it; value: "nan" or "inf".
    """

    sample: int
    place: str
    value: str
    step: int | None = None
    t: int | None = None

    def __str__(self) -> str:
        when = "" if self.step is None else f" at step {self.step} (t = {self.t})"
        return f"sample {self.sample}: found {self.value} in the {self.place}{when}, expected finite numbers"


class NonfiniteDetector:
    """Finds which samples of a batch first held inf or nan, at which step and where.

    It keeps one number a sample, step and place, on the device; nothing waits for the device before `take`.
    Sample each batch with `step` as the loop's callback, then `take`.

    :param mode: "stop": `take` raises; "skip": it returns what was found.
    """

    def __init__(self, mode: str = STOP):
        self._mode = mode
        self.begin()

    def begin(self) -> None:
        """Begin a batch, and drop what was noted of another."""
        # Step and timestep of the original process, None for the finished image; place; size [B].
        self._noted: list[tuple[int | None, int | None, str, Tensor]] = []

    def step(self, step: int, t: int, output: StepOutput) -> None:
        """Note the sizes of x_t, the model's output and the `peaks` of guidance: a sampling loop's callback."""
        of_model_B = peak(output.model_output)
        for further in output.further_outputs:
            of_model_B = torch.maximum(of_model_B, peak(further))
        sizes = {"image x_t": peak(output.x_t), "model output": of_model_B, **output.peaks}
        original = output.diffusion.model_timesteps.timesteps[t]
        self._noted += [(step + 1, original, place, size_B) for place, size_B in sizes.items()]

    def take(self, images: Tensor, samples: Sequence[int]) -> list[Finding]:
        """Return what was found in a batch and its finished images [B, ...], at most one finding a sample; start anew.

        :param samples: the batch's numbers in the run.
        :raises InputError: naming the earliest finding, unless the mode is "skip".
        """
        noted = [*self._noted, (None, None, "finished image", peak(images))]
        self.begin()
        sizes_SB = torch.stack([size_B.float() for *_, size_B in noted])
        if bool(sizes_SB.isfinite().all()):
            return []
        sizes_BS = sizes_SB.T.tolist()
        found = []
        for sample, sizes in zip(samples, sizes_BS, strict=True):
            first = next((i for i, size in enumerate(sizes) if not math.isfinite(size)), None)
            if first is not None:
                step, t, place, _ = noted[first]
                found.append((first, Finding(sample, place, "nan" if math.isnan(sizes[first]) else "inf", step, t)))
        if self._mode == STOP:
            _, earliest = min(found, key=lambda entry: entry[0])
            raise InputError(f"{earliest} (overflow in half precision? --nonfinite skip leaves such samples out)")
        return [finding for _, finding in found]


def peak(values: Tensor) -> Tensor:
    """Return the largest magnitude of each sample: [B, ...] -> [B]; inf or nan where one of its values is."""
    return values.detach().flatten(1).abs().amax(dim=1)  # a tenth of the time of isfinite().all()


def check_loss(loss_B: Tensor, t_B: Tensor, step: int) -> None:
    """Raise InputError with the training step, t and place in the batch of the first loss [B] that is inf or nan.

    Waits for the device. Not for float16, where overflow is the loss scaler's task.
    """
    losses = loss_B.detach().tolist()
    if all(map(math.isfinite, losses)):
        return
    row = next(i for i, loss in enumerate(losses) if not math.isfinite(loss))
    raise InputError(
        f"training diverged at step {step}: found a loss of {losses[row]} at t = {int(t_B[row])} (sample {row} of the "
        "batch), expected a finite one (lower --lr?)"
    )

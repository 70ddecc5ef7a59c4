"""Where inf or nan first appears: in weights, in a loss, and, step by step, in the making of a batch of samples."""

from __future__ import annotations

import dataclasses
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


class Watch:
    """Looks at every step of a batch, and says afterwards which samples went wrong first where.

    What it keeps is one number a sample, step and place, on the device; nothing waits for the device before `take`.
    Sample each batch with `step` as the loop's callback, hand `see` to a `ClassifierGuidance`, then `take`.

    :param timesteps: of the original process, in the order of sampling: see `timesteps_of`.
    :param mode: "stop": `take` raises; "skip": it returns what was found.
    """

    def __init__(self, timesteps: Sequence[int] = (), mode: str = STOP):
        self._timesteps, self._mode = list(timesteps), mode
        self.begin()

    def begin(self) -> None:
        """Begin a batch; what was seen before is dropped."""
        self._inside: list[tuple[str, Tensor]] = []  # of the step that is not over: place, size [B]
        self._steps: list[tuple[int | None, str, Tensor]] = []  # step, place, size [B]

    def step(self, step: int, t: int, output: StepOutput) -> None:
        """Look at a step of a sampling loop, whose callback this is."""
        here = [("image x_t", peak(output.x_t)), ("model output", peak(output.model_output)), *self._inside]
        self._steps += [(step, place, size_B) for place, size_B in here]
        self._inside = []

    def see(self, place: str, size_B: Tensor) -> None:
        """Note numbers [B], found inside a step, that are not finite where a sample's values at this place are not."""
        self._inside.append((place, size_B.detach()))

    def take(self, images: Tensor, samples: Sequence[int]) -> list[Finding]:
        """What was found in a batch and its finished images [B, ...], at most one finding a sample; then start anew.

        :param samples: the batch's numbers in the run.
        :raises InputError: naming the earliest finding, unless the mode is "skip".
        """
        seen = [*self._steps, (None, "finished image", peak(images))]
        self.begin()
        sizes_SB = torch.stack([size_B.float() for _, _, size_B in seen])
        if bool(sizes_SB.isfinite().all()):
            return []
        sizes_BS = sizes_SB.T.tolist()
        found = []
        for sample, sizes in zip(samples, sizes_BS, strict=True):
            first = next((i for i, size in enumerate(sizes) if not math.isfinite(size)), None)
            if first is not None:
                step, place, _ = seen[first]
                value = "nan" if math.isnan(sizes[first]) else "inf"
                when = (None, None) if step is None else (step + 1, self._timesteps[step])
                found.append((first, Finding(sample, place, value, *when)))
        if self._mode == STOP:
            _, earliest = min(found, key=lambda entry: entry[0])
            raise InputError(f"{earliest} (overflow in half precision? --nonfinite skip leaves such samples out)")
        return [finding for _, finding in found]


def timesteps_of(diffusion) -> list[int]:
    """The timesteps of the original process that a (respaced) process takes, in the order of sampling."""
    return list(getattr(diffusion, "timestep_map", range(diffusion.num_timesteps)))[::-1]


def peak(values: Tensor) -> Tensor:
    """The largest magnitude of each sample: [B, ...] -> [B]; inf or nan where one of its values is."""
    return values.detach().flatten(1).abs().amax(dim=1)  # a tenth of the time of isfinite().all()


def as_records(found: Sequence[Finding]) -> list[dict]:
    """Findings as JSON holds them."""
    return [dataclasses.asdict(finding) for finding in found]




def check_loss(loss_B: Tensor, t_B: Tensor, step: int) -> None:
    """InputError naming the training step, t and place in the batch of the first loss [B] that is inf or nan.

    Waits for the device. Not for float16, where the loss scaler takes care of overflow.
    """
    losses = loss_B.detach().tolist()
    if all(map(math.isfinite, losses)):
        return
    row = next(i for i, loss in enumerate(losses) if not math.isfinite(loss))
    raise InputError(
        f"training diverged at step {step}: found a loss of {losses[row]} at t = {int(t_B[row])} (sample {row} of the "
        "batch), expected a finite one (lower --lr?)"
    )

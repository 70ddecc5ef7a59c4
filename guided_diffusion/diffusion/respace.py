"""Run a T-step process in fewer steps: which timesteps to keep, and the process over those."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from torch import Tensor

from guided_diffusion.diffusion.gaussian import GaussianDiffusion
from guided_diffusion.diffusion.process import TimestepMap


def space_timesteps(num_timesteps: int, section_counts: str | Sequence[int]) -> set[int]:
    """Choose timesteps out of range(num_timesteps).

    :param section_counts: "ddimN": N timesteps with an integer stride, from 0 (Song et al. 2021). Otherwise
        a list, or a string "a,b,c": the range is cut into as many near-equal sections as there are
        numbers, the first holding the least noise, and each number says how many evenly spaced timesteps
        are kept there, first and last included ("250": 250 of the whole range).
    :raises ValueError: no such stride; more timesteps than a section has; not numbers.
    """
    if isinstance(section_counts, str):
        if section_counts.startswith("ddim"):
            return _ddim_timesteps(num_timesteps, section_counts.removeprefix("ddim"))
        section_counts = [_parse_count(text, section_counts) for text in section_counts.split(",")]
    if not section_counts:
        raise ValueError("timestep_respacing: found no sections, expected at least one count")

    size, larger_sections = divmod(num_timesteps, len(section_counts))
    kept: set[int] = set()
    start = 0
    for index, count in enumerate(section_counts):
        length = size + (index < larger_sections)
        if count > length:
            raise ValueError(
                f"timestep_respacing: found {count} for a section of {length} timesteps, expected at most {length}"
            )
        kept.update(start + offset for offset in _evenly_spaced(length, count))
        start += length
    return kept


def _parse_count(text: str, whole: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"timestep_respacing: found {whole!r}, expected a count, counts separated by commas, or ddimN"
        ) from None


def _ddim_timesteps(num_timesteps: int, count_text: str) -> set[int]:
    count = _parse_count(count_text, f"ddim{count_text}")
    strides = {len(range(0, num_timesteps, stride)): stride for stride in range(num_timesteps - 1, 0, -1)}
    if count in strides:
        return set(range(0, num_timesteps, strides[count]))
    near = sorted(strides, key=lambda other: abs(other - count))[:2]
    raise ValueError(
        f"timestep_respacing: found ddim{count}, but no integer stride takes {count} of {num_timesteps} timesteps; "
        f"expected another number such as {' or '.join(f'ddim{other}' for other in sorted(near))}"
    )


def _evenly_spaced(length: int, count: int) -> list[int]:
    """`count` of range(length), both ends included, rounded half to even.

    The stride is accumulated, not multiplied: the published results used exactly these timesteps.
    """
    stride = (length - 1) / (count - 1) if count > 1 else 1
    position, offsets = 0.0, []
    for _ in range(count):
        offsets.append(round(position))
        position += stride
    return offsets


class SpacedDiffusion(GaussianDiffusion):
    """A process over a subset of another's timesteps; `kwargs`, betas included, describe that other one.

    Index i of this process is timestep `timestep_map[i]` of the original; models and cond_fn are called
    with the original timestep.
    """

    def __init__(self, use_timesteps: Collection[int], **kwargs):
        self.use_timesteps = set(use_timesteps)
        betas = np.asarray(kwargs["betas"], dtype=np.float64)
        self.original_num_steps = len(betas)
        original = GaussianDiffusion(**kwargs)
        self.timestep_map = [t for t in range(self.original_num_steps) if t in self.use_timesteps]
        abar = original.alphas_cumprod[self.timestep_map]
        super().__init__(**{**kwargs, "betas": 1 - abar / np.append(1.0, abar[:-1])})
        self.model_timesteps = TimestepMap(self.timestep_map, self.rescale_timesteps, self.original_num_steps)
        if _WrappedModel.__module__ != __name__:  # assigned to upstream's hook
            self.call = self._call_wrapped

    def _call_wrapped(self, model: Callable, x: Tensor, t: Tensor, model_kwargs: dict | None = None) -> Tensor:
        if not isinstance(model, _WrappedModel):
            model = _WrappedModel(model, self.timestep_map, self.rescale_timesteps, self.original_num_steps)
        return model(x, t, **(model_kwargs or {}))

    def _scale_timesteps(self, t: Tensor) -> Tensor:
        return t  # as upstream's, whose _WrappedModel maps and rescales


class _WrappedModel:
    """Upstream's form of a model or cond_fn that takes indices of the respaced process; our processes need none."""

    maps_timesteps = True

    def __init__(self, model: Callable, timestep_map: Sequence[int], rescale_timesteps: bool, original_num_steps: int):
        self.model, self.timestep_map = model, timestep_map
        self.rescale_timesteps, self.original_num_steps = rescale_timesteps, original_num_steps
        self._original = TimestepMap(timestep_map, rescale_timesteps, original_num_steps)

    def __call__(self, x: Tensor, ts: Tensor, **kwargs):
        return self.model(x, self._original(ts), **kwargs)

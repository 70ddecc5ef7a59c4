"""The TOML file of --guidance_file: terms by the flags' names, with a weight each; the sum of all is the guidance.

    [[terms]]
    classifier_path = "second.pt"
    classifier_scale = 2.0
    guidance = "elucd"
    weight = [[0, 1.0], [700, 0.2]]  # points (t, weight), with straight lines between them; or one number
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.errors import InputError, first_line
from guided_diffusion.io.reading import open_regular, reading_errors

from .sums import Weight

Points = list[list[float]]


def read_file(path: str) -> Iterator[dict[str, Any]]:
    if not path:
        return
    try:
        with reading_errors(path), open_regular(path) as file:
            content = tomllib.load(file)
    except (FileNotFoundError, ValueError, RecursionError) as error:
        raise InputError(f"--guidance_file {path}: expected TOML with [[terms]], found {first_line(error)}") from None
    terms = content.pop("terms", None)
    if content or not isinstance(terms, list) or not terms or not all(isinstance(term, dict) for term in terms):
        raise InputError(f"--guidance_file {path}: found {', '.join(content) or terms!r}, expected [[terms]] alone")
    for term in terms:
        yield dict(term)


def checked_weight(weight: Any) -> float | Points:
    """Return a number as it is, and points (t, weight) with t ascending; InputError for anything else."""
    points = weight if isinstance(weight, list) else [[0, weight]]
    numbers = all(isinstance(point, list) and len(point) == 2 and all(map(_is_number, point)) for point in points)
    if not points or not numbers or any(b[0] <= a[0] for a, b in zip(points, points[1:], strict=False)):
        raise InputError(f"weight: found {weight!r}, expected a number, or points [[t, weight], ...] with t ascending")
    return weight


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # False for nan


def schedule(weight: float | Points) -> Weight:
    """Return a weight as `Sum` takes it: points as a function of t, with straight lines between them."""
    if not isinstance(weight, list):
        return weight
    times, values = np.transpose(np.array(weight, dtype=np.float64))

    def at(t_B: Tensor) -> Tensor:
        return torch.from_numpy(np.interp(t_B.double().cpu().numpy(), times, values)).to(t_B.device)

    return at

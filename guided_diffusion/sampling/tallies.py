"""What is counted while sampling: each part keeps its own tally, so that the sum outlives interruptions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from guided_diffusion.errors import DamagedError
from guided_diffusion.io.atomic import write_json
from guided_diffusion.io.reading import read_json
from guided_diffusion.sampling.shards import Piece, read_array

TALLY = "tally"  # array of a part: JSON, as bytes


class Tally(Protocol):
    """Something to count. Its sum is in `{name}_{N}x{H}x{W}x{C}.json` beside the samples."""

    name: str

    def take(self) -> dict[str, Any]:
        """What was counted since the last call, as JSON values; called after each batch."""

    def sum(self, taken: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Several of those, or earlier sums, in one."""


def take(tally: Tally) -> np.ndarray:
    """A batch's tally for its part, uint8 [n]."""
    return np.frombuffer(json.dumps(tally.take()).encode(), np.uint8)


def write_sum(tally: Tally, pieces: Sequence[Piece], result: Path) -> None:
    """Write the sum of the parts' tallies and of earlier results' sums; `samples` says for how many samples it is."""
    taken, samples = [], 0
    for piece in pieces:
        if TALLY in piece.names():
            found = json.loads(read_array(piece.path, TALLY).tobytes())
        else:
            found = read_sum(tally, piece.path)
        if found is not None:
            taken.append(found)
            samples += len(piece.indices)
    write_json(_path(tally, result), {"samples": samples} | tally.sum(taken))


def read_sum(tally: Tally, result: Path) -> dict[str, Any] | None:
    """What `write_sum` wrote beside a result; None where there is nothing."""
    with suppress(FileNotFoundError, DamagedError):
        return read_json(_path(tally, result))
    return None


def _path(tally: Tally, result: Path) -> Path:
    return result.with_name(f"{tally.name}_{result.stem.partition('_')[2]}.json")

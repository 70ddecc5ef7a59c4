"""Counts made while sampling: each shard keeps its own tally, so that the sum survives interruptions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from guided_diffusion.errors import DamagedError
from guided_diffusion.io.atomic import write_json
from guided_diffusion.io.reading import read_json
from guided_diffusion.sampling.shards import Shard, read_array

TALLY = "tally"  # array of a shard: JSON, as bytes


class Tally(Protocol):
    """A counter. Its sum is written to `{name}_{N}x{H}x{W}x{C}.json` beside the samples."""

    name: str

    def take(self) -> dict[str, Any]:
        """Return the counts since the last call, as JSON values; called after each batch."""

    def sum(self, taken: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Add up several results of `take`, or earlier sums."""


def write_sum(tally: Tally, shards: Sequence[Shard], result: Path) -> None:
    """Write the sum of the shards' tallies and earlier results' sums; `samples` is the number of samples it covers."""
    taken, samples = [], 0
    for shard in shards:
        if TALLY in shard.names():
            found = json.loads(read_array(shard.path, TALLY).tobytes())
        else:
            found = read_sum(tally, shard.path)
        if found is not None:
            taken.append(found)
            samples += len(shard.indices)
    write_json(_path(tally, result), {"samples": samples} | tally.sum(taken))


def read_sum(tally: Tally, result: Path) -> dict[str, Any] | None:
    """Return what `write_sum` wrote beside a result; None where there is nothing."""
    with suppress(FileNotFoundError, DamagedError):
        return read_json(_path(tally, result))
    return None


def _path(tally: Tally, result: Path) -> Path:
    return result.with_name(f"{tally.name}_{result.stem.partition('_')[2]}.json")

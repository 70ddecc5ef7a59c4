"""Progress of long work on stderr: done/total, rate and time left, on rank 0 only."""

from __future__ import annotations

import sys

from tqdm import tqdm

from .dist_util import get_rank


def progress_bar(total: int | None, unit: str, initial: int = 0, description: str = "") -> tqdm:
    """A tqdm bar: often on a terminal, a line every ten seconds at most in a log file."""
    return tqdm(
        total=total,
        initial=initial,
        unit=f" {unit}",
        desc=description or None,
        disable=get_rank() != 0,
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
        smoothing=0.05,
        file=sys.stderr,
    )

"""The npz file that a folder stands for: that of a sampler's run, or the only one in a folder without pictures."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from guided_diffusion.errors import InputError
from guided_diffusion.files import list_names

_RESULT = re.compile(r"samples_\d+x\d+x\d+x\d+\.npz")
_RUN = "run.json"  # what a sampler leaves in its folder from the start


def find_npz(folder: Path, has_pictures: Callable[[], bool]) -> Path | None:
    """Return the npz file to take for a folder, None where its pictures are meant.

    A run's folder stands for its ``samples_*.npz``, whatever grid of pictures or other arrays lie beside it. Otherwise
    pictures come first (``has_pictures`` looks for them); without any, the npz file of the folder is meant.

    Raises ``InputError`` where there are several, or where a run is not finished.
    """
    names = list_names(folder)
    found = [name for name in names if name.endswith(".npz") and not name.startswith(".")]
    results = [name for name in found if _RESULT.fullmatch(name)]
    if not results and _RUN in names:
        raise InputError(
            f"{folder}: the folder of a sampling run without its samples_*.npz: it is not finished; the command that "
            "began it finishes it"
        )
    if not results and (not found or has_pictures()):
        return None
    chosen = results or found
    if len(chosen) > 1:
        shown = ", ".join(chosen[:4]) + (", ..." if len(chosen) > 4 else "")
        raise InputError(
            f"{folder}: found {len(chosen)} npz files ({shown}), expected one; say which, {folder / chosen[-1]} for "
            f"example; several are one set when joined by commas ({folder / chosen[0]},{folder / chosen[1]})"
        )
    return folder / chosen[0]

"""The npz file that a folder stands for: that of a sampler's run, or the only one in a folder without pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from guided_diffusion.data.image_files import ImageFiles
from guided_diffusion.errors import InputError, some_of
from guided_diffusion.io.reading import list_names

_RESULT = re.compile(r"samples_\d+x\d+x\d+x\d+\.npz")
_RUN = "run.json"  # what a sampler leaves in its folder from the start
WEIGHTS = (".pt", ".safetensors")
FOR_WEIGHTS = "a sampling script draws some by --model_path, the evaluator judges others by --features"
_TELLING = (".npz", ".json", *WEIGHTS)  # suffixes of files that no folder of pictures has


def find_npz(folder: Path, list_pictures: Callable[[], ImageFiles]) -> Path | None:
    """Return the npz file to take for a folder, None where its pictures are meant.

    A run's folder stands for its ``samples_*.npz``, whatever grid of pictures or other arrays lie beside it. Otherwise
    pictures come first (``list_pictures`` looks for them, in subfolders too); without any, the npz file of the folder
    is meant.

    Raises ``InputError`` where there are several, where a run is not finished, or where the folder holds runs or
    networks.
    """
    names = list_names(folder)
    found = [name for name in names if name.endswith(".npz") and not name.startswith(".")]
    results = [name for name in found if _RESULT.fullmatch(name)]
    if not results and _RUN in names:
        raise InputError(
            f"{folder}: the folder of a sampling run without its samples_*.npz: it is not finished; the command that "
            "began it finishes it"
        )
    if not results:
        pictures = list_pictures()
        if pictures.skipped.keys() & set(_TELLING):
            _refuse_other_folders(folder, pictures, holds_npz=bool(found))
        if pictures.names or not found:
            return None
    chosen = results or found
    if len(chosen) > 1:
        shown = ", ".join(chosen[:4]) + (", ..." if len(chosen) > 4 else "")
        raise InputError(
            f"{folder}: found {len(chosen)} npz files ({shown}), expected one; say which, {folder / chosen[-1]} for "
            f"example; several are one set when joined by commas ({folder / chosen[0]},{folder / chosen[1]})"
        )
    return folder / chosen[0]


def _refuse_other_folders(folder: Path, pictures: ImageFiles, holds_npz: bool) -> None:
    """Raise ``InputError`` for a folder that holds runs, whose pictures are grids, or networks and nothing to see."""
    runs, weights, arrays = set(), [], []
    for place, _, names in os.walk(folder, followlinks=False):
        inside = Path(place).relative_to(folder)
        if any(name == _RUN or _RESULT.fullmatch(name) for name in names):
            runs.add(str(inside))
        weights += [str(inside / name) for name in names if name.endswith(WEIGHTS)]
        arrays += [str(inside / name) for name in names if name.endswith(".npz")]
    if runs:
        runs = sorted(runs)
        count = "a run" if len(runs) == 1 else f"{len(runs)} runs"
        raise InputError(
            f"{folder}: a folder with {count} in it ({some_of(runs)}), expected one run's folder, such as "
            f"{folder / runs[0]}"
        )
    if pictures.names or holds_npz:
        return
    if weights:
        weights = sorted(weights, key=lambda name: (not Path(name).name.startswith("model"), name))
        raise InputError(f"{folder}: a training's folder, with {weights[0]}, expected images; {FOR_WEIGHTS}")
    if arrays:
        raise InputError(
            f"{folder}: found no images, but npz files in subfolders ({some_of(sorted(arrays))}), expected one; say "
            f"which, {folder / min(arrays)} for example"
        )

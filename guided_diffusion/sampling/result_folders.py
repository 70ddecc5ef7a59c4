"""The npz file that a folder stands for: the result of a sampling run, or the only npz in a folder without images."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from guided_diffusion.data.image_files import ImageFiles
from guided_diffusion.errors import InputError, some_of
from guided_diffusion.io.reading import list_names

_RESULT = re.compile(r"samples_\d+x\d+x\d+x\d+\.npz")
_RUN = "run.json"  # written at the start of a sampling run
WEIGHTS = (".pt", ".safetensors")
FOR_WEIGHTS = "a sampling script draws some by --model_path, the evaluator judges others by --features"
_TELLING = (".npz", ".json", *WEIGHTS)  # suffixes of files that folders of images do not have


def find_npz(folder: Path, list_images: Callable[[], ImageFiles]) -> Path | None:
    """Return the npz file that a folder stands for, None for its images (as `list_images` finds them).

    A run's folder stands for its ``samples_*.npz``, whatever lies beside it. In other folders images come first,
    including those in subfolders; without any, the folder's npz file is taken. ``InputError`` where there are several,
    where a run is unfinished, or where the folder holds runs or networks.
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
        images = list_images()
        if images.skipped.keys() & set(_TELLING):
            _refuse_other_folders(folder, images, holds_npz=bool(found))
        if images.names or not found:
            return None
    chosen = results or found
    if len(chosen) > 1:
        shown = ", ".join(chosen[:4]) + (", ..." if len(chosen) > 4 else "")
        raise InputError(
            f"{folder}: found {len(chosen)} npz files ({shown}), expected one; say which, {folder / chosen[-1]} for "
            f"example; several are one set when joined by commas ({folder / chosen[0]},{folder / chosen[1]})"
        )
    return folder / chosen[0]


def _refuse_other_folders(folder: Path, images: ImageFiles, holds_npz: bool) -> None:
    """Raise ``InputError`` for a folder that holds runs (whose images are grids), or networks and no images."""
    found = [Path(place, name).relative_to(folder) for place, _, names in os.walk(folder) for name in names]
    runs = sorted({str(path.parent) for path in found if path.name == _RUN or _RESULT.fullmatch(path.name)})
    if runs:
        count = "a run" if len(runs) == 1 else f"{len(runs)} runs"
        raise InputError(
            f"{folder}: a folder with {count} in it ({some_of(runs)}), expected one run's folder, such as "
            f"{folder / runs[0]}"
        )
    if images.names or holds_npz:
        return
    weights = [path for path in found if path.name.endswith(WEIGHTS)]
    if weights:
        first = min(weights, key=lambda path: (not path.name.startswith("model"), str(path)))
        raise InputError(f"{folder}: a training's folder, with {first}, expected images; {FOR_WEIGHTS}")
    if arrays := sorted(str(path) for path in found if path.name.endswith(".npz")):
        raise InputError(
            f"{folder}: found no images, but npz files in subfolders ({some_of(arrays)}), expected one; say which, "
            f"{folder / arrays[0]} for example"
        )

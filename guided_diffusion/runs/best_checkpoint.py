"""The weights of a training's folder to use, and averages of weights that are still too close to the start."""

from __future__ import annotations

import os
import re
from pathlib import Path

from guided_diffusion.errors import InputError
from guided_diffusion.io.reading import list_names, reading_errors
from guided_diffusion.runs import logger
from guided_diffusion.runs.checkpoint_folder import CheckpointFolder

AVERAGE = re.compile(r"ema_(\d+(?:\.\d+)?)_(\d{6,})\.pt")
_MOSTLY = 0.1  # a larger share of the initial weights in an average makes worse samples


def share_of_start(path: str | os.PathLike) -> float:
    """Return the share of the initial weights in an average ema_RATE_NNNNNN.pt; 0 for any other file."""
    match = AVERAGE.fullmatch(Path(path).name)
    return 0.0 if match is None else float(match[1]) ** max(1, int(match[2]))


def best_weights(directory: str | os.PathLike) -> str | None:
    """Return the file of a training's folder to sample from; None without any.

    Of the newest checkpoint the slowest average that has moved away from the initial weights, else the weights
    themselves; in a folder without checkpoints the only .pt or .safetensors file.

    :raises InputError: there are several such files, or the folder cannot be read.
    """
    folder = Path(directory)
    with reading_errors(folder):
        number, names = CheckpointFolder(folder).newest_whole(), list_names(folder)
    if number is None:
        others = sorted(name for name in names if name.endswith((".pt", ".safetensors")))
        if len(others) > 1:
            raise InputError(f"{folder}: holds {', '.join(others[:5])}; expected the name of one of them")
        return str(folder / others[0]) if others else None
    averages = {name: float(AVERAGE.fullmatch(name)[1]) for name in names if AVERAGE.fullmatch(name)}
    usable = [name for name in averages if name.endswith(f"_{number:06d}.pt") and share_of_start(name) <= _MOSTLY]
    return str(folder / max(usable, key=averages.get, default=f"model{number:06d}.pt"))


def newest_weights(directory: str | os.PathLike) -> str | None:
    """Return the file of a training's folder to resume from, modelNNNNNN.pt; None without any."""
    number = CheckpointFolder(Path(directory)).newest_whole()
    return None if number is None else str(Path(directory) / f"model{number:06d}.pt")


def warn_of_start(path: str | os.PathLike) -> None:
    """Warn of an average that still has much of the initial weights, and name a better file."""
    share = share_of_start(path)
    if share <= _MOSTLY:
        return
    rate, number = AVERAGE.fullmatch(Path(path).name).groups()
    better = Path(path).with_name(f"model{number}.pt")
    logger.warning(
        f"{path}: an average with rate {rate} at step {int(number)} is still {100 * share:.1f} % the weights that "
        f"training began with; better sample from {better if better.exists() else 'the weights themselves'}"
    )

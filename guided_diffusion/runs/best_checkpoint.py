"""The weights of a training's folder to use, and averages of weights that are still too close to the start."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guided_diffusion.errors import InputError
from guided_diffusion.io.reading import list_names, reading_errors
from guided_diffusion.runs import logger
from guided_diffusion.runs.checkpoint_folder import CheckpointFolder

AVERAGE = re.compile(r"ema_(\d+(?:\.\d+)?)_(\d{6,})\.pt")
_MOSTLY = 0.1  # a larger share of the initial weights in an average makes worse samples
_QUARTILE = re.compile(r"_q[0-3]$")


class BestCheckpoint:
    """The best of a run's checkpoints by a value in the log: by its mean over the entries since the checkpoint before.

    :param name: of the value (`--keep_best`).
    :param higher: for each name allowed, whether more is better; their quartiles, NAME_q0 to NAME_q3, are allowed too.
    :param state: what `update` returned last in an interrupted run; ignored where it is about another value.
    :raises InputError: a name that is not allowed.
    """

    def __init__(self, name: str, higher: Mapping[str, bool], state: dict[str, Any] | None = None):
        known = _QUARTILE.sub("", name)
        if known not in higher:
            raise InputError(
                f"--keep_best: found {name!r}, expected one of {', '.join(higher)}, or one of their quartiles such as "
                f"{next(iter(higher))}_q0"
            )
        self.name, self._sign = name, 1 if higher[known] else -1
        self._best = state if state is not None and state["name"] == name else None
        self._logged: list[float] = []

    def see(self, logged: Mapping[str, Any]) -> None:
        """Note an entry of the log."""
        if self.name in logged:
            self._logged.append(logged[self.name])

    def update(self, number: int) -> dict[str, Any] | None:
        """Return the name, the value and the number of the best checkpoint, as JSON values; None where there is none.

        :param number: of a new checkpoint.
        """
        if self._logged:
            value = sum(self._logged) / len(self._logged)
            if self._best is None or self._sign * (value - self._best["value"]) > 0:
                self._best = {"name": self.name, "value": value, "number": number}
                logger.log(f"best {self.name} so far: {value:.6g}, model{number:06d}.pt")
            self._logged = []
        return self._best


def share_of_start(path: str | os.PathLike) -> float:
    """Return the share of the initial weights in an average ema_RATE_NNNNNN.pt; 0 for any other file."""
    match = AVERAGE.fullmatch(Path(path).name)
    return 0.0 if match is None else float(match[1]) ** max(1, int(match[2]))


def best_weights(directory: str | os.PathLike) -> str | None:
    """Return the file of a training's folder to sample from; None without any.

    Of the newest checkpoint, or the best if training was to keep it (`BestCheckpoint`), the slowest average that has
    moved away from the initial weights, else the weights themselves; in a folder without checkpoints the only .pt or
    .safetensors file.

    :raises InputError: there are several such files, or the folder cannot be read.
    """
    folder = Path(directory)
    with reading_errors(folder):
        checkpoints = CheckpointFolder(folder)
        number, names = checkpoints.newest_whole(), list_names(folder)
        best = (checkpoints.newest_state() or {}).get("loop", {}).get("best")
        if best is not None and checkpoints.is_whole(best["number"]):
            number = best["number"]
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

"""Steps of a long piece of work: commands with the files they read and write, run once and recorded.

Beside its files every finished step has a record (`<out>/steps/<name>.json`: command, commit, device, time,
sha256 of all files), and its log (`<out>/logs/<name>.log`). A step is done when its record fits: same command, same
inputs, outputs still there. What depends on a step that is run is run again as well.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from experiments.spec import ROOT
from guided_diffusion.distributed import shutdown
from guided_diffusion.errors import InputError
from guided_diffusion.io.atomic import remove_leftovers, write_json
from guided_diffusion.io.reading import hash_file, read_json
from guided_diffusion.runs import run_directory

# Flags that say how fast and not what, or what is logged.
_INDIFFERENT = ("--batch_size", "--log_interval", "--eval_interval", "--inception")


@dataclass(frozen=True)
class Step:
    """One command.

    :param name: also of its log and record.
    :param command: run from the repository's root.
    :param inputs, outputs: files, absolute or relative to the root.
    :param precious: it takes long, so its files are never made anew unless they have been removed.
    """

    name: str
    command: tuple[str, ...]
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    precious: bool = False

    @property
    def processes(self) -> int:
        """The number of processes of its launcher."""
        return int(self.command[2]) if self.command[:2] == ("mpiexec", "-n") else 1

    @property
    def work(self) -> list[str]:
        """The command without what makes no difference to its result."""
        return _work(self.command[3:] if self.command[0] == "mpiexec" else self.command)


def _work(command: Sequence[str]) -> list[str]:
    words = list(command)
    for flag in _INDIFFERENT:
        if flag in words:
            del words[words.index(flag) : words.index(flag) + 2]
    return words


def in_order(steps: Sequence[Step]) -> TopologicalSorter[Step]:
    """Steps, each after those that make its inputs."""
    makers = {output: step for step in steps for output in step.outputs}
    return TopologicalSorter({step: [makers[file] for file in step.inputs if file in makers] for step in steps})


class Records:
    """The records of the steps whose files are below a folder."""

    def __init__(self, out: Path):
        self._folder = ROOT / out / "steps"
        self._hashes_path = self._folder / "hashes.cache"
        self._lock = threading.Lock()
        self._hashes: dict[str, list] = {}
        with suppress(InputError):
            self._hashes = _read(self._hashes_path) or {}

    def is_done(self, step: Step) -> bool:
        """Return whether a step need not be run.

        InputError where it is precious, and its files were made by another command, from other files, or have
        changed since.
        """
        finished = _read(self._folder / f"{step.name}.json")
        earlier = finished or _read(self._started(step))
        if earlier is None:
            return False
        complete = finished is not None and all((ROOT / output).is_file() for output in step.outputs)
        changed = _difference(earlier, step) or self._altered(earlier["inputs"], step.inputs)
        if changed is None and complete:
            kept = {file: entry["sha256"] for file, entry in finished["outputs"].items()}
            changed = self._altered(kept, step.outputs)
        if changed and step.precious:
            raise InputError(
                f"{(ROOT / step.outputs[0]).parent}: {step.name} was made differently: {changed}; "
                "use another --out, or remove that folder"
            )
        return complete and changed is None

    def start(self, step: Step) -> bool:
        """Record that a step begins, so that no other files continue it; return whether it had begun before."""
        begun = self._started(step).exists()
        write_json(self._started(step), {"work": step.work, "inputs": self._all(step.inputs)})
        return begun

    def finish(self, step: Step, seconds: float | None, jobs: int | None = None) -> None:
        """Record that a step ended well, after so many seconds; None where it had begun in an earlier call.

        :param jobs: so many steps could run at a time.
        InputError when it has not written its outputs.
        """
        for output in step.outputs:
            if not (ROOT / output).is_file():
                raise InputError(f"{step.name}: wrote no {output}, expected that from its command")
        sizes = {str(output): (ROOT / output).stat().st_size for output in step.outputs}
        hashes = self._all(step.outputs)
        record = {
            "command": list(step.command),
            "work": step.work,
            "commit": commit(),
            "device": device_name(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": seconds and round(seconds, 3),
            "processes": step.processes,
            "jobs": jobs,
            "inputs": self._all(step.inputs),
            "outputs": {file: {"size": sizes[file], "sha256": digest} for file, digest in hashes.items()},
        }
        write_json(self._folder / f"{step.name}.json", record)
        self._started(step).unlink(missing_ok=True)

    def sha256(self, file: Path) -> str:
        """The hash of a file; computed again only when its size or time of change has changed."""
        path = ROOT / file
        status = path.stat()
        with self._lock:
            known = self._hashes.get(str(path))
        if known and known[:2] == [status.st_size, status.st_mtime_ns]:
            return known[2]
        digest = hash_file(path)
        with self._lock:
            self._hashes[str(path)] = [status.st_size, status.st_mtime_ns, digest]
            with suppress(InputError):  # it only saves time
                write_json(self._hashes_path, self._hashes)
        return digest

    def _started(self, step: Step) -> Path:
        return self._folder / f"{step.name}.started"

    def _all(self, files: tuple[Path, ...]) -> dict[str, str]:
        return {str(file): self.sha256(file) for file in files}

    def _altered(self, recorded: dict[str, str], files: tuple[Path, ...]) -> str | None:
        """The first of some files that is not what was recorded, None if all are."""
        for file in files:
            if (ROOT / file).is_file() and self.sha256(file) != recorded.get(str(file)):
                found = recorded.get(str(file))
                return f"{file} has sha256 {self.sha256(file)[:12]}, then {found[:12] if found else 'not used'}"
        return None


def _difference(earlier: dict[str, Any], step: Step) -> str | None:
    """The first word in which two commands differ."""
    then, now = _work(earlier["work"]), step.work  # an earlier version's record may have more flags
    for position in range(max(len(then), len(now))):
        old, new = (words[position] if position < len(words) else "nothing" for words in (then, now))
        if old != new:
            flag = now[position - 1] if position and position <= len(now) else ""
            return f"{flag if flag.startswith('--') else ''} {old} then, {new} now".strip()
    return None


@cache
def commit() -> str | None:
    """The repository's commit, "-dirty" behind it when files differ; outside of git $ED_DPM_COMMIT, else None."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        found = None
    described = found.stdout.strip() if found and found.returncode == 0 else ""
    return described or os.environ.get("ED_DPM_COMMIT") or None


@cache
def device_name() -> str:
    """The GPU's name with how many there are, else "CPU" and what is known of it."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU {platform.processor() or platform.machine()}, {os.cpu_count()} cores"


# Folders of recipes as the version before recorded them.
MOVED = {
    "ed_dpm_patches/recipes": "experiments/recipes",
    "demo/recipes": "experiments/digits/recipes",
    "ablation/recipes": "experiments/cifar10/recipes",
}


def claim(path: Path, purpose: dict[str, Any]) -> None:
    """Own a folder until this program ends, and record in a file what it is for.

    InputError where another process owns it, or it is for something else.
    """
    run_directory.claim(path.parent, shutdown.fail)
    remove_leftovers(path.parent / "steps", owned=True)
    purpose = json.loads(json.dumps(purpose))  # as it will be read: tuples are lists
    found = read_purpose(path)
    if found not in (None, purpose):
        raise InputError(f"{path}: found {found}, expected {purpose}; use another --out, or remove that folder")
    write_json(path, purpose)


def read_purpose(path: Path) -> dict[str, Any] | None:
    """Read the record of `claim`, with recipes of the repository where they are now; None without a record."""
    found = _read(path)
    if found and isinstance(recipes := found.get("recipes"), str):
        for old, new in MOVED.items():
            if recipes == old or recipes.startswith(f"{old}/"):
                found["recipes"] = new + recipes.removeprefix(old)
    return found


def _read(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None

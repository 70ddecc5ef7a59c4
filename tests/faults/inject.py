"""The faults. Each starts a run, disturbs it and returns the outcome; the same command then resumes."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.jobs import Job
from tests.faults.ranks import HANG, Ranks


@dataclass
class Outcome:
    """How one disturbed run ended.

    :param seconds: from the fault to the end of the last rank; None if the run was over before the fault.
    :param problem: a description of wrong behaviour, else "".
    """

    seconds: float | None
    problem: str = ""


@dataclass(frozen=True)
class Run:
    """A run to disturb.

    :param patience: that of the heartbeat; None: the programs' own.
    :param seconds: how long it takes undisturbed.
    """

    job: Job
    folder: Path
    processes: int
    patience: int | None
    seconds: float
    chance: random.Random

    def start(self) -> Ranks:
        return Ranks(self.job, self.folder, self.processes, self.patience)

    def finished(self) -> int:
        return self.job.finished(self.folder)


def kill(run: Run) -> Outcome:
    """kill -9 of a random rank, or of all, at a random moment: of one process, or of two."""
    victims = run.chance.choice(([0], [1], [0, 1])) if run.processes == 2 else [0]
    with run.start() as ranks:
        if run.chance.random() < 0.9:  # else at once, before the ranks have met
            ranks.wait_until(ranks.have_met)
        ranks.wait(seconds=run.chance.uniform(0, 0.4) * run.seconds)
        return _end(ranks, victims, signal.SIGKILL)


def freeze(run: Run) -> Outcome:
    """SIGSTOP of one of two ranks: the other ends, naming it; then, as launchers do, the frozen one is killed."""
    with run.start() as ranks:
        ranks.wait_until(lambda: ranks.have_met() and run.finished() > 0)
        victim = run.chance.choice((0, 1))
        outcome = _end(ranks, [victim], signal.SIGSTOP)
        if outcome.seconds is not None and f"error: rank {victim} (" not in ranks.text:
            outcome.problem = outcome.problem or f"the frozen rank is not named: {ranks.text[-500:]}"
        return outcome


def terminate(run: Run) -> Outcome:
    """SIGTERM to all ranks, as a scheduler sends it: training saves first."""
    with run.start() as ranks:
        ranks.wait_until(lambda: ranks.have_met() and run.finished() > 0)
        time.sleep(run.chance.uniform(0, 0.5))
        outcome = _end(ranks, ranks.running, signal.SIGTERM)
        saved = "saved" in ranks.text.lower() or outcome.seconds is None
        if run.job.name == "training" and not saved:
            outcome.problem = outcome.problem or "nothing was saved"
        return outcome


def truncate(run: Run) -> Outcome:
    """The newest file cut in half after a kill: the run resumes from the one before."""
    with run.start() as ranks:
        pattern = "model*.pt" if run.job.name == "training" else "parts/part-*.npz"
        ranks.wait_until(lambda: run.finished() and len(list(run.folder.glob(pattern))) >= 2)
        outcome = _end(ranks, ranks.running, signal.SIGKILL)
    files = sorted(run.folder.glob(pattern))
    if files and outcome.seconds is not None:
        data = files[-1].read_bytes()
        files[-1].write_bytes(data[: len(data) // 2])
    return outcome


def spoil_images(run: Run) -> Outcome:
    """Images cut in half while they are read: both ranks end, naming one. Afterwards the images are restored."""
    images = sorted(Path(run.job.flags["data_dir"]).iterdir())
    with run.start() as ranks:
        ranks.wait_until(lambda: run.finished() > 0)
        began, whole = time.monotonic(), {path: path.read_bytes() for path in images}
        for path, data in whole.items():
            path.write_bytes(data[: len(data) // 2])
        ended = ranks.wait()
        for path, data in whole.items():
            path.write_bytes(data)
        if not any(ranks.statuses.values()):
            return Outcome(None)
        named = any(path.name in ranks.text for path in images)
        problem = "" if ended and named else f"hangs, or names no image: {ranks.text[-500:]}"
        return Outcome(time.monotonic() - began, problem)


def fill_disk(run: Run) -> Outcome:
    """A disk (a small tmpfs) that fills up while the run writes and is enlarged afterwards."""
    with run.start() as ranks:
        ranks.wait_until(lambda: run.finished() > 0)
        began = time.monotonic()
        _remount(run.folder, _used(run.folder) + 8192)
        ended = ranks.wait()
        _remount(run.folder, 1 << 26)
        if not any(ranks.statuses.values()):
            return Outcome(None)
        named = "No space left" in ranks.text
        problem = "" if ended and named else f"hangs, or does not say why: {ranks.text[-500:]}"
        return Outcome(time.monotonic() - began, problem)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A tmpfs of 64 MiB at `folder`. OSError where that needs missing rights."""
    folder.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr.strip())
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _remount(folder: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)


def _used(folder: Path) -> int:
    """Bytes in whole pages, as tmpfs counts them."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def _end(ranks: Ranks, victims: list[int], number: signal.Signals) -> Outcome:
    """Send a signal and wait for all ranks to end; stopped ones are killed when the others have ended."""
    if not ranks.running:
        return _undisturbed(ranks)
    met, began = ranks.have_met(), time.monotonic()
    ranks.send(victims, number)
    if not met:
        ranks.send(ranks.running, signal.SIGKILL)
    if number is signal.SIGSTOP and ranks.wait_until(lambda: not {*ranks.running} - {*victims}):
        ranks.send(victims, signal.SIGKILL)
    ended = ranks.wait()
    seconds = time.monotonic() - began
    if not ended:
        return Outcome(seconds, f"rank {ranks.running} still runs {HANG:.0f} s after {number.name} to {victims}")
    return Outcome(seconds if any(ranks.statuses.values()) else None)


def _undisturbed(ranks: Ranks) -> Outcome:
    failed = any(ranks.statuses.values())
    return Outcome(None, f"failed by itself: {ranks.statuses} {ranks.text[-1500:]}" if failed else "")

"""Every operation on files of every program, disturbed one at a time.

    python -m tests.faults --sweep --jobs sampling,image_train --every 3 --seconds 600
    python -m tests.faults --sweep --jobs sampling --at "EIO@read:open:run.json:1"     # one of them again

An undisturbed run of a job lists its points (see `points`). At each of them one run is killed or meets an error of the
file system; then the same command runs again, undisturbed. What is asked of both:

- The disturbed run ends within a minute: killed, or with status 0 and right results, or with status 2 and one line
  "error: ..." and no traceback. What was finished before is still there, and was gone on from.
- The second run ends with status 0, goes on from what was there, and its results equal those of an undisturbed run in
  every byte. No temporary file and no owner file is left; status.json says finished.

Kills come before writes only, for what is on disk is the same before a read and before the write that follows it; and
after renames. Of points that come in long runs, reads or writes of one file after one another, the first, the middle
and the last are taken. `every` K: of what is then left of reads (also of opening for them), writes and looks (stat,
listdir) each K-th; all of what makes, names and syncs files stays. K is 12, and 60 for `ed-dpm run`, so that the whole
takes at most 90 minutes on two cores.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.faults import points
from tests.faults.points import Plan, Point
from tests.faults.sweep_jobs import JOB_NAMES, RUN, Job, Result, make_jobs
from tests.support.fork_server import become
from tests.support.helpers import clean_environment

PATIENCE = 60.0  # seconds after which a run hangs
_ALWAYS = ("open", "fsync", "unlink", "mkdir", "rmdir", "truncate", "symlink", *points.RENAMES)
_SHOWN = 6  # problems of a row on the screen
LOST, STATUS, HANG = "lost or mixed", "wrong status", "hang"


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    :param status: as `subprocess` has it; None: it had to be killed.
    :param fired: whether the plan's point was reached.
    """

    status: int | None
    stdout: str
    stderr: str
    seconds: float
    fired: bool


@dataclass(frozen=True)
class Prepared:
    """A job, and the results of an undisturbed run of it.

    :param folder: as it is before the command: with what `Job.before` has left.
    :param expected: digests of its results.
    :param before: so much is finished there.
    :param points: of an undisturbed run, in their order.
    :param problems: that even the undisturbed run had.
    """

    job: Job
    folder: Path
    expected: dict[str, str]
    before: int
    points: tuple[Point, ...]
    seconds: float
    problems: tuple[str, ...] = ()


@dataclass
class Row:
    """A row of the table: one action at all points of a job."""

    job: str
    action: str
    points: int
    runs: int = 0
    unreached: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys((LOST, STATUS, HANG), 0))
    problems: list[str] = field(default_factory=list)
    left_out: int = 0

    def __str__(self) -> str:
        numbers = "".join(f"{count:>14}" for count in self.counts.values())
        text = f"{self.job:20} {self.action:11} {self.points:6} {self.runs:6}{numbers}"
        text += f"   ({self.unreached} not reached)" * (self.unreached > 0)
        text += f"   ({self.left_out} left out: time is over)" * (self.left_out > 0)
        shown = [f"\n    {problem}" for problem in self.problems[:_SHOWN]]
        more = len(self.problems) - len(shown)
        return text + "".join(shown) + f"\n    and {more} more, see problems.txt" * (more > 0)


HEADER = f"{'job':20} {'action':11} {'points':>6} {'runs':>6}" + f"{LOST:>14}{STATUS:>14}{'hangs':>14}"


def execute(job: Job, folder: Path, arguments: Sequence[str] | None = None, plan: Plan | None = None) -> Ended:
    """Run a job's command, or another of its program, in its folder to its end."""
    run = start(job, folder, arguments, partial(points.watch, folder / RUN, folder / "trace", plan))
    return run.wait()


class start:  # noqa: N801
    """A program that runs in a folder of its own, forked from this process.

    :param watch: called in the new process before the program.
    """

    def __init__(self, job: Job, folder: Path, arguments: Sequence[str] | None = None, watch=None, mark: str = ""):
        self._trace, self._outputs = folder / "trace", [str(folder / f"{name}{mark}") for name in ("out", "err")]
        self._trace.unlink(missing_ok=True)
        argv = [word.replace("{folder}", str(folder)) for word in (job.arguments if arguments is None else arguments)]
        request = {"program": str(job.program), "argv": argv, "cwd": str(folder)}
        self._began, self._status, self.seconds = time.monotonic(), None, 0.0
        self.pid = os.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            multiprocessing.current_process()._config["daemon"] = False  # it may have data workers
            sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115 - not those of pytest
            become(request, clean_environment(), self._outputs, watch)

    def has_ended(self) -> bool:
        """Whether it has ended by itself."""
        if self._status is None:
            done, found = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self._status, self.seconds = os.waitstatus_to_exitcode(found), time.monotonic() - self._began
        return self._status is not None

    def wait(self) -> Ended:
        """Wait for the end; kill it after a minute."""
        while not self.has_ended() and time.monotonic() < self._began + PATIENCE:
            time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # whatever it has left behind as well
        if self._status is None:
            os.waitpid(self.pid, 0)
            self.seconds = time.monotonic() - self._began
        texts = [Path(path).read_text(errors="replace") for path in self._outputs]
        fired = self._trace.exists() and self._trace.stat().st_size > 0
        return Ended(self._status, *texts, self.seconds, fired)


def prepare(job: Job, folder: Path) -> Prepared:
    """Run the commands before a job, and the job once without a fault, which must succeed."""
    start = folder / f"{job.name}-start"
    start.mkdir(parents=True)
    for arguments, plan in job.before:
        ended = execute(job, start, arguments, plan)
        if ended.status != (-signal.SIGKILL if plan else 0):
            raise RuntimeError(f"{job.name}: what comes before it ended with {ended.status}: {ended.stderr[-2000:]}")
    (start / "trace").unlink(missing_ok=True)
    whole = folder / f"{job.name}-whole"
    shutil.copytree(start, whole)
    ended = execute(job, whole)
    expected = None if ended.status else digests(job.result(whole / RUN))
    if expected is None:
        raise RuntimeError(f"{job.name}: undisturbed it ends with {ended.status}: {ended.stderr[-2000:]}")
    found = tuple(point for point, _ in points.read_trace(whole / "trace"))
    problems = tuple(_unfinished(job, whole))
    return Prepared(job, start, expected, job.finished(start / RUN), found, ended.seconds, problems)


def digests(result: Result | None) -> dict[str, str] | None:
    """Return the SHA-256 of everything in a result."""
    return result and {name: hashlib.sha256(value).hexdigest() for name, value in sorted(result.items())}


def choose(found: Sequence[Point], action: str, every: int) -> list[Point]:
    """Return the points at which an action is tried; the rule is in the module's docstring."""
    if action == points.KILL:
        found = [point for point in found if point.kind == points.WRITE]
    elif action == points.KILL_AFTER:
        found = [point for point in found if point.call in points.RENAMES]
    elif action == "ENOSPC":
        found = [point for point in found if point.kind == points.WRITE and point.call in points.ALLOCATING]
    chosen: list[Point] = []
    for (call, _), group in itertools.groupby(found, key=lambda point: (point.call, point.path)):
        members = list(group)
        long = call not in _ALWAYS and len(members) > 3
        chosen += [members[0], members[len(members) // 2], members[-1]] if long else members
    others = itertools.count()
    return [point for point in chosen if _matters(point) or next(others) % every == 0]


def _matters(point: Point) -> bool:
    return point.call in _ALWAYS and point.kind == points.WRITE


def disturb(prepared: Prepared, plan: Plan, folder: Path) -> tuple[bool, list[tuple[str, str]]]:
    """Do one disturbed run and the one after it; return whether the point was reached, and what went wrong."""
    job, run, wrong = prepared.job, folder / RUN, []
    shutil.copytree(prepared.folder, folder)
    kept = job.kept_files(run)
    first = execute(job, folder, plan=plan)
    wrong += _judge(prepared, plan, first, folder)
    with _damage(wrong):
        middle = job.finished(run)
        if middle < prepared.before:
            wrong.append((LOST, f"{middle} are finished after it, {prepared.before} before"))
        if gone := kept - job.kept_files(run):
            wrong.append((LOST, f"{', '.join(gone)} is gone"))
        prepared_for = max(middle, prepared.before)
        for name in ("out", "err", "trace"):
            if (folder / name).exists():
                (folder / name).rename(folder / f"{name}-disturbed")
        second = start(job, folder).wait()
        if second.status is None:
            wrong.append((HANG, "the run after it hangs"))
        elif second.status:
            wrong.append((STATUS, f"the run after it: {second.status} {_last_line(second.stderr)}"))
        else:
            found = job.found(second.stdout)
            if found is not None and found < prepared_for:
                wrong.append((LOST, f"the run after it goes on from {found}, {prepared_for} were finished"))
            if digests(job.result(run)) != prepared.expected:
                wrong.append((LOST, "the run after it ends otherwise than one that nobody disturbed"))
            wrong += [(LOST, f"after the run after it: {text}") for text in _unfinished(job, folder)]
    return first.fired, wrong


def _judge(prepared: Prepared, plan: Plan, ended: Ended, folder: Path) -> list[tuple[str, str]]:
    """Describe what is wrong with the end of a disturbed run."""
    job = prepared.job
    if ended.status is None:
        return [(HANG, "hangs")]
    if ended.fired and plan.action in (points.KILL, points.KILL_AFTER):
        killed = ended.status == -signal.SIGKILL
        return [] if killed else [(STATUS, f"status {ended.status} of a process that should have been killed")]
    if ended.status == 0:
        with _damage(wrong := []):
            if digests(job.result(folder / RUN)) != prepared.expected:
                wrong.append((LOST, "status 0, but its results are not those of an undisturbed run"))
            found = job.found(ended.stdout)
            if found is not None and found < prepared.before:
                wrong.append((LOST, f"status 0, but goes on from {found}, {prepared.before} were finished"))
        return wrong
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    if ended.status == 2 and len(lines) == 1 and "Traceback" not in ended.stderr and ended.fired:
        return []
    return [(STATUS, f"status {ended.status}, {len(lines)} error lines, last: {_last_line(ended.stderr)}")]


@contextlib.contextmanager
def _damage(wrong: list[tuple[str, str]]):
    """Count anything that the results' readers raise as a damaged file."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - decoders raise nearly everything
        wrong.append((LOST, f"a result cannot be read: {type(error).__name__}: {str(error)[:200]}"))


def _unfinished(job: Job, folder: Path) -> list[str]:
    """Files that a finished run should have removed."""
    found = [f"{path.name} is left" for path in (folder / RUN).rglob("*") if _is_leftover(path.name)]
    for path in (folder / RUN).rglob("status.json"):
        try:
            state = json.loads(path.read_text())["state"]
        except (ValueError, KeyError):
            state = "damaged"
        if state != "finished":
            found.append(f"{path.relative_to(folder / RUN)} says {state}")
    return found


def _is_leftover(name: str) -> bool:
    return name == "owner.json" or (name.startswith(".") and name.endswith(".tmp"))


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["nothing"])[-1][:300]


def _task(task: tuple[Prepared, Plan, Path, float | None]) -> tuple[bool, bool, list[tuple[str, str]]]:
    """Run in a worker; return whether there was time, whether the point was reached, what went wrong."""
    prepared, plan, folder, deadline = task
    if deadline is not None and time.time() > deadline:
        return False, False, []
    fired, wrong = disturb(prepared, plan, folder)
    if not wrong:
        shutil.rmtree(folder)
    return True, fired, wrong


class Sweep:
    """Disturbs jobs in a folder, with two processes at a time; a context manager.

    :param every: K of all jobs; None: each job's own.
    :param deadline: `time.time()` after which nothing more is begun.
    """

    def __init__(self, folder: Path, every: int | None = None, deadline: float | None = None, workers: int = 2):
        self.folder, self.every, self.deadline, self._count = folder, every, deadline, itertools.count(1)
        self._pool = multiprocessing.get_context("fork").Pool(workers)

    def __enter__(self) -> Sweep:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in one of the two processes: programs are forked from them, not from the one with threads."""
        return self._pool.apply(function, arguments)

    def prepare(self, job: Job) -> Prepared:
        """Call the function of that name in a worker."""
        return self.call(prepare, job, self.folder)

    def row(self, prepared: Prepared, action: str, chosen: Sequence[Point] | None = None) -> Row:
        """Try an action at the points that the rule chooses, or at some that are given."""
        if chosen is None:
            chosen = choose(prepared.points, action, self.every or prepared.job.every)
        row = Row(prepared.job.name, action, len(chosen))
        folders = [self.folder / f"{prepared.job.name}-{action}-{next(self._count)}" for _ in chosen]
        plans = [Plan(action, point) for point in chosen]
        tasks = [(prepared, plan, place, self.deadline) for plan, place in zip(plans, folders, strict=True)]
        outcomes = self._pool.imap(_task, tasks)
        for (done, fired, wrong), plan, place in zip(outcomes, plans, folders, strict=True):
            row.runs += done
            row.left_out += not done
            row.unreached += done and not fired
            for kind in {kind for kind, _ in wrong}:
                row.counts[kind] += 1
            row.problems += [f"{place.name}: {action}@{plan.point}: {kind}: {text}" for kind, text in wrong]
        with (self.folder / "problems.txt").open("a") as file:
            file.writelines(f"{problem}\n" for problem in row.problems)
        return row


def print_sums(rows: Iterable[Row], began: float) -> bool:
    """Print the last line of a table; return whether nothing is wrong."""
    rows = list(rows)
    sums = {kind: sum(row.counts[kind] for row in rows) for kind in (LOST, STATUS, HANG)}
    told = ", ".join(f"{kind}: {count}" for kind, count in sums.items())
    left_out = sum(row.left_out for row in rows)
    print(
        f"{sum(row.runs for row in rows)} disturbed runs at {sum(row.points for row in rows)} points, {told}, "
        f"{time.time() - began:.0f} s" + f", {left_out} left out for lack of time" * (left_out > 0)
    )
    return not any(sums.values())


def main(names: Sequence[str], actions: Sequence[str], every: int | None, seconds: float | None, at: str | None) -> int:
    """The sweep of `python -m tests.faults --sweep`; return the exit status."""
    from tests.faults.together import PAIRS, make_pair, meet

    torch.set_num_threads(1)
    began, folder = time.time(), Path(tempfile.mkdtemp(prefix="sweep-"))
    print(HEADER, flush=True)
    rows = []
    jobs = make_jobs(folder, tuple(name for name in names if name in JOB_NAMES))
    with Sweep(folder, every, began + seconds if seconds else None) as sweep:
        for job in jobs.values():
            job_began, prepared = time.time(), sweep.prepare(job)
            if prepared.problems:
                told = [f"{job.name}-whole: {LOST}: {problem}" for problem in prepared.problems]
                rows.append(Row(job.name, "undisturbed", 0, 1, counts={LOST: 1, STATUS: 0, HANG: 0}, problems=told))
                print(rows[-1], flush=True)
            for action in actions if at is None else [at.partition("@")[0]]:
                given = None if at is None else [Point.parse(at.partition("@")[2])]
                rows.append(sweep.row(prepared, action, given))
                print(rows[-1], flush=True)
            print(
                f"{job.name}: {len(prepared.points)} points, {prepared.seconds:.2f} s undisturbed, "
                f"{time.time() - job_began:.0f} s for all",
                flush=True,
            )
        for name in names:
            if name in PAIRS:
                rows.append(sweep.call(meet, sweep.call(make_pair, name, folder), folder, sweep.deadline))
                print(rows[-1], flush=True)
    good = print_sums(rows, began)
    if good:
        shutil.rmtree(folder)
    else:
        print(f"kept for a look: {folder}, all problems: {folder}/problems.txt")
    return 0 if good else 1

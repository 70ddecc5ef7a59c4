"""Two commands with other flags for one folder, at the same time.

The second starts after 0 to 1 lengths of a run. Exactly one of two that overlap may go on; the other ends with status 2
and a line that says who is there. What the folder holds in the end is one run's, wholly.
"""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from tests.faults.sweep import HANG, LOST, STATUS, Ended, Row, _damage, _last_line, _unfinished, digests, start
from tests.faults.sweep_jobs import RUN, Job, Result, make_jobs

TIMINGS = 10


@dataclass(frozen=True)
class Pair:
    """A job with two commands.

    :param expected: digests of what each of them ends with when it is alone.
    :param seconds: that the first takes.
    :param same: whether the commands are the same, so that the second may find its work done.
    """

    name: str
    job: Job
    commands: tuple[list[str], list[str]]
    expected: tuple[dict[str, str], dict[str, str]]
    seconds: float
    same: bool


# Name of a pair: its job, and what the first and the second command have besides.
PAIRS = {
    "two-sampling": ("sampling", ["--seed", "1"], ["--seed", "2"]),
    "two-image_train": ("image_train", ["--lr", "1e-3"], ["--lr", "1e-2"]),
    "two-classifier_train": ("classifier_train", ["--lr", "1e-3"], ["--lr", "1e-2"]),
    "two-ed-dpm": ("ed-dpm", [], []),
}


def make_pair(name: str, folder: Path) -> Pair:
    """Make a pair, after running each of its commands alone."""
    job_name, *more = PAIRS[name]
    folder = folder / name
    folder.mkdir()
    job = make_jobs(folder, (job_name,))[job_name]
    first, second = ([*job.arguments, *words] for words in more)  # of a flag that is there twice the last counts
    expected, seconds = [], 0.0
    for number, command in enumerate((first, second)):
        alone = folder / f"alone{number}"
        alone.mkdir()
        ended = start(job, alone, command).wait()
        if ended.status:
            raise RuntimeError(f"{name}: alone it ends with {ended.status}: {ended.stderr[-2000:]}")
        expected.append(digests(job.result(alone / RUN)))
        seconds = seconds or ended.seconds
    return Pair(name, replace(job, before=()), (first, second), tuple(expected), seconds, first == second)


def meet(pair: Pair, folder: Path, deadline: float | None = None, timings: int = TIMINGS) -> Row:
    """Start both commands the given number of times; return a row of the table."""
    row = Row(pair.name, "together", timings)
    for number in range(timings):
        if deadline is not None and time.time() > deadline:
            row.left_out = timings - number
            break
        delay = pair.seconds * number / max(1, timings - 1)
        place = folder / f"{pair.name}-{number}"
        wrong = _meet_once(pair, place, delay)
        row.runs += 1
        for kind in {kind for kind, _ in wrong}:
            row.counts[kind] += 1
        row.problems += [f"{place.name}: {delay:.2f} s apart: {kind}: {text}" for kind, text in wrong]
        if not wrong:
            shutil.rmtree(place)
    with (folder / "problems.txt").open("a") as file:
        file.writelines(f"{problem}\n" for problem in row.problems)
    return row


def _meet_once(pair: Pair, folder: Path, delay: float) -> list[tuple[str, str]]:
    """Describe what is wrong after two commands have met."""
    folder.mkdir()
    first = start(pair.job, folder, pair.commands[0], mark="0")
    time.sleep(delay)
    overlap = not first.has_ended()
    second = start(pair.job, folder, pair.commands[1], mark="1")
    while not second.has_ended() and not first.has_ended():
        time.sleep(0.005)
    still = not first.has_ended()  # when the second had ended
    ended = [first.wait(), second.wait()]
    wrong = [(HANG, f"command {i} hangs") for i in (0, 1) if ended[i].status is None]
    with _damage(wrong):
        wrong += _judge_both(pair, ended, (first.pid, second.pid), overlap, still, pair.job.result(folder / RUN))
        wrong += [(LOST, text) for text in _unfinished(pair.job, folder)]
    return wrong


def _judge_both(
    pair: Pair, ended: list[Ended], pids: tuple[int, int], overlap: bool, still: bool, result: Result | None
) -> list[tuple[str, str]]:
    """Describe what is wrong.

    :param overlap, still: whether the first still ran when the second started, and when the second had ended.
    """
    statuses = [run.status for run in ended]
    told = f"statuses {statuses}, {[_last_line(run.stderr) for run in ended]}"
    wrong = []
    winners = [i for i in (0, 1) if statuses[i] == 0]
    found = digests(result)
    if found not in [pair.expected[i] for i in winners]:
        wrong.append((LOST, f"the results are not those of the command that went on; {told}"))
    if winners == [0, 1] and not (pair.same and _one_after_the_other(pair, ended, overlap)):
        wrong.append((STATUS, f"both went on; {told}"))
    if not winners:
        wrong.append((STATUS, f"none went on; {told}"))
    for i in {0, 1} - set(winners):
        lines = [line for line in ended[i].stderr.splitlines() if line.startswith("error: ")]
        refused = statuses[i] == 2 and len(lines) == 1 and "Traceback" not in ended[i].stderr
        busy = refused and "in use by" in lines[0] and re.search(rf"\b{pids[1 - i]}\b", lines[0])
        other = refused and i == 1 and not still and "another run" in lines[0]
        if not (busy or other):
            wrong.append((STATUS, f"command {i} should say by whom the folder is in use; {told}"))
    return wrong


def _one_after_the_other(pair: Pair, ended: list[Ended], overlap: bool) -> bool:
    """Whether the second of two equal commands began when the first had ended, or nearly: no work was repeated."""
    if not overlap:
        return True
    nothing = pair.job.found(ended[1].stdout)
    return nothing == pair.job.found("already complete") if nothing is not None else " 0 run" in ended[1].stdout

"""Disturb sampling and training in every known way, and compare their results.

    python -m tests.faults --kills 200 --seed 0
    python -m tests.faults --sweep                  # one by one at every operation on files, see `sweep`

Each run is disturbed a few times; then the same command runs to its end, and its npz or its checkpoints (model,
average, optimizer) must equal those of an undisturbed run, byte by byte. Prints a table; exit status 1
if anything was lost, hung, or ended in a wrong way.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.faults import inject, points, sweep
from tests.faults.jobs import Job, make_jobs
from tests.faults.ranks import Ranks
from tests.faults.sweep_jobs import JOB_NAMES
from tests.faults.together import PAIRS

KILLS_OF_A_RUN = 8  # at most; the run is over earlier where they come late


@dataclass
class Row:
    """A row of the table: one fault, injected into one job."""

    fault: str
    job: str
    injected: int = 0
    runs: int = 0
    lost: int = 0
    longest: float = 0.0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.fault:28} {self.job:9} {self.injected:8} {self.runs:5} {self.lost:13} {self.longest:16.1f}"
            + "".join(f"\n    {problem}" for problem in self.problems)
        )


HEADER = f"{'fault':28} {'run':9} {'injected':>8} {'runs':>5} {'results lost':>13} {'longest exit, s':>16}"


class Harness:
    """Runs of the jobs in a folder, disturbed and not."""

    def __init__(self, folder: Path, seed: int, patience: int | None):
        self.folder, self.patience, self.count = folder, patience, 0
        self.chance = random.Random(seed)
        self.jobs = make_jobs(folder)
        self.expected: dict[tuple[str, int], dict[str, bytes]] = {}
        self.seconds: dict[tuple[str, int], float] = {}
        for job in self.jobs.values():
            for processes in (1, 2):
                began = time.monotonic()
                kind = job.name, processes
                self.expected[kind] = self.finish(job, folder / f"whole_{job.name}{processes}", processes)
                self.seconds[kind] = time.monotonic() - began
                if self.expected[kind] is None:
                    raise SystemExit("the undisturbed runs must end well")

    def finish(self, job: Job, folder: Path, processes: int) -> dict[str, bytes] | None:
        """Run in a folder to the end; return None and a word if it does not get there."""
        with Ranks(job, folder, processes) as ranks:
            if not ranks.wait() or any(ranks.statuses.values()):
                print(f"{job.name} in {folder} did not end well: {ranks.statuses}\n{ranks.text[-3000:]}", flush=True)
                return None
        return job.result(folder)

    def disturb(self, row: Row, fault: Callable, times: int, disk: bool = False) -> None:
        """Disturb one run the given number of times, finish it and compare the result."""
        self.count += 1
        job, folder = self.jobs[row.job], self.folder / f"run{self.count}"
        row.runs += 1
        # Training goes on with as many processes as it began; sampling with any number.
        processes = self.chance.choice((1, 2, 2)) if fault is inject.kill else 2
        with ExitStack() as stack:
            if disk:
                stack.enter_context(inject.small_disk(folder))
            for _ in range(times):
                run = inject.Run(job, folder, processes, self.patience, self.seconds[job.name, processes], self.chance)
                before = job.finished(folder)
                outcome = fault(run)
                if outcome.problem:
                    row.problems.append(f"{folder.name}: {outcome.problem}")
                if outcome.seconds is None:
                    break
                row.injected += 1
                row.longest = max(row.longest, outcome.seconds)
                if fault is not inject.truncate:
                    row.lost += max(0, before - job.finished(folder))
                if job.name == "sampling":
                    processes = self.chance.choice((1, 2))
            if self.finish(job, folder, processes) != self.expected[job.name, processes]:
                row.lost += 1
                row.problems.append(f"{folder.name}: ends otherwise than a run that nobody disturbed")
        if not row.problems:
            shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how often kill -9 hits a run, in all (default 200)")
    parser.add_argument("--others", type=int, default=2, help="runs with each of the other faults (default 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=int, help="seconds of silence of a frozen rank; default: the programs' own")
    parser.add_argument("--sweep", action="store_true", help="disturb every operation on files, in place of all that")
    jobs, actions = (*JOB_NAMES, *PAIRS), points.ACTIONS
    parser.add_argument("--jobs", default=",".join(jobs), help=f"of the sweep: some of {', '.join(jobs)}")
    parser.add_argument("--actions", default=",".join(actions), help=f"of the sweep: some of {', '.join(actions)}")
    parser.add_argument("--every", type=int, metavar="K", help="each K-th of reads, writes, looks; default: 12, or 60")
    parser.add_argument("--seconds", type=float, help="begin nothing after so long")
    parser.add_argument("--at", metavar="ACTION@POINT", help="this one alone, as problems are printed")
    args = parser.parse_args()
    if args.sweep:
        return sweep.main(_listed(parser, args.jobs, jobs), _listed(parser, args.actions, actions), args.every,
                          args.seconds, args.at)  # fmt: skip
    torch.set_num_threads(1)
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    harness = Harness(folder, args.seed, args.patience)
    print(HEADER, flush=True)
    rows = []
    for job, kills in (("sampling", args.kills // 2), ("training", args.kills - args.kills // 2)):
        rows.append(Row("kill -9 of a rank or of all", job))
        while rows[-1].injected < kills and not rows[-1].problems:
            left = kills - rows[-1].injected
            harness.disturb(rows[-1], inject.kill, min(KILLS_OF_A_RUN, left))
        print(rows[-1], flush=True)
    others = [
        ("SIGTERM to all ranks", inject.terminate, ("sampling", "training")),
        ("SIGSTOP of a rank", inject.freeze, ("sampling", "training")),
        ("newest file truncated", inject.truncate, ("sampling", "training")),
        ("images unreadable", inject.spoil_images, ("training",)),
        ("disk full", inject.fill_disk, ("sampling", "training")),
    ]
    for name, fault, jobs in others:
        for job in jobs:
            row = Row(name, job)
            try:
                for _ in range(args.others):
                    harness.disturb(row, fault, 1, disk=fault is inject.fill_disk)
            except OSError as error:  # no rights to mount
                print(f"{name:28} {job:9} left out: {error}", flush=True)
                continue
            rows.append(row)
            print(row, flush=True)
    lost, problems = sum(row.lost for row in rows), sum(len(row.problems) for row in rows)
    print(
        f"{sum(row.injected for row in rows)} faults in {sum(row.runs for row in rows)} runs, results lost: {lost}, "
        f"longest exit {max(row.longest for row in rows):.1f} s, {time.monotonic() - began:.0f} s in all"
    )
    if lost or problems:
        print(f"kept for a look: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def _listed(parser: argparse.ArgumentParser, text: str, known: Sequence[str]) -> list[str]:
    """Split a list of names, all of which must be known."""
    names = text.split(",")
    if unknown := set(names) - set(known):
        parser.error(f"{', '.join(sorted(unknown))}: expected some of {', '.join(known)}")
    return names


if __name__ == "__main__":
    sys.exit(main())

"""Notices that another rank failed, died, froze or was cut off, and ends this one. It kills no other process.

Every rank writes a beat into the key-value store through which the ranks met. Rank 0 watches all beats, the
others watch rank 0's and what it (or a failing rank) has to say, so the work does not grow with the square of
the number of ranks. Silence is measured by each rank's own clock. Two threads: one talks to the store, and may
wait for ever when that is frozen or cut off; the other only looks at what was heard.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch.distributed as dist

from guided_diffusion.runs import failure_log
from guided_diffusion.system import launch, processes

# Seconds of silence after which a rank counts as lost. A rank that compiles or reads gigabytes may hold Python's lock
# for minutes, in which it cannot beat. One that has died is found by its process or its connection, not by this.
PATIENCE_VARIABLE = "ED_DPM_PATIENCE"
PATIENCE = 180
_PERIOD = 1.0  # seconds between two beats, and between two looks at the others'
_GRACE = 3.0  # in which the rank that failed speaks first, and the launcher may end this one
_FINE = "-"


@dataclass(frozen=True)
class Place:
    """Where a rank runs. Two ranks of one `machine` see each other's process ids; `started` tells reused ones."""

    rank: int
    host: str
    pid: int
    machine: str
    started: str | None

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}, pid {self.pid})"


class Heartbeat:
    """One rank's beat, and its ear for the others'. Nothing runs before `start`.

    :param end: called from a thread of the heartbeat with an exit status; ends the process, whatever the main
        thread is doing.
    """

    def __init__(self, end: Callable[[int], None]):
        self._end = end
        self._stopped, self._wake, self._told = threading.Event(), threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        self._others_may_leave = False
        self._words: str | None = None  # what this rank has to say about a failure
        self._failure = _FINE  # what some rank had to say
        self._closed = False  # the connection to the store is

    @property
    def beating(self) -> bool:
        """Whether the others are being watched."""
        return bool(self._threads) and not self._stopped.is_set()

    def start(self, store: dist.Store, rank: int, world_size: int) -> None:
        """Begin to beat and to listen; a collective.

        :param store: with a connection of its own, and without keys of earlier runs.
        :raises InputError: ED_DPM_PATIENCE is no whole number. 0 there means: no watching.
        """
        self._patience = launch.whole_number(PATIENCE_VARIABLE, default=PATIENCE)
        if self._patience == 0:
            return
        pid = os.getpid()
        self._store = store
        self._own = Place(rank, socket.gethostname(), pid, processes.machine(), processes.start_time(pid))
        if rank == 0:
            store.set("failure", _FINE)
        store.set(f"beat/{rank}", "0")
        store.set(f"place/{rank}", json.dumps(asdict(self._own)))
        found = store.multi_get([f"place/{other}" for other in range(world_size)])
        places = [Place(**json.loads(text)) for text in found]
        self._neighbours = [p for p in places if p.machine == self._own.machine and p != self._own]
        self._watched = [p for p in places if p.rank != rank] if rank == 0 else [places[0]]
        self._beats = dict.fromkeys(self._watched, b"0")
        self._silence = dict.fromkeys(self._watched, 0.0)
        # Daemons, so that neither keeps a program alive that ends without `stop`.
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._talk, self._watch)]
        for thread in self._threads:
            thread.start()

    def tell(self, status: int, text: str) -> None:
        """Let the others know that this rank fails, and why; returns within two seconds."""
        self.expect_leavers()
        if self.beating:
            self._say(status, f"{self._own} failed: {text}")
            time.sleep(_PERIOD)  # the store may end with this rank: let them read it

    def expect_leavers(self) -> None:
        """This rank is about to leave: others that vanish from now on do so too."""
        self._others_may_leave = True

    def stop(self) -> None:
        """All ranks are done."""
        self._stopped.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(timeout=2)

    def _say(self, status: int, line: str) -> None:
        if self._closed:
            return
        self._words = json.dumps({"rank": self._own.rank, "status": status, "line": line})
        self._wake.set()
        self._told.wait(timeout=1)

    def _talk(self) -> None:
        count = 0
        names = [f"beat/{place.rank}" for place in self._watched]
        while not (self._stopped.is_set() or self._closed):
            count += 1
            try:
                if self._words is not None and not self._told.is_set():
                    self._store.compare_set("failure", _FINE, self._words)
                    self._told.set()
                self._store.set(f"beat/{self._own.rank}", str(count))
                for place, beat in zip(self._watched, self._store.multi_get(names), strict=True):
                    if beat != self._beats[place]:
                        self._beats[place], self._silence[place] = beat, 0.0
                self._failure = self._store.get("failure").decode()
            except dist.DistNetworkError:
                self._closed = True  # a store does not connect again
            except RuntimeError:
                pass  # no answer in time is silence, which is for `_watch` to judge
            self._wake.wait(_PERIOD)
            self._wake.clear()

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._stopped.wait(_PERIOD):
            now = time.monotonic()
            # A rank that was itself asleep or frozen has not listened, so not all of that time was silence.
            passed, before = min(now - before, 2 * _PERIOD), now
            for place in self._watched:
                self._silence[place] += passed
            if self._failure != _FINE:
                self._follow(json.loads(self._failure))
            for place in self._watched:
                if self._silence[place] > self._patience:
                    self._give_up(f"{place} has not been heard of for {self._patience} s")
            if not self._others_may_leave:
                self._look_for_leavers()

    def _look_for_leavers(self) -> None:
        for place in self._neighbours:
            if processes.start_time(place.pid) != place.started:
                if self._stopped.wait(_PERIOD) or self._others_may_leave or self._failure != _FINE:
                    return  # it had its reasons, or all are about to leave
                self._give_up(f"{place} is gone: it was killed or crashed")
        if self._closed and not self._stopped.wait(_GRACE) and not self._others_may_leave:
            # Under torchrun its agent on rank 0's machine holds the store.
            self._give_up("the connection to rank 0's machine is closed: it ended or crashed")

    def _follow(self, failure: dict) -> None:
        """End because some rank said that it, or a third one, failed."""
        if failure["rank"] == self._own.rank or self._stopped.wait(_GRACE):
            return
        self._leave(failure["status"], failure["line"])

    def _give_up(self, line: str) -> None:
        """End because a rank is lost."""
        self._say(1, line)
        self._leave(1, line)

    def _leave(self, status: int, line: str) -> None:
        if self._stopped.is_set():
            return
        sys.stderr.write(f"error: {line}\n")
        keep = failure_log.keep_failure
        note = threading.Thread(target=keep, args=(line,), kwargs={"consequence": True}, daemon=True)
        note.start()
        note.join(timeout=2)  # a disk that hangs must not hold up the end
        self._end(status)

"""A watchdog that ends this rank when another one failed, froze or was cut off. It kills no other process.

Every rank writes a beat into the key-value store through which the ranks met. Rank 0 watches all beats, the others
watch rank 0's and the failure that it or another rank reports, so the work does not grow with the square of the number
of ranks. Silence is measured by each rank's own clock. One thread talks to the store and may wait for ever when that is
frozen or cut off; the other judges what was heard. A rank that dies is the launcher's business, which ends the others.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

import torch.distributed as dist

from guided_diffusion.runs import failure_log
from guided_diffusion.system import launch

# Seconds of silence after which a rank counts as lost. A rank that compiles or reads gigabytes may hold Python's lock
# for minutes, in which it cannot beat.
PATIENCE_VARIABLE = "ED_DPM_PATIENCE"
PATIENCE = 180
_PERIOD = 1.0  # seconds between two beats, and between two looks at the others'
_GRACE = 3.0  # in which the rank that failed speaks first, and the launcher may end this one
_FINE = "-"


class Heartbeat:
    """Threads of one rank that beat and watch other ranks; nothing runs before `start`.

    :param end: called from a thread of the heartbeat with an exit status; ends the process, whatever the main
        thread is doing.
    """

    def __init__(self, end: Callable[[int], None]):
        self._end = end
        self._stopped, self._wake, self._told = threading.Event(), threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        self._report: str | None = None  # the failure that this rank reports
        self._failure = _FINE  # the failure that some rank reported
        self._closed = False  # whether the connection to the store is

    @property
    def beating(self) -> bool:
        """Whether the others are being watched."""
        return bool(self._threads) and not self._stopped.is_set()

    def start(self, store: dist.Store, rank: int, world_size: int) -> None:
        """Begin to beat and to watch; a collective.

        :param store: with a connection of its own, and without keys of earlier runs.
        :raises InputError: ED_DPM_PATIENCE is no whole number. 0 there turns the watching off.
        """
        self._patience = launch.whole_number(PATIENCE_VARIABLE, default=PATIENCE)
        if self._patience == 0:
            return
        self._store, self._rank = store, rank
        if rank == 0:
            store.set("failure", _FINE)
        store.set(f"beat/{rank}", "0")
        store.set(f"name/{rank}", f"rank {rank} ({socket.gethostname()}, pid {os.getpid()})")
        self._names = [name.decode() for name in store.multi_get([f"name/{other}" for other in range(world_size)])]
        self._watched = range(1, world_size) if rank == 0 else range(1)
        self._beats = dict.fromkeys(self._watched, b"0")
        self._silence = dict.fromkeys(self._watched, 0.0)
        # Daemons, so that neither keeps a program alive that ends without `stop`.
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._talk, self._watch)]
        for thread in self._threads:
            thread.start()

    def tell(self, status: int, text: str) -> None:
        """Let the others know that this rank fails, and why; returns within two seconds."""
        if self.beating:
            self._say(status, f"{self._names[self._rank]} failed: {text}")
            time.sleep(_PERIOD)  # the store may end with this rank: let them read it

    def stop(self) -> None:
        """End the threads; all ranks are done."""
        self._stopped.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(timeout=2)

    def _say(self, status: int, line: str) -> None:
        if self._closed:
            return
        self._report = json.dumps({"rank": self._rank, "status": status, "line": line})
        self._wake.set()
        self._told.wait(timeout=1)

    def _talk(self) -> None:
        count = 0
        keys = [f"beat/{rank}" for rank in self._watched]
        while not (self._stopped.is_set() or self._closed):
            count += 1
            try:
                if self._report is not None and not self._told.is_set():
                    self._store.compare_set("failure", _FINE, self._report)
                    self._told.set()
                self._store.set(f"beat/{self._rank}", str(count))
                for rank, beat in zip(self._watched, self._store.multi_get(keys), strict=True):
                    if beat != self._beats[rank]:
                        self._beats[rank], self._silence[rank] = beat, 0.0
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
            if self._failure != _FINE:
                failure = json.loads(self._failure)
                if failure["rank"] != self._rank and not self._stopped.wait(_GRACE):
                    self._leave(failure["status"], failure["line"])
            for rank in self._watched:
                self._silence[rank] += passed
                if self._silence[rank] > self._patience:
                    self._give_up(f"{self._names[rank]} has not been heard of for {self._patience} s")
            # At the end of a run `stop` comes first. Under torchrun its agent on rank 0's machine holds the store.
            if self._closed and not self._stopped.wait(_GRACE):
                self._give_up("the connection to rank 0's machine is closed: it ended or crashed")

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

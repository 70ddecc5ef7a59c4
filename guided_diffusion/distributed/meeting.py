"""The meeting of all ranks at the start, and its deadline for ranks that do not come."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator

import torch.distributed as dist

from guided_diffusion.errors import InputError
from guided_diffusion.system.launch import Launch

DEFAULT = 60
HELP = "seconds to wait for ranks that do not come at the start; 0: no deadline"


def seconds_to_meet() -> int:
    """Return --meet_timeout of the command line, which is needed before the line is parsed. InputError if malformed."""
    found = re.findall("\0--meet_timeout[=\0]([^\0]*)", "\0".join(sys.argv)) or [str(DEFAULT)]
    if not re.fullmatch("[0-9]{1,9}", found[-1]):
        raise InputError(f"--meet_timeout: found {found[-1]!r}, expected a whole number of seconds (0: no deadline)")
    return int(found[-1])


def meet(open_store: Callable[[], dist.Store], here: Launch, end: Callable[[int], None]) -> dist.Store:
    """Return the store when all ranks have opened it; where others do not come, say so and `end` this process."""
    missing = {0} - {here.rank}  # without the store nothing is known of the others
    seconds = seconds_to_meet()
    with deadline(seconds, here, end, missing):
        store = open_store()
        missing |= set(range(here.world_size)) - {here.rank}
        # Each counts until it has seen all others count: torchrun's store keeps the keys of earlier attempts.
        keys = [f"count/{rank}" for rank in range(here.world_size)]
        try:
            before = [store.add(key, 0) for key in keys]
            while missing:
                store.add(keys[here.rank], 1)
                time.sleep(0.05)
                now = [int(count) for count in store.multi_get(keys)]
                missing -= {rank for rank in missing if now[rank] != before[rank]}
            store.add(keys[here.rank], 1)  # for those who first looked after the last time
        except dist.DistNetworkError:  # the rank that holds the store gave up a little before this one
            time.sleep(seconds)
            raise
    return store


@contextlib.contextmanager
def deadline(seconds: int, here: Launch, end: Callable[[int], None], missing: set[int]) -> Iterator[None]:
    """Have the process ended, whatever it waits for, where the block takes longer than so many seconds (0: never).

    :param missing: ranks that have not come by then, as far as they are known; the block may change it.
    """

    def give_up() -> None:
        ranks = ", ".join(map(str, sorted(missing.copy())))  # a copy, as the block may be changing it
        who = f"ranks {ranks} of {here.world_size} have" if "," in ranks else f"rank {ranks} of {here.world_size} has"
        line = f"{who if ranks else f'some of {here.world_size} ranks have'} not come within {seconds} s"
        with contextlib.suppress(OSError, ValueError):  # a closed pipe, a closed stream
            sys.stderr.write(f"error: {line}: see above for the reason, or allow more time with --meet_timeout\n")
        time.sleep(1)  # until those that came just later than this rank have found it, too
        end(1)

    timer = threading.Timer(seconds or threading.TIMEOUT_MAX, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()

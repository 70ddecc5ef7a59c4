"""A logger of text and of named values, with one current instance that the module's functions use.

OPENAI_LOGDIR names the directory, OPENAI_LOG_FORMAT rank 0's formats (default ``stdout,log,csv``) and
OPENAI_LOG_FORMAT_MPI those of the other ranks (default ``log``). Files of ranks above 0 end in ``-rank007``.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch.distributed as dist

from guided_diffusion.errors import InputError
from guided_diffusion.runs.log_formats import KVWriter, SeqWriter, make_output_format
from guided_diffusion.system import launch

DEBUG = 10
INFO = 20
WARN = 30
ERROR = 40
DISABLED = 50


class Logger:
    """Collector of named values between dumps, which passes them, and lines of text, to its writers.

    dir: where the files are; only reported. comm: an MPI communicator over which ``dumpkvs`` averages the
    values, weighted by how often each was logged; None to keep each rank's own.
    """

    DEFAULT: Logger | None = None  # what reset() goes back to: configured from the environment alone
    CURRENT: Logger | None = None  # what the module's functions use

    def __init__(self, dir: str | None, output_formats: Sequence[KVWriter], comm: Any = None):
        self.name2val: defaultdict[str, Any] = defaultdict(float)
        self.name2cnt: defaultdict[str, int] = defaultdict(int)
        self.level = INFO
        self.dir = dir
        self.output_formats = output_formats
        self.comm = comm

    def logkv(self, key: str, val: Any) -> None:
        """Set a value; the last one before a dump counts."""
        self.name2val[key] = val

    def logkv_mean(self, key: str, val: Any, *more: Any) -> None:
        """Add a value, or several, to the mean over those since the last dump."""
        mean, seen = self.name2val[key], self.name2cnt[key]
        for value in (val, *more):
            # In this order of operations the last bits, too, are those of other implementations' logs.
            mean = mean * seen / (seen + 1) + value / (seen + 1)
            seen += 1
        self.name2val[key], self.name2cnt[key] = mean, seen

    def dumpkvs(self) -> dict[str, Any]:
        """Write the values collected since the last dump, forget them, and return them."""
        values: dict[str, Any] = self.name2val.copy()
        if self.comm is not None:
            counted = {name: (value, self.name2cnt.get(name, 1)) for name, value in values.items()}
            values = mpi_weighted_mean(self.comm, counted)
            if self.comm.rank != 0:
                values["dummy"] = 1  # the means are rank 0's; an empty table would be warned about
        for writer in self.output_formats:
            if isinstance(writer, KVWriter):
                writer.writekvs(values)
        self.name2val.clear()
        self.name2cnt.clear()
        return values

    def log(self, *args: Any, level: int = INFO) -> None:
        """Write one line of text if ``level`` is not below the logger's own."""
        if level < self.level:
            return
        for writer in self.output_formats:
            if isinstance(writer, SeqWriter):
                writer.writeseq(map(str, args))

    def set_level(self, level: int) -> None:
        self.level = level

    def set_comm(self, comm: Any) -> None:
        self.comm = comm

    def get_dir(self) -> str | None:
        return self.dir

    def close(self) -> None:
        for writer in self.output_formats:
            writer.close()


def get_current() -> Logger:
    """Return the current logger; one configured from the environment alone if there is none yet."""
    if Logger.CURRENT is None:
        configure()
        Logger.DEFAULT = Logger.CURRENT
    return Logger.CURRENT


def configure(
    dir: str | os.PathLike | None = None,
    format_strs: Sequence[str] | None = None,
    comm: Any = None,
    log_suffix: str = "",
) -> None:
    """Make a new current logger and log where it writes.

    dir: see ``make_directory``.
    format_strs: names that ``make_output_format`` knows, else what the environment says.
    comm: see ``Logger``. log_suffix: goes before the extension of every file.
    """
    directory = make_directory(dir)
    rank = get_rank_without_mpi_import()
    if rank > 0:
        log_suffix += f"-rank{rank:03d}"
    if format_strs is None:
        by_default = ("OPENAI_LOG_FORMAT_MPI", "log") if rank > 0 else ("OPENAI_LOG_FORMAT", "stdout,log,csv")
        format_strs = os.environ.get(*by_default).split(",")
    writers = [make_output_format(name, directory, log_suffix) for name in format_strs if name]

    Logger.CURRENT = Logger(str(directory), writers, comm)
    log(f"Logging to {directory}")


def make_directory(dir: str | os.PathLike | None = None) -> Path:
    """Make the directory that ``configure`` would use, and return its absolute path.

    dir: the directory, else OPENAI_LOGDIR, else a new ``runs/<script>-<time>`` under the working directory,
    the same one on all ranks of a process group; ``~`` is expanded.
    """
    dir = dir if dir is not None else os.environ.get("OPENAI_LOGDIR")
    try:
        directory = _agree_on_new_directory() if dir is None else Path(dir).expanduser().absolute()
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: ~ of an unknown user
        why = getattr(error, "strerror", None) or error
        raise InputError(f"log directory {dir or error.filename}: cannot be made: {why}") from error
    return directory


def reset() -> None:
    """Close the current logger and go back to the default one, if that is another."""
    if Logger.CURRENT is not Logger.DEFAULT:
        Logger.CURRENT.close()
        Logger.CURRENT = Logger.DEFAULT
        if Logger.CURRENT is not None:
            log("Reset logger")


@contextmanager
def scoped_configure(
    dir: str | os.PathLike | None = None, format_strs: Sequence[str] | None = None, comm: Any = None
) -> Iterator[None]:
    """``configure`` for the length of a with-block; then the logger from before is current again."""
    before = Logger.CURRENT
    configure(dir=dir, format_strs=format_strs, comm=comm)
    try:
        yield
    finally:
        Logger.CURRENT.close()
        Logger.CURRENT = before


def logkv(key: str, val: Any) -> None:
    """Set a value; the last one before a dump counts."""
    get_current().logkv(key, val)


def logkv_mean(key: str, val: Any, *more: Any) -> None:
    """Add a value, or several, to the mean over those since the last dump."""
    get_current().logkv_mean(key, val, *more)


def logkvs(d: Mapping[str, Any]) -> None:
    """Set several values."""
    for key, val in d.items():
        logkv(key, val)


def dumpkvs() -> dict[str, Any]:
    """Write the values collected since the last dump, forget them, and return them."""
    return get_current().dumpkvs()


def getkvs() -> dict[str, Any]:
    """Return the values collected since the last dump; later ones appear in the same dictionary."""
    return get_current().name2val


def log(*args: Any, level: int = INFO) -> None:
    """Write one line of text, the arguments separated by blanks, unless ``level`` is below the logger's."""
    get_current().log(*args, level=level)


def debug(*args: Any) -> None:
    log(*args, level=DEBUG)


def info(*args: Any) -> None:
    log(*args, level=INFO)


def warn(*args: Any) -> None:
    log(*args, level=WARN)


def warning(text: str) -> None:
    """Log a warning of something unusual; ``warn``, as upstream's, adds no prefix."""
    warn(f"warning: {text}")


def error(*args: Any) -> None:
    log(*args, level=ERROR)


def set_level(level: int) -> None:
    """Drop text below this level from now on."""
    get_current().set_level(level)


def set_comm(comm: Any) -> None:
    """Average values over this MPI communicator from now on; see ``Logger``."""
    get_current().set_comm(comm)


def get_dir() -> str | None:
    """Return the absolute path of the directory that files are written to."""
    return get_current().get_dir()


record_tabular = logkv
dump_tabular = dumpkvs


@contextmanager
def profile_kv(scopename: str) -> Iterator[None]:
    """Add the seconds spent in a with-block to the value ``wait_<scopename>``."""
    start = time.perf_counter()
    try:
        yield
    finally:
        get_current().name2val[f"wait_{scopename}"] += time.perf_counter() - start


def profile(n: str) -> Callable[[Callable], Callable]:
    """Decorate a function with ``profile_kv(n)`` around every call."""
    return profile_kv(n)


def get_rank_without_mpi_import() -> int:
    """Return this process's rank by the launcher's variables, else by the process group; MPI is not started."""
    here = launch.detect()
    if here.world_size > 1:
        return here.rank
    # MPI's rank without a world size is no launch, but it still tells log files apart.
    rank = max(launch.whole_number(name, default=0) for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK"))
    return dist.get_rank() if rank == 0 and dist.is_initialized() else rank


def mpi_weighted_mean(comm: Any, local_name2valcount: Mapping[str, tuple[Any, float]]) -> dict[str, float]:
    """Average ``{name: (value, weight)}`` over the ranks of an MPI communicator. A collective.

    Rank 0 gets ``{name: mean}`` over the ranks that have the name, the others ``{}``. Values that are no numbers are
    left out with a warning.
    """
    gathered = comm.gather(local_name2valcount)
    if comm.rank != 0:
        return {}
    totals: defaultdict[str, float] = defaultdict(float)
    weights: defaultdict[str, float] = defaultdict(float)
    for name, (value, weight) in (item for valcounts in gathered for item in valcounts.items()):
        try:
            number = float(value)
        except (TypeError, ValueError):
            warnings.warn(f"cannot average {name} = {value!r} over ranks: not a number", stacklevel=2)
            continue
        totals[name] += number * weight
        weights[name] += weight
    return {name: total / weights[name] for name, total in totals.items()}


def _agree_on_new_directory() -> Path:
    """Make a directory that did not exist before; with a process group, the same one on every rank.

    The first rank to ask writes the path to the group's key-value store, where the others find it. This is no
    collective: a rank that logs alone does not wait for the others.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return _make_new_directory()
    store = dist.distributed_c10d._get_default_store()
    key = f"logger/directory/{next(_agreements)}"
    if store.add(f"{key}/asked", 1) == 1:
        store.set(key, str(_make_new_directory()))
    return Path(store.get(key).decode())


_agreements = count()


def _make_new_directory() -> Path:
    """Make ``runs/<script>-<time>``; a number is added if another run began in the same second."""
    path = Path.cwd() / "runs" / f"{_program_name()}-{time.strftime('%Y-%m-%d-%H-%M-%S')}"
    for suffix in chain([""], (f"-{number}" for number in count(2))):
        with suppress(FileExistsError):
            path.with_name(path.name + suffix).mkdir(parents=True)
            return path.with_name(path.name + suffix)
    raise AssertionError("unreachable: the suffixes never end")


def _program_name() -> str:
    program = Path(sys.argv[0] if sys.argv else "")
    if program.stem == "__main__":  # python -m package
        return program.parent.name
    return program.stem if program.stem not in ("", "-", "-c") else "python"

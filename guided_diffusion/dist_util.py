"""The process group, this rank's device, a few collectives, and how a program ends.

Works alike under torchrun, mpiexec, Slurm's srun and as a single process; the last needs no network. Under
srun pass ``--kill-on-bad-exit=1``, because Slurm by default lets the other tasks run on when one fails.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from guided_diffusion import checkpoint, launch, meeting, run_directory, run_log, streams
from guided_diffusion.errors import InputError, Stopped, Terminated, first_line
from guided_diffusion.heartbeat import Heartbeat

# Kept because users import them; the number of GPUs on a machine is asked of CUDA instead.
GPUS_PER_NODE = 8
SETUP_RETRY_COUNT = 3

TIMEOUT = timedelta(minutes=30)  # how long a rank waits for its peers in any one collective
_LEAD = 30.0  # seconds by which a rank may be later than another in reading its command line

_heart: Heartbeat | None = None  # there in programs that `run_main` runs: it knows when a rank is done


def setup_dist() -> None:
    """Join this process to its peers; does nothing if a process group exists already.

    The backend is NCCL where every rank has a GPU of its own and Gloo otherwise (no GPU, or GPUs shared by
    several ranks, which NCCL refuses). CUDA_VISIBLE_DEVICES is left alone. RANK, WORLD_SIZE, LOCAL_RANK,
    MASTER_ADDR and MASTER_PORT are set unless the launcher did.

    Raises ``InputError`` if the launcher's variables are malformed or MPI cannot be used. Where ranks do not come in
    time, the process ends with status 1, see ``meeting``.
    """
    if dist.is_initialized():
        return
    here = launch.detect()
    store = meeting.meet(lambda: _open_store(here), here, _leave_hard)
    machines = _publish(store, here, "machine", socket.gethostname())
    gpus = _publish(store, here, "gpu", _gpu_identity(here))
    backend = "nccl" if "" not in gpus and len(set(gpus)) == len(gpus) else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(dev())
    else:
        _share_cores(machines.count(machines[here.rank]))
    dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.world_size, timeout=TIMEOUT)
    barrier()  # a rank that fails at once must not leave its peers in the middle of connecting
    if _heart is not None and here.world_size > 1:
        # A name of its own, because torchrun's store keeps the keys of earlier attempts.
        name = broadcast_object(f"heartbeat/{secrets.token_hex(8)}")
        _heart.start(dist.PrefixStore(name, store.clone()), here.rank, here.world_size)


def dev() -> torch.device:
    """The GPU of this local rank (the visible GPUs are dealt out in turn), or the CPU if there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", launch.detect().local_rank % torch.cuda.device_count())


def get_rank() -> int:
    """This process's rank; the launcher's word for it before ``setup_dist``."""
    return dist.get_rank() if dist.is_initialized() else launch.detect().rank


def get_world_size() -> int:
    """The number of processes; the launcher's word for it before ``setup_dist``."""
    return dist.get_world_size() if dist.is_initialized() else launch.detect().world_size


def barrier() -> None:
    """Wait for all ranks; nothing to wait for without a process group."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        on_gpu = dist.get_backend() == "nccl"
        dist.barrier(device_ids=[torch.cuda.current_device()] if on_gpu else None)


def broadcast_object(value: Any) -> Any:
    """Rank 0's value on every rank; it must be picklable. A collective; nothing to do without a process group."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_rank_0(call: Callable[[], Any]) -> Any:
    """Return on every rank what rank 0 gets from a call that only it makes. A collective.

    :raises InputError: on every rank, where the call raises one.
    """
    found = None
    if get_rank() == 0:
        try:
            found = call()
        except InputError as error:
            found = error
    found = broadcast_object(found)
    if isinstance(found, InputError):
        raise found
    return found


def load_state_dict(path: str, **kwargs: Any) -> Any:
    """What ``torch.save`` wrote to ``path``; ``kwargs`` such as ``map_location`` go to ``torch.load``.

    Every rank reads for itself. This is not a collective, so calling it on one rank only is fine. See
    ``checkpoint.read_object`` for the paths understood and the ``InputError`` raised.
    """
    return checkpoint.read_object(path, **kwargs)


def sync_params(params: Iterable[torch.Tensor]) -> None:
    """Overwrite each tensor with rank 0's values, in place and without a gradient."""
    if get_world_size() == 1 or not dist.is_initialized():
        return
    with torch.no_grad():
        pending = [dist.broadcast(tensor, src=0, async_op=True) for tensor in params]
        for work in pending:
            work.wait()


def run_main(main: Callable[[], None]) -> NoReturn:
    """Run a program's ``main`` and end the process so that no peer is left hanging.

    ``InputError``, and an ``OSError`` such as of a full disk: its line on stderr, exit status 2. Ctrl-C: 130.
    ``Terminated``: 143.
    ``SystemExit``: its own status; ``Stopped``: the same, and all ranks part as after success. Any other exception: the
    traceback, 1. After a failure among several ranks the process leaves without the interpreter's clean-up, which could
    block in MPI; the launcher then ends the other ranks. Those that it does not reach (frozen, or on other machines)
    end by themselves: see ``heartbeat``, and ``meeting`` for the time before all have joined.
    """
    global _heart
    streams.protect()
    _heart = Heartbeat(_leave_hard)
    try:
        if launch.detect().kind == "mpi" and launch.detect().world_size > 1:
            # Now rather than in setup_dist: mpiexec does not miss a rank that dies before it joined MPI,
            # and its peers would wait for it until the deadline.
            _join_mpi()
        main()
        _leave()
    except BaseException as error:  # noqa: BLE001 - whatever it is, the peers must not be left waiting
        status = report_failure(error)
        if status == 0 or isinstance(error, Stopped):
            _leave()
        elif _has_peers():
            _heart.tell(status, _first_line_of(error))
            _leave_hard(status)
        run_directory.release()
        sys.exit(status)
    sys.exit(0)


def fail(line: str) -> NoReturn:
    """End this process with an error from a thread that is not the main one; other ranks are told."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"error: {line}\n")
    if _heart is not None:
        _heart.tell(2, line)
    _leave_hard(2)


def report_failure(error: BaseException) -> int:
    """Tell the user about an exception; returns the exit status it stands for."""
    if isinstance(error, Stopped):
        run_log.keep_failure(error.line, state="stopped")
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        sys.stderr.write(f"{error.code}\n")
        return 1
    if isinstance(error, KeyboardInterrupt):
        terminated = isinstance(error, Terminated)
        run_log.keep_failure("terminated" if terminated else "interrupted", state="stopped")
        return 128 + (signal.SIGTERM if terminated else signal.SIGINT)
    system = isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError)
    line = str(error) if isinstance(error, InputError) else _first_line_of(error)
    full = None if system else _out_of_memory(error)
    if system:
        line = ": ".join(str(part) for part in (error.filename, error.strerror) if part is not None)
    elif full:
        line = full
    details = "" if isinstance(error, InputError) else "".join(traceback.format_exception(error))
    run_log.keep_failure(line, details, consequence=_lost_a_peer(error))
    if _has_peers() and _is_said_elsewhere(error):
        # Meanwhile the rank that says it leaves, and the launcher or the heartbeat ends this one.
        time.sleep(5 if _lost_a_peer(error) and _heart.beating else 1)
    one_line = system or full or not details
    sys.stderr.write(f"error: {line}\n" if one_line else details)  # one write: ranks do not interleave
    return 2 if one_line else 1


def waited_for_rank_0() -> bool:
    """Leave it to rank 0 to say what is wrong with a command line that all ranks have.

    A launcher ends all ranks once one has failed. So that this one is not the first, while rank 0 still loads, it
    waits to be ended. Returns whether that was in vain; False at once where rank 0 is in no danger.
    """
    in_danger = "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ or _mpi_to_sign_off_from()
    if in_danger:
        time.sleep(_LEAD)
    return bool(in_danger)


def _out_of_memory(error: BaseException) -> str | None:
    """The line for a network that does not fit into memory; None for other failures."""
    text = first_line(error)
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "DefaultCPUAllocator" not in text:
        return None
    place = "GPU" if isinstance(error, torch.OutOfMemoryError) else "main"
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
    wanted = f" (for {asked[1]} more)" if asked else ""
    return (
        f"out of {place} memory{wanted}: lower --batch_size, or --microbatch in training; what is finished is kept, "
        "and the same --log_dir goes on from there"
    )


def _first_line_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _is_said_elsewhere(error: BaseException) -> bool:
    """Whether another rank probably reports this failure, or the one that it follows from."""
    if isinstance(error, InputError):
        return get_rank() > 0  # bad input mostly meets all ranks: let rank 0 say it
    return _lost_a_peer(error)


def _lost_a_peer(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and "onnection" in str(error)


def _has_peers() -> bool:
    try:
        return get_world_size() > 1
    except InputError:
        return False


def _leave() -> None:
    """Part from the peers after success: everyone has arrived before anyone goes."""
    run_directory.release()
    if _heart is not None:
        _heart.expect_leavers()
    if dist.is_initialized():
        barrier()
        if _heart is not None:
            _heart.stop()
        dist.destroy_process_group()
    _finalize_mpi()


def _leave_hard(status: int) -> NoReturn:
    """End now. What is buffered gets out; nothing that could wait for a peer is run."""
    # From the heartbeat the main thread may hold a lock that flushing needs, or be inside MPI.
    last_resort = threading.Timer(5, os._exit, (status,))
    last_resort.daemon = True
    last_resort.start()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises when a data worker dies
    for child in multiprocessing.active_children():  # data workers would hold on to our output pipes
        child.kill()
    run_directory.release()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a closed pipe, a closed stream
            stream.flush()
    if mpi := _mpi_to_sign_off_from():
        # Unlike a bare exit this passes the status on reliably, and mpiexec does not wait for pipes that
        # other ranks' data workers still hold. What MPI itself has to say about it helps nobody.
        time.sleep(0.3)  # mpiexec drops output that it has not yet passed on
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        mpi.COMM_WORLD.Abort(status)
    os._exit(status)


def _open_store(here: launch.Launch) -> dist.Store:
    """The key-value store through which the ranks find each other."""
    if here.kind == "torchrun":
        launch.whole_number("MASTER_PORT", default=0)
        meeting.check_address(os.environ.get("MASTER_ADDR", "localhost"))
        try:
            return next(rendezvous("env://", here.rank, here.world_size, timeout=TIMEOUT))[0]
        except ValueError as error:  # MASTER_ADDR or MASTER_PORT missing or malformed
            raise InputError(f"RANK and WORLD_SIZE are set, but: {error}") from error
    if here.world_size == 1:
        launch.export(here, "127.0.0.1", 0)
        return dist.HashStore()
    if here.kind == "mpi":
        return _open_store_through_mpi(here)
    return _open_store_through_slurm(here)


def _open_store_through_mpi(here: launch.Launch) -> dist.Store:
    """Rank 0 listens on a port the system picks and tells the others through MPI."""
    comm = _join_mpi().COMM_WORLD
    machines = comm.allgather(socket.gethostname())
    store, place = None, None
    if here.rank == 0:
        address = "127.0.0.1" if len(set(machines)) == 1 else _own_address()
        store = _listen(address, 0, here.world_size)
        place = (address, store.port)
    address, port = comm.bcast(place, root=0)
    launch.export(here, address, port)
    return store or dist.TCPStore(address, port, here.world_size, is_master=False, timeout=TIMEOUT)


def _open_store_through_slurm(here: launch.Launch) -> dist.Store:
    """Rank 0 listens on the step's first machine, at a port that every rank can work out."""
    ours = launch.exported_by_us()
    given = {} if ours else os.environ
    hosts = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "")
    address = given.get("MASTER_ADDR") or _first_host(hosts)
    if not address:
        raise InputError("Slurm gives no SLURM_STEP_NODELIST: set MASTER_ADDR to the first machine's name")
    port = given.get("MASTER_PORT") or str(_slurm_port())
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"environment variable MASTER_PORT: expected 1 to 65535, found {port!r}")
    launch.export(here, address, int(port))
    if here.rank == 0:
        return _listen(address, int(port), here.world_size)
    return dist.TCPStore(address, int(port), here.world_size, is_master=False, timeout=TIMEOUT)


def _listen(address: str, port: int, world_size: int) -> dist.TCPStore:
    return dist.TCPStore(address, port, world_size, is_master=True, timeout=TIMEOUT, wait_for_workers=False)


def _own_address() -> str:
    """The address under which other machines reach this one."""
    if not launch.exported_by_us() and os.environ.get("MASTER_ADDR"):
        return os.environ["MASTER_ADDR"]
    name = socket.getfqdn()
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        raise InputError(f"host name {name} has no address ({error}): set MASTER_ADDR") from error
    if address.startswith("127."):
        raise InputError(f"host name {name} means {address}, useless to other machines: set MASTER_ADDR")
    return address


def _first_host(nodelist: str) -> str:
    """The first name in Slurm's notation: ``gpu[07-12,20]`` and ``gpu07,gpu20`` both give ``gpu07``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodelist)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _slurm_port() -> int:
    """A port in 20000..59999 that differs between the jobs and steps of one machine."""
    job, step = (os.environ.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    digits = [int(text) if text.isdigit() else 0 for text in (job, step)]
    return 20000 + (digits[0] * 37 + digits[1]) % 40000


def _publish(store: dist.Store, here: launch.Launch, topic: str, value: str) -> list[str]:
    """Tell the peers ``value`` and return theirs, by rank."""
    store.set(f"{topic}/{here.rank}", value)
    return [store.get(f"{topic}/{rank}").decode() for rank in range(here.world_size)]


def _gpu_identity(here: launch.Launch) -> str:
    """A name for this rank's GPU that no other GPU has; empty without one."""
    if not torch.cuda.is_available():
        return ""
    device = dev()
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", device.index)
    return f"{socket.gethostname()}/{uuid}"


def _share_cores(local_ranks: int) -> None:
    """Deal this machine's cores out among its ranks, unless OMP_NUM_THREADS says otherwise."""
    if local_ranks > 1 and "OMP_NUM_THREADS" not in os.environ:
        share = max(1, (os.cpu_count() or 1) // local_ranks)
        torch.set_num_threads(min(share, torch.get_num_threads()))


def _join_mpi() -> Any:
    """mpi4py's MPI module, started. Raises ``InputError`` where it is missing or of another MPI."""
    here = launch.detect()
    try:
        first = "mpi4py.MPI" not in sys.modules
        if first:
            import mpi4py

            mpi4py.rc.finalize = False  # its own exit hook would wait for ranks that failed
            mpi4py.rc.initialize = False
        from mpi4py import MPI

        if first:
            meeting.start_mpi(MPI, here, _leave_hard)
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"started by mpiexec with {here.world_size} ranks, but mpi4py cannot be loaded "
            f"({str(error).splitlines()[0]}): install mpi4py, or start with torchrun"
        ) from error
    if first:
        atexit.register(_finalize_mpi_at_exit)
    size = MPI.COMM_WORLD.Get_size()
    if size != here.world_size:
        raise InputError(
            f"mpiexec started {here.world_size} ranks, but mpi4py sees {size}: "
            "mpiexec and mpi4py belong to different MPI installations"
        )
    return MPI


def _mpi_to_sign_off_from() -> Any:
    """mpi4py's MPI module if it runs and was started here, else None.

    Started by someone else, mpi4py signs off by itself, and its user may not be done with it.
    """
    mpi4py, mpi = sys.modules.get("mpi4py"), sys.modules.get("mpi4py.MPI")
    if mpi is None or mpi4py.rc.finalize is not False:
        return None
    return mpi if mpi.Is_initialized() and not mpi.Is_finalized() else None


def _finalize_mpi() -> None:
    """Sign off from MPI, without which mpiexec takes our exit for a crash; waits for the other ranks."""
    if mpi := _mpi_to_sign_off_from():
        mpi.Finalize()


def _finalize_mpi_at_exit() -> None:
    """For programs that do not use ``run_main``: after an uncaught exception do not wait for the peers."""
    if getattr(sys, "last_value", None) is not None:
        _leave_hard(1)
    _finalize_mpi()

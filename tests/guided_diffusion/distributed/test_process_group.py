"""The process group under every launcher, and how programs end."""

import contextlib
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from guided_diffusion import dist_util, logger
from guided_diffusion.distributed import mpi, rendezvous, shutdown
from guided_diffusion.errors import InputError
from tests.support.helpers import ROOT, executable, free_port, launch_prefix

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "PMI", "OMPI_", "MPI_", "SLURM_", "OMP_")
TIMEOUT = 60  # seconds, for a hang; the runs themselves take two or three


def clean_environment(**extra: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith((*LAUNCHER_VARIABLES, "GUIDED_"))}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | extra


@pytest.fixture
def alone():
    """No launcher's variables for the length of a test."""
    with mock.patch.dict(os.environ, clean_environment(), clear=True):
        yield


@pytest.fixture
def script(tmp_path):
    """Writes a program whose ``main`` has the given body and is run by ``run_main`` (or by ``end``)."""

    def write(body: str, end: str = "dist_util.run_main(main)") -> str:
        path = tmp_path / "program.py"
        lines = ["    " + line for line in body.strip().splitlines()]
        head = (
            "import os, sys, time\nimport torch, torch.distributed as dist\n"
            "from guided_diffusion import dist_util\nfrom guided_diffusion.errors import InputError\n"
        )
        path.write_text("\n".join([head, "def main():", *lines, "", end, ""]))
        return str(path)

    return write


def run(launcher: str, path: str, **extra: str) -> subprocess.CompletedProcess:
    command = [*launch_prefix(launcher), path]
    folder = Path(path).parent
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT, env=clean_environment(**extra), cwd=folder
    )


EVERYTHING = """
dist_util.setup_dist()
dist_util.setup_dist()  # does nothing
rank, size = dist_util.get_rank(), dist_util.get_world_size()
total = torch.tensor([rank + 1.0])
dist.all_reduce(total)
parameter = torch.nn.Parameter(torch.full((2, 3), float(rank)))
buffer = torch.full((4,), rank)
dist_util.sync_params(iter([parameter, buffer]))
synced = bool((parameter == 0).all() and (buffer == 0).all())
if rank == 0:
    torch.save({"a": torch.ones(1)}, "one.pt")
    dist_util.load_state_dict("one.pt")  # on one rank only: no collective
dist_util.barrier()
exported = [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
assert os.environ["MASTER_ADDR"] and os.environ["MASTER_PORT"]
answer = [rank, size, int(total), synced, ",".join(exported), dist.get_backend(), torch.get_num_threads()]
open(f"rank{rank}.txt", "w").write(" ".join(map(str, answer)))
"""


def expect_two_ranks(folder: Path, threads: int) -> None:
    for rank in (0, 1):
        answer = (folder / f"rank{rank}.txt").read_text()
        assert answer == f"{rank} 2 3 True {rank},2,{rank} gloo {threads}"


needs_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="describes the run without a GPU")


@pytest.mark.slow
@needs_cpu
@pytest.mark.parametrize("launcher", ["mpiexec", "torchrun"])
def test_two_ranks(script, tmp_path, launcher):
    done = run(launcher, script(EVERYTHING))
    assert done.returncode == 0, done.stderr
    # torchrun itself sets OMP_NUM_THREADS=1
    share = max(1, (os.cpu_count() or 1) // 2) if launcher == "mpiexec" else 1
    expect_two_ranks(tmp_path, share)
    if launcher == "mpiexec":
        assert done.stderr == ""


@pytest.mark.slow
@needs_cpu
def test_two_ranks_under_slurm(script, tmp_path):
    path = script(EVERYTHING)
    step = {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost,other[3-4]",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    tasks = [
        subprocess.Popen(
            [sys.executable, path],
            env=clean_environment(**step, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)),
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for task in tasks:
        _, stderr = task.communicate(timeout=TIMEOUT)
        assert task.returncode == 0, stderr
    expect_two_ranks(tmp_path, 1)


@pytest.mark.slow
@needs_cpu
@pytest.mark.parametrize("launcher", ["python", "mpiexec -n 1"])
def test_a_single_process_needs_neither_network_nor_mpi(script, tmp_path, launcher):
    path = script(
        "import socket, torch.distributed as dist\n"
        "def refuse(*_, **__): raise AssertionError('network used')\n"
        "socket.socket.bind = socket.socket.connect = dist.TCPStore = refuse\n" + EVERYTHING.strip() + "\n"
        "assert 'mpi4py' not in sys.modules"
    )
    command = [sys.executable] if launcher == "python" else [executable("mpiexec"), "-n", "1", sys.executable]
    done = subprocess.run(
        [*command, path],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env=clean_environment(),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "rank0.txt").read_text().startswith("0 1 1 True 0,1,0 gloo")


WAITS_FOR_PEERS = """
dist_util.setup_dist()
if dist_util.get_rank() == {rank}:
    {action}
dist.all_reduce(torch.ones(1))
time.sleep(300)
"""


INPUT_ERROR = "raise InputError('flag --x: expected 1,\\n found 2')"
INPUT_ERROR_LINE = "error: flag --x: expected 1,  found 2\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher, rank, action, status, said",
    [
        ("mpiexec", 1, INPUT_ERROR, 2, INPUT_ERROR_LINE),
        ("mpiexec", 0, "raise KeyError('boom')", 1, "KeyError: 'boom'\n"),
        ("torchrun", 1, INPUT_ERROR, 2, INPUT_ERROR_LINE),
    ],
)
def test_one_failing_rank_ends_them_all(script, launcher, rank, action, status, said):
    start = time.monotonic()
    done = run(launcher, script(WAITS_FOR_PEERS.format(rank=rank, action=action)))
    assert time.monotonic() - start < 30
    assert done.returncode == (status if launcher == "mpiexec" else 1)
    assert done.stderr.count(said) == 1
    if launcher == "mpiexec" and status == 2:
        assert done.stderr == said


BEFORE_SETUP = """
if os.environ["PMI_RANK"] in {ranks}:
    raise InputError("no such file")
dist_util.setup_dist()
time.sleep(300)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [["1"], ["0", "1"]])
def test_failing_before_the_group_exists(script, ranks):
    """mpiexec does not notice a rank that dies before it joined MPI: its peers must not wait for it."""
    done = run("mpiexec", script(BEFORE_SETUP.format(ranks=ranks)))
    assert (done.returncode, done.stderr) == (2, "error: no such file\n")


@pytest.mark.slow
def test_without_run_main_an_exception_does_not_hang_in_mpi(script):
    body = WAITS_FOR_PEERS.format(rank=1, action="raise KeyError('boom')")
    done = run("mpiexec", script(body, end="main()"))
    assert done.returncode == 1
    assert "KeyError: 'boom'" in done.stderr


@pytest.mark.slow
def test_ranks_may_finish_at_different_times(script, tmp_path):
    body = """
dist_util.setup_dist()
time.sleep(0.5 * dist_util.get_rank())
open(f"done{dist_util.get_rank()}", "w").close()
"""
    done = run("mpiexec", script(body))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "done0").exists() and (tmp_path / "done1").exists()


@pytest.mark.slow
def test_data_workers_do_not_outlive_a_failed_rank(script, tmp_path):
    body = """
import multiprocessing
dist_util.setup_dist()
if dist_util.get_rank() == 1:
    time.sleep(300)
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(300,), daemon=True)
worker.start()
open("worker", "w").write(str(worker.pid))
raise InputError("stop")
"""
    assert run("mpiexec", script(body)).returncode == 2
    worker = Path("/proc", (tmp_path / "worker").read_text())
    if Path("/proc").is_dir():
        assert not worker.exists() or "Z" in (worker / "stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize(
    "body, status, stderr",
    [
        ("print('fine')", 0, ""),
        ("raise SystemExit", 0, ""),
        ("sys.exit(7)", 7, ""),
        ("sys.exit('some words')", 1, "some words\n"),
        ("import argparse; argparse.ArgumentParser(prog='p').parse_args(['--no'])", 2, None),
        ("raise InputError('data_dir x: empty')", 2, "error: data_dir x: empty\n"),
        (
            "raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has')",
            2,
            "error: out of GPU memory (for 2.50 GiB more): lower --batch_size, or --microbatch in training; what is "
            "finished is kept, and the same --log_dir resumes from there\n",
        ),
        ("raise KeyboardInterrupt", 130, ""),
        ("dist_util.setup_dist(); raise InputError('late')", 2, "error: late\n"),
    ],
)
def test_how_one_process_ends(script, alone, capsys, body, status, stderr):
    """In this process, to save the imports: run_main with one rank leaves by SystemExit."""
    source = Path(script(body)).read_text()
    try:
        with pytest.raises(SystemExit) as ended:
            exec(compile(source, "program.py", "exec"), {"__name__": "program"})
    finally:
        with contextlib.suppress(AssertionError, ValueError):
            torch.distributed.destroy_process_group()
    assert ended.value.code == status
    if stderr is not None:
        assert capsys.readouterr().err == stderr


@pytest.mark.slow
def test_a_single_process_leaves_the_mpi_of_others_alone(tmp_path):
    """Whoever imported mpi4py may still be using it when run_main has ended, in a test or a notebook."""
    pytest.importorskip("mpi4py")
    program = (
        "from mpi4py import MPI\nfrom guided_diffusion import dist_util\n"
        "try: dist_util.run_main(dist_util.setup_dist)\n"
        "except SystemExit: print(MPI.COMM_WORLD.Get_size())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert (done.returncode, done.stdout) == (0, "1\n")


def test_an_unexpected_error_shows_its_traceback(alone, capsys):
    with pytest.raises(SystemExit) as ended:
        dist_util.run_main(lambda: 1 // 0)
    assert ended.value.code == 1
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("Traceback") and shown[-1].startswith("ZeroDivisionError: ")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (FileNotFoundError(2, "No such file", "/x/\udcff.npz"), "/x/\\udcff.npz: No such file"),
        (ConnectionResetError(104, "Connection reset by peer"), None),
        (TimeoutError(110, "Connection timed out"), None),
        (OSError("of a library's own"), None),
    ],
)
def test_what_the_system_refuses_is_one_line_with_the_traceback_in_the_log(alone, tmp_path, error, line):
    def main():
        raise error

    stderr = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with (
        logger.scoped_configure(dir=tmp_path, format_strs=["log"]),
        mock.patch.object(sys, "stderr", stderr),
        pytest.raises(SystemExit) as ended,
    ):
        dist_util.run_main(main)
    stderr.flush()
    shown = stderr.buffer.getvalue().decode()
    assert ended.value.code == (1 if line is None else 2)
    assert shown.startswith("Traceback") if line is None else shown == f"error: {line}\n"
    assert "Traceback" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[/x/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:61578: reset by peer"), True),
        (RuntimeError("Connection to the database of labels failed"), False),
        (dist.DistNetworkError("The server socket has failed to listen"), False),  # before the ranks have met
    ],
)
def test_a_lost_rank_is_not_told_by_a_word(alone, error, lost):
    def main():
        raise error

    with mock.patch.object(shutdown.failure_log, "keep_failure") as kept, pytest.raises(SystemExit):
        dist_util.run_main(main)
    assert kept.call_args.kwargs["consequence"] is lost


@pytest.mark.parametrize(
    "variables, line",
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "environment variable RANK: expected a whole number, found 'x'"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "RANK and WORLD_SIZE are set, but: .*MASTER_ADDR"),
    ],
)
def test_malformed_launcher_variables_are_input_errors(alone, capsys, variables, line):
    os.environ.update(variables)
    with pytest.raises(SystemExit) as ended:
        dist_util.run_main(dist_util.setup_dist)
    assert ended.value.code == 2
    assert re.fullmatch(rf"error: {line}.*\n", capsys.readouterr().err)


def test_slurm_ports_differ_between_the_steps_of_a_job(alone):
    ports = set()
    for job in ("1234567", "1234568"):
        for step in ("0", "1", "extern"):
            os.environ.update(SLURM_JOB_ID=job, SLURM_STEP_ID=step)
            ports.add(rendezvous.slurm_port())
    assert len(ports) == 4 and all(1024 < port < 65536 for port in ports)


@pytest.mark.parametrize(
    "nodelist, first",
    [
        ("gpu07", "gpu07"),
        ("gpu07,gpu20", "gpu07"),
        ("gpu[07-12,20]", "gpu07"),
        ("gpu[3,5-9],cpu1", "gpu3"),
        ("rack[1-2]node[04-05]", "rack1node04"),
        ("a-b[001].site.org", "a-b001.site.org"),
        ("", ""),
    ],
)
def test_first_host_of_a_slurm_node_list(nodelist, first):
    assert rendezvous.first_host(nodelist) == first


def test_without_a_group_nothing_is_waited_for(alone, monkeypatch):
    if torch.distributed.is_initialized():
        pytest.skip("another test left a process group")
    dist_util.barrier()
    tensor = torch.ones(2, requires_grad=True)
    dist_util.sync_params([tensor])
    assert dist_util.get_rank() == 0 and dist_util.get_world_size() == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dist_util.dev() == torch.device("cpu")


def test_gpus_are_dealt_out_to_local_ranks(alone, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    devices = []
    for local_rank in range(4):
        os.environ.update(PMI_RANK=str(8 + local_rank), PMI_SIZE="12", MPI_LOCALRANKID=str(local_rank))
        devices.append(str(dist_util.dev()))
    assert devices == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]


def test_mpi_that_cannot_be_loaded_is_one_line(alone, monkeypatch):
    os.environ.update(PMI_RANK="0", PMI_SIZE="2", MPI_LOCALRANKID="0")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    with pytest.raises(InputError, match="2 ranks, but mpi4py cannot be loaded .* or start with torchrun"):
        mpi.join(lambda status: None)


def test_upstream_constants():
    assert (dist_util.GPUS_PER_NODE, dist_util.SETUP_RETRY_COUNT) == (8, 3)


@pytest.mark.slow
@pytest.mark.parametrize("fill", ["torch.empty(2**60, dtype=torch.uint8)", "bytes(2**62)"])
def test_more_memory_than_there_is(script, fill):
    done = run("python", script(fill))
    assert done.returncode == 2 and done.stderr.startswith("error: out of main memory") and done.stderr.count("\n") == 1

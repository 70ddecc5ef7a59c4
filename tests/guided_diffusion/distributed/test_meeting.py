"""Ranks that wait at the start for others that do not come end by a deadline; those that are slow are waited for."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evaluations import evaluator, make_reference
from guided_diffusion.distributed import meeting
from guided_diffusion.errors import InputError
from guided_diffusion.sampling.run import CHANGEABLE_FLAGS
from guided_diffusion.training.resume import CHANGEABLE
from tests.support.helpers import Run, clean_environment, free_port, launch_prefix, run_to_end

# The ranks named by the second argument do what the first one says before they reach `run_main`. The others go there
# together, so that each has come well before the first gives up, however long importing takes.
PROGRAM = """
import os, signal, sys, time
rank = int(next(os.environ[name] for name in ("RANK", "PMI_RANK", "SLURM_PROCID") if name in os.environ))
size = int(next(os.environ[name] for name in ("WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS") if name in os.environ))
attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
victims = [int(word) for word in sys.argv[2].split(",")]
if rank in victims:
    exec(sys.argv[1])

from guided_diffusion import dist_util
import torch, torch.distributed as dist

def main():
    dist_util.setup_dist()
    total = torch.tensor([1.0])
    dist.all_reduce(total)
    open(f"met{rank}-{attempt}", "w").write(str(int(total)))

open(f"ready{rank}{attempt}", "w").close()
while not all(os.path.exists(f"ready{other}{attempt}") for other in range(size) if other not in victims):
    time.sleep(0.02)
time.sleep(float(os.environ.get("LATER", 0)))
dist_util.run_main(main)
"""
SLEEP = "time.sleep(300)"
ADVICE = "see above for the reason, or allow more time with --meet_timeout"
TIMEOUT = 90  # seconds, for a hang


def run(folder: Path, prefix: list[str], fault: str, victims: str, *flags: str) -> Run:
    """Run the program to its end, after which none of its processes is left."""
    path = folder / "program.py"
    path.write_text(PROGRAM)
    done = run_to_end([*prefix, str(path), fault, victims, *flags], folder, TIMEOUT)
    assert done.statuses != [None], f"still running: {done.stderr}"
    deadline = time.monotonic() + 5
    while left := [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(path).encode() in read(p)]:
        assert time.monotonic() < deadline, f"left over: {left}"
        time.sleep(0.1)
    return done


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended meanwhile
        return b""


@pytest.mark.parametrize(
    "launcher, ranks, fault, victims, missing",
    [
        ("mpiexec", 2, "import no_such_module", "1", "some of 2 ranks have"),
        ("mpiexec", 4, SLEEP, "1,3", "some of 4 ranks have"),
        ("torchrun", 3, "os._exit(0)", "0", "rank 0 of 3 has"),
        pytest.param("mpiexec", 3, "sys.exit(3)", "0", "some of 3 ranks have", marks=pytest.mark.slow),
        pytest.param("mpiexec", 2, "os._exit(0)", "1", "some of 2 ranks have", marks=pytest.mark.slow),
        pytest.param("torchrun", 4, SLEEP, "1,3", "ranks 1, 3 of 4 have", marks=pytest.mark.slow),
    ],
)
def test_missing_ranks_are_named_and_nothing_hangs(tmp_path, launcher, ranks, fault, victims, missing):
    done = run(tmp_path, launch_prefix(launcher, ranks), fault, victims, "--meet_timeout", "2")
    assert done.statuses != [0]
    assert not list(tmp_path.glob("met*"))
    assert set(done.error_lines) == {f"error: {missing} not come within 2 s: {ADVICE}"}


@pytest.mark.parametrize(
    "launcher, fault",
    [
        ("mpiexec", "os.kill(os.getpid(), signal.SIGSEGV)"),
        ("torchrun", "import no_such_module"),
        pytest.param("torchrun", "os.kill(os.getpid(), signal.SIGSEGV)", marks=pytest.mark.slow),
        pytest.param("torchrun", "sys.exit(3)", marks=pytest.mark.slow),
    ],
)
def test_a_failure_that_the_launcher_notices_need_not_wait_for_the_deadline(tmp_path, launcher, fault):
    done = run(tmp_path, launch_prefix(launcher), fault, "1", "--meet_timeout", "0")
    assert done.statuses != [0]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["mpiexec", "torchrun"])
def test_a_slow_rank_is_waited_for(tmp_path, launcher):
    done = run(tmp_path, launch_prefix(launcher), "time.sleep(2)", "1", "--meet_timeout=60")
    assert done.statuses == [0], done.stderr
    assert [path.read_text() for path in tmp_path.glob("met*")] == ["2", "2"]


@pytest.mark.slow
def test_a_shell_between_mpiexec_and_its_ranks(tmp_path):
    *launcher, python = launch_prefix("mpiexec", 3)
    shell = [*launcher, "sh", "-c", f'{python} "$@"; exit $?', "sh"]
    done = run(tmp_path, shell, SLEEP, "1", "--meet_timeout", "2")
    assert done.statuses != [0]
    assert all(line.startswith("error: some of 3 ranks have not come within 2 s") for line in done.error_lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault, attempts_that_met, status",
    [
        # The first attempt meets and fails: its keys are still in the store when rank 1 does not come to the second.
        ("time.sleep(300 * int(attempt))", 1, 1),
        # The first attempt waits in vain, the second succeeds.
        ("time.sleep(300 * (1 - int(attempt)))", 1, 0),
    ],
)
def test_restarts_by_torchrun(tmp_path, fault, attempts_that_met, status):
    prefix = [*launch_prefix("torchrun"), "--max_restarts", "1"]
    if status:
        fault += "; import atexit; atexit.register(lambda: os.kill(os.getpid(), 9))"
    done = run(tmp_path, prefix, fault, "1", "--meet_timeout", "3")
    assert done.statuses == [status], done.stderr
    assert [line[:42] for line in done.error_lines] == ["error: rank 1 of 2 has not come within 3 s"]
    assert len(list(tmp_path.glob("met*"))) == 2 * attempts_that_met


@pytest.mark.slow
def test_tasks_of_slurm(tmp_path):
    """Rank 0 holds the store and is the first to give up, as rank 2 has come later; nobody ends one for the other."""
    (tmp_path / "program.py").write_text(PROGRAM)
    step = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": str(free_port())}
    tasks = [
        subprocess.Popen(
            [sys.executable, "program.py", "", "1", "--meet_timeout", "5"],
            env=clean_environment(**step, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), LATER=str(1.5 * rank)),
            cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 2)
    ]  # fmt: skip
    for task in tasks:
        _, stderr = task.communicate(timeout=TIMEOUT)
        assert task.returncode == 1
        assert f"error: rank 1 of 3 has not come within 5 s: {ADVICE}\n" in stderr
        assert stderr.count("error:") == 1 and "Traceback" not in stderr


@pytest.mark.slow
def test_without_rank_0_there_is_no_store(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    done = subprocess.run(
        [sys.executable, "program.py", "", "0", "--meet_timeout", "1"], cwd=tmp_path, text=True, timeout=TIMEOUT,
        env=clean_environment(**variables, RANK="1", LOCAL_RANK="1"), capture_output=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch("error: rank 0 of 2 has not come within 1 s: .*\n", done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["mpiexec", "torchrun"])
def test_a_wrong_value_is_refused_once(tmp_path, launcher):
    done = run(tmp_path, launch_prefix(launcher), "", "1", "--meet_timeout", "soon")
    assert done.statuses == [2 if launcher == "mpiexec" else 1]
    line = "error: --meet_timeout: found 'soon', expected a whole number of seconds (0: no deadline)"
    assert done.error_lines == [line]


@pytest.mark.parametrize(
    "arguments, seconds",
    [
        ([], meeting.DEFAULT),
        (["--meet_timeout", "5"], 5),
        (["--meet_timeout=5"], 5),
        (["--meet_timeout", "0"], 0),
        (["--seed", "1", "--meet_timeout", "5", "--meet_timeout=7", "--log_dir", "x"], 7),
        (["--log_dir=--meet_timeout=3", "meet_timeout", "4", "--meet_timeouts", "3"], meeting.DEFAULT),
        (["--meet_timeout"], meeting.DEFAULT),  # the program's parser refuses it
    ],
)
def test_reading_the_flag(monkeypatch, arguments, seconds):
    monkeypatch.setattr(sys, "argv", ["program.py", *arguments])
    assert meeting.seconds_to_meet() == seconds


@pytest.mark.parametrize("text", ["x", "", "-1", "1.5", "1e3", "٣", "5 ", "9" * 30])
def test_reading_a_wrong_value(monkeypatch, text):
    monkeypatch.setattr(sys, "argv", ["program.py", f"--meet_timeout={text}"])
    with pytest.raises(InputError, match="--meet_timeout: found '.*', expected a whole number"):
        meeting.seconds_to_meet()


def test_every_program_knows_the_flag_and_a_run_goes_on_with_another_value():
    """For the scripts see `test_script_flags`."""
    for parser, more in ((evaluator._create_parser(), []), (make_reference._create_parser(), ["--image_size", "8"])):
        assert parser.parse_args(["a", "b", *more]).meet_timeout == meeting.DEFAULT
        assert parser.parse_args(["a", "b", *more, "--meet_timeout", "5"]).meet_timeout == 5
    assert "meet_timeout" in CHANGEABLE_FLAGS and "meet_timeout" in CHANGEABLE


@pytest.mark.slow
def test_mpi_is_what_mpi4py_makes_of_it(tmp_path):
    """Joined by `run_main`, errors are exceptions, and all of MPI's threads are to be had."""
    (tmp_path / "program.py").write_text(
        "from guided_diffusion import dist_util\n"
        "def main():\n"
        "    from mpi4py import MPI\n"
        "    assert MPI.Is_initialized() and MPI.Query_thread() == MPI.THREAD_MULTIPLE\n"
        "    for comm in (MPI.COMM_SELF, MPI.COMM_WORLD, MPI.COMM_WORLD.Dup()):\n"
        "        assert comm.Get_errhandler() == MPI.ERRORS_RETURN\n"
        "    try: MPI.COMM_WORLD.send(1, dest=99)\n"
        "    except MPI.Exception: print('caught')\n"
        "dist_util.run_main(main)\n"
    )
    done = run_to_end([*launch_prefix("mpiexec"), str(tmp_path / "program.py")], tmp_path, TIMEOUT)
    assert (done.statuses, done.stdout.count("caught"), done.stderr) == ([0], 2, "")


@pytest.mark.slow
def test_a_name_without_an_address(run, tmp_path):
    """torchrun gives rank 0's host name, which in a container may mean nothing; PyTorch would try it for minutes."""
    program = tmp_path / "program.py"
    program.write_text("from guided_diffusion import dist_util\ndist_util.run_main(dist_util.setup_dist)\n")
    lone = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "no-such-host.invalid"}
    start = time.monotonic()
    ended = run(program, fails=True, environment=lone | {"MASTER_PORT": "29400"})
    assert time.monotonic() - start < 45  # mostly the start of Python on a busy machine
    (line,) = ended.error_lines
    assert "MASTER_ADDR no-such-host.invalid: this name has no address" in line and "--local_addr 127.0.0.1" in line

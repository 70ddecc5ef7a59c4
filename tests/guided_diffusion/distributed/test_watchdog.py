"""A rank that dies, freezes or is cut off ends all of them; nothing else does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from guided_diffusion.distributed.watchdog import PATIENCE_VARIABLE, Heartbeat
from guided_diffusion.errors import InputError
from tests.support.helpers import clean_environment, descendants, kill_tree, launch_prefix, two_ranks

# Rank 1 says its process id and is then dealt with; the others wait for it in a collective.
PROGRAM = """
import os, sys, time
import torch, torch.distributed as dist
from guided_diffusion import dist_util

def main():
    dist_util.setup_dist()
    rank = dist_util.get_rank()
    open(f"pid{rank}.tmp", "w").write(str(os.getpid()))
    os.rename(f"pid{rank}.tmp", f"pid{rank}")
    if rank == int(sys.argv[1]):
        time.sleep(300)
    dist.all_reduce(torch.ones(1))
    time.sleep(300)

dist_util.run_main(main)
"""
PATIENCE = 4


def start(folder: Path, launcher: str, victim: int) -> subprocess.Popen:
    """The program under a launcher, at the point where rank `victim` keeps the other waiting."""
    (folder / "program.py").write_text(PROGRAM)
    with (folder / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [*launch_prefix(launcher), "program.py", str(victim)],
            cwd=folder, env=clean_environment(**{PATIENCE_VARIABLE: str(PATIENCE)}), stderr=stderr,
            stdout=stderr, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + 60
    while not all((folder / f"pid{rank}").exists() for rank in (0, 1)):
        assert process.poll() is None and time.monotonic() < deadline, (folder / "stderr").read_text()
        time.sleep(0.05)
    time.sleep(1.5)  # the heartbeats start just after the group
    return process


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher, sent, victim",
    [
        ("mpiexec", signal.SIGKILL, 1),
        ("torchrun", signal.SIGKILL, 1),
        ("mpiexec", signal.SIGSTOP, 1),
        ("mpiexec", signal.SIGSTOP, 0),  # it holds the store
        ("torchrun", signal.SIGSTOP, 1),
    ],
)
def test_a_lost_rank_ends_all_and_leaves_nothing(tmp_path, launcher, sent, victim):
    process = start(tmp_path, launcher, victim)
    family = descendants(process.pid)
    pid = int((tmp_path / f"pid{victim}").read_text())
    os.kill(pid, sent)
    try:
        status = process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        pytest.fail(f"still running: {(tmp_path / 'stderr').read_text()}")
    finally:
        kill_tree(process.pid)
    assert status != 0
    if sent == signal.SIGSTOP:
        said = f"has not been heard of for {PATIENCE} s"
        lines = [line for line in (tmp_path / "stderr").read_text().splitlines() if "error: rank" in line]
        assert f"rank {victim} (" in lines[0] and f"pid {pid}) {said}" in lines[0]
    deadline = time.monotonic() + 10
    while left := [pid for pid in family if is_alive(pid)]:
        assert time.monotonic() < deadline, f"left over: {left}"
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_without_a_launcher_the_others_notice(tmp_path, fork_server, victim):
    """As on two machines: nobody ends one rank when the other fails."""
    (tmp_path / "program.py").write_text(
        PROGRAM.replace("time.sleep(300)\n    dist", "raise ValueError('the first rank\\'s words')\n    dist")
    )
    environments = [env | {PATIENCE_VARIABLE: str(PATIENCE)} for env in two_ranks()]
    run = fork_server.run(tmp_path / "program.py", [str(victim)], tmp_path, 60, environments)
    assert run.statuses == [1, 1]
    assert "ValueError: the first rank's words" in run.stderr


@pytest.fixture
def stores():
    """Two connections to one store."""
    server = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    yield [dist.PrefixStore("test", server.clone()) for _ in range(2)]


class Ranks:
    """Two heartbeats in this process."""

    def __init__(self, stores):
        self.ended: list[tuple[int, int]] = []
        self.hearts = [Heartbeat(lambda status, rank=rank: self.end(rank, status)) for rank in (0, 1)]
        starters = [
            threading.Thread(target=heart.start, args=(store, rank, 2))
            for rank, (heart, store) in enumerate(zip(self.hearts, stores, strict=True))
        ]
        for starter in starters:
            starter.start()
        for starter in starters:
            starter.join(timeout=30)

    def end(self, rank: int, status: int) -> None:
        self.ended.append((rank, status))
        self.hearts[rank]._stopped.set()  # in a real program the process is gone now

    def stop(self) -> None:
        for heart in self.hearts:
            heart.stop()


@pytest.fixture
def ranks(stores, monkeypatch):
    monkeypatch.setenv(PATIENCE_VARIABLE, "8")
    both = Ranks(stores)
    yield both
    both.stop()


def wait_for(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_healthy_ranks_go_on(ranks):
    time.sleep(10)
    assert ranks.ended == [] and all(heart.beating for heart in ranks.hearts)


@pytest.mark.slow
def test_a_failing_rank_gives_its_reason(ranks, capfd):
    ranks.hearts[1].tell(2, "InputError: no such file")
    ranks.hearts[1].stop()
    wait_for(lambda: ranks.ended)
    assert ranks.ended == [(0, 2)]
    line = capfd.readouterr().err
    assert line.startswith("error: rank 1 (") and line.endswith("failed: InputError: no such file\n")


@pytest.mark.slow
def test_a_rank_that_is_done_may_go(ranks):
    ranks.stop()
    time.sleep(3)
    assert ranks.ended == []


def test_no_patience_means_no_watching(monkeypatch):
    monkeypatch.setenv(PATIENCE_VARIABLE, "0")
    heart = Heartbeat(lambda status: None)
    heart.start(dist.HashStore(), 0, 2)
    assert not heart.beating
    heart.tell(1, "nobody listens")
    heart.stop()


def test_malformed_patience_is_named(monkeypatch):
    monkeypatch.setenv(PATIENCE_VARIABLE, "long")
    with pytest.raises(InputError, match=f"{PATIENCE_VARIABLE}: expected a whole number, found 'long'"):
        Heartbeat(lambda status: None).start(dist.HashStore(), 0, 2)


@pytest.mark.slow
def test_a_single_process_has_no_heartbeat(tmp_path):
    code = (
        "import threading; from guided_diffusion import dist_util\n"
        "def main(): dist_util.setup_dist(); print(threading.active_count())\n"
        "dist_util.run_main(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1\n")

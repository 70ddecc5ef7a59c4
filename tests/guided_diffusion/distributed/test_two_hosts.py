"""Two hosts: network namespaces with own addresses, host names and launchers, joined by a link that can be cut.

Needs root's CAP_NET_ADMIN and iproute2's `ip`, and is left out elsewhere. With -s it tells what happens when.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from guided_diffusion.distributed.watchdog import PATIENCE_VARIABLE
from tests.faults.jobs import SAMPLES, STEPS, Job, make_jobs
from tests.support.helpers import TIMEOUT, clean_environment, descendants, executable, kill_tree

pytestmark = pytest.mark.slow

PATIENCE = 6
LINK = "eth0"
STARTED = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - STARTED:6.1f} s  {text}", flush=True)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass
class Host:
    """A network namespace."""

    name: str
    address: str
    processes: list[subprocess.Popen] = field(default_factory=list)

    def start(self, command: list[str], output: Path) -> subprocess.Popen:
        """Run a command on the host, both its outputs into a file."""
        environment = clean_environment(GLOO_SOCKET_IFNAME=LINK, **{PATIENCE_VARIABLE: str(PATIENCE)})
        with output.open("w") as file:
            process = subprocess.Popen(
                [*self.prefix(output.parent), *command],
                stdout=file, stderr=file, env=environment, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def prefix(self, folder: Path) -> list[str]:
        """What goes before a command that is to run on the host, under the host's name."""
        names = folder / f"{self.name}.hosts"
        names.write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        # "$0" "$@", so that nothing needs quoting.
        setup = f'mount --bind {names} /etc/hosts && hostname {self.name} && exec "$0" "$@"'
        return ["ip", "netns", "exec", self.name, "unshare", "--uts", "--mount", "sh", "-c", setup]

    def set_link(self, state: str) -> None:
        """`up` or `down`."""
        ip("-n", self.name, "link", "set", LINK, state)

    def crash(self) -> None:
        """Everything on it is gone at once."""
        for process in self.processes:
            kill_tree(process.pid)
            process.wait()


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    for program in ("ip", "unshare"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    a, b = (Host(f"edhost{letter}{os.getpid()}", f"10.77.0.{n}") for n, letter in ((1, "a"), (2, "b")))
    try:
        try:
            ip("netns", "add", a.name)
            ip("netns", "add", b.name)
            ip("-n", a.name, "link", "add", LINK, "type", "veth", "peer", "name", LINK, "netns", b.name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here (CAP_NET_ADMIN?): {error.stderr.strip()}")
        for host in (a, b):
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", LINK)
            ip("-n", host.name, "link", "set", "lo", "up")
            host.set_link("up")
        yield a, b
    finally:
        for host in (a, b):
            host.crash()
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> dict[str, Job]:
    return make_jobs(tmp_path_factory.mktemp("jobs"))


def torchrun(hosts: tuple[Host, Host], host: Host, nnodes: str, *more: str) -> list[str]:
    return [
        executable("torchrun"), "--nnodes", nnodes, "--nproc_per_node", "1", "--rdzv_backend", "c10d",
        "--rdzv_id", "run", "--rdzv_endpoint", f"{hosts[0].address}:29400", "--local_addr", host.address, *more,
    ]  # fmt: skip


def wait_for(condition: Callable[[], bool], processes: list[subprocess.Popen], outputs: list[Path]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        text = "\n".join(path.read_text() for path in outputs)
        assert time.monotonic() < deadline, text
        assert all(process.poll() is None for process in processes), text
        time.sleep(0.05)


def ends(processes: list[subprocess.Popen], outputs: list[Path], seconds: float = TIMEOUT) -> list[int]:
    try:
        return [process.wait(timeout=seconds) for process in processes]
    except subprocess.TimeoutExpired:
        pytest.fail("still running:\n" + "\n".join(path.read_text()[-3000:] for path in outputs))


def errors(output: Path) -> str:
    return " | ".join(line for line in output.read_text().splitlines() if "error: " in line)


@pytest.mark.slow
def test_training_with_the_link_cut(hosts, jobs, run, tmp_path):
    job, folder, outputs = jobs["training"], tmp_path / "shared", [tmp_path / "a", tmp_path / "b"]
    run(job.program, job.arguments(tmp_path / "whole"), launcher="fork2")

    def start() -> list[subprocess.Popen]:
        return [
            host.start([*torchrun(hosts, host, "2"), str(job.program), *job.arguments(folder)], output)
            for host, output in zip(hosts, outputs, strict=True)
        ]

    processes = start()
    say("training started on two hosts")
    wait_for(lambda: job.finished(folder) >= 5, processes, outputs)
    hosts[1].set_link("down")
    began = time.monotonic()
    say(f"link cut after step {job.finished(folder)} of {STEPS}")
    wait_for(lambda: all("error: " in path.read_text() for path in outputs), [], outputs)
    say(f"both ranks have ended, {time.monotonic() - began:.1f} s after the cut")
    (status,) = ends(processes[:1], outputs)
    hosts[1].crash()  # its torchrun waits for the network, for a quarter of an hour
    say(f"host a's launcher has ended with {status}, {time.monotonic() - began:.1f} s after the cut; host b's is ended")
    for name, output in zip("ab", outputs, strict=True):
        say(f"host {name}: {errors(output)}")
    assert status != 0 and job.result(folder) is None
    assert all("has not been heard of" in errors(output) for output in outputs)

    hosts[1].set_link("up")
    say("link restored, the same commands again")
    assert ends(start(), outputs) == [0, 0]
    assert "resuming from" in outputs[0].read_text() + outputs[1].read_text()
    assert job.result(folder) == job.result(tmp_path / "whole")
    say("finished: model, average and optimizer equal those of the undisturbed run in every byte")


@pytest.mark.slow
def test_sampling_goes_on_with_the_host_that_is_left(hosts, jobs, run, tmp_path):
    job, folder, outputs = jobs["sampling"], tmp_path / "shared", [tmp_path / "a", tmp_path / "b"]
    run(job.program, job.arguments(tmp_path / "whole"))
    elastic = ("--max_restarts", "3", "--rdzv_conf", "last_call_timeout=2")
    processes = [
        host.start([*torchrun(hosts, host, "1:2", *elastic), str(job.program), *job.arguments(folder)], output)
        for host, output in zip(hosts, outputs, strict=True)
    ]
    say("sampling started on two hosts")
    wait_for(lambda: job.finished(folder) > 0, processes, outputs)
    hosts[1].crash()
    hosts[1].set_link("down")
    before = {path.name: path.read_bytes() for path in (folder / "parts").glob("part-*.npz")}
    say(f"host b lost after {job.finished(folder)} of {SAMPLES} images")
    assert ends([processes[0]], outputs) == [0]
    say(f"host a: {errors(outputs[0]) or 'no error'}")
    say("host a has finished alone")
    assert before, "it was lost in the middle"
    with np.load(next(folder.glob("samples_*.npz"))) as arrays:
        assert arrays["arr_0"].tobytes() == job.result(tmp_path / "whole")["arr_0"]
    say("the images equal those of an undisturbed single process in every byte")
    with contextlib.suppress(FileNotFoundError):
        assert not list((folder / "parts").iterdir())


WAITS_FOR_RANK_1 = """
import time, torch, torch.distributed as dist
from guided_diffusion import dist_util

def main():
    dist_util.setup_dist()
    print("met", flush=True)
    time.sleep(300 * dist_util.get_rank())
    dist.all_reduce(torch.ones(1))

dist_util.run_main(main)
"""


@pytest.mark.slow
def test_mpiexec_with_a_host_file_and_the_link_cut(hosts, tmp_path):
    pytest.importorskip("mpi4py")
    (tmp_path / "waits.py").write_text(WAITS_FOR_RANK_1)
    (tmp_path / "hostfile").write_text("".join(f"{host.address}:1\n" for host in hosts))
    # In place of ssh: finds the host's name among the arguments, and runs what comes after it.
    shell = tmp_path / "to_host"
    cases = [f'{host.address}) shift; exec {shlex.join(host.prefix(tmp_path))} sh -c "$*";;' for host in hosts]
    shell.write_text("\n".join(["#!/bin/sh", "while :; do case $1 in", *cases, "*) shift;; esac; done"]) + "\n")
    shell.chmod(0o755)
    command = [
        executable("mpiexec"), "-f", str(tmp_path / "hostfile"), "-n", "2", "-iface", LINK, "-launcher", "rsh",
        "-launcher-exec", str(shell), sys.executable, str(tmp_path / "waits.py"),
    ]  # fmt: skip
    output = tmp_path / "a"
    process = hosts[0].start(command, output)
    wait_for(lambda: output.read_text().count("met") == 2, [process], [output])
    time.sleep(2)
    hosts[1].set_link("down")
    began = time.monotonic()
    say("two ranks under mpiexec with a host file; link cut")
    ranks = [pid for pid in descendants(process.pid) if b"waits.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert ends([process], [output])[0] != 0
    say(f"mpiexec has ended, {time.monotonic() - began:.1f} s after the cut: {errors(output)}")
    assert "error: rank 1 (" in output.read_text()
    while any(Path(f"/proc/{pid}").exists() for pid in ranks):
        assert time.monotonic() < began + 60
        time.sleep(0.1)
    say(f"no process is left on either host, {time.monotonic() - began:.1f} s after the cut")

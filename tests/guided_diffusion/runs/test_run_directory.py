"""Who owns a run's directory: one process, for as long as it lives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from guided_diffusion.errors import InputError
from guided_diffusion.io import atomic
from guided_diffusion.runs import run_directory
from guided_diffusion.runs.run_directory import OWNER, Owner, check_held, claim, release
from guided_diffusion.system import processes
from tests.support.helpers import SCRIPTS, as_arguments, clean_environment, read_npz

HOLDER = (
    "import sys, time\n"
    "from guided_diffusion.runs import run_directory\n"
    "run_directory.claim(sys.argv[1], print)\n"
    "print('held', flush=True)\n"
    "time.sleep(60)\n"
)


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    yield
    release()


@pytest.fixture
def holder(tmp_path) -> Iterator[subprocess.Popen]:
    """A process that owns tmp_path / "run"."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, env=clean_environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def elsewhere(**changes) -> dict:
    """An owner on another machine."""
    return asdict(replace(Owner.here(), host="gpu07", pid=4711, machine="gpu07 boot pid:[1]", **changes))


def test_a_directory_is_owned_until_it_is_released(tmp_path):
    claim(tmp_path / "run", pytest.fail)
    claim(tmp_path / "run" / ".." / "run", pytest.fail)  # again, by the same process
    check_held(tmp_path / "run")
    assert json.loads((tmp_path / "run" / OWNER).read_text())["pid"] == os.getpid()
    release()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_second_process_is_refused_and_a_killed_one_is_not_missed(tmp_path, holder, capsys):
    with pytest.raises(InputError, match=rf"run: in use by process {holder.pid} on .*; .*another --log_dir"):
        claim(tmp_path / "run", pytest.fail)
    assert (tmp_path / "run" / OWNER).exists()
    holder.kill()
    holder.wait()
    (tmp_path / "run" / f".run.json.{processes.machine_digest()}-{holder.pid}-0123abcd.tmp").touch()
    began = time.monotonic()
    claim(tmp_path / "run", pytest.fail)
    assert time.monotonic() - began < 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == [OWNER]


def test_a_process_id_that_is_used_again_is_another_process(tmp_path):
    (tmp_path / OWNER).write_text(json.dumps(asdict(replace(Owner.here(), pid=os.getppid(), started="1"))))
    claim(tmp_path, pytest.fail)
    check_held(tmp_path)


def test_what_this_process_could_not_remove_is_its_own(tmp_path):
    (tmp_path / OWNER).write_text(json.dumps(asdict(Owner.here())))
    claim(tmp_path, pytest.fail)
    check_held(tmp_path)


def test_a_process_that_is_hidden_from_us_is_alive(tmp_path, holder, monkeypatch):
    """On hosts whose /proc shows everyone only their own processes."""
    real = Path.read_bytes

    def hidden(path):
        if str(path) == f"/proc/{holder.pid}/stat":
            raise FileNotFoundError(path)
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", hidden)
    assert processes.start_time(holder.pid) == "" and processes.start_time(2**22 + 1) is None
    with pytest.raises(InputError, match="in use by"):
        claim(tmp_path / "run", pytest.fail)


def test_other_programs_temporary_files_stay(tmp_path):
    ours = f".status.json.{processes.machine_digest()}-{2**22 + 1}-0123abcd.tmp"
    for name in (".report.20261128.tmp", ".cache.deadbeef.tmp", ours):
        (tmp_path / name).touch()
    claim(tmp_path, pytest.fail)
    assert {path.name for path in tmp_path.iterdir()} == {".report.20261128.tmp", ".cache.deadbeef.tmp", OWNER}


def test_a_quicker_owner_gets_its_file_back_without_links(tmp_path, monkeypatch):
    """Between the look at a dead owner's file and its removal another process has taken the folder."""
    path, real = tmp_path / OWNER, os.rename
    path.write_text(json.dumps(asdict(replace(Owner.here(), pid=2**22 + 1))))

    def rename(old, new):
        if old == path and "4711" not in path.read_text():
            path.write_text(json.dumps(elsewhere()))
        real(old, new)

    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "link", no_links)
    run_directory._free(path)
    assert json.loads(path.read_text())["pid"] == 4711 and [p.name for p in tmp_path.iterdir()] == [OWNER]


ODD = json.dumps(asdict(Owner.here()) | {"pid": "../1"})


@pytest.mark.slow
@pytest.mark.parametrize("contents", [json.dumps(elsewhere()), "", '{"pid": 3}', ODD])
def test_an_owner_elsewhere_is_waited_for_until_it_is_silent(tmp_path, monkeypatch, capsys, contents):
    monkeypatch.setattr(run_directory, "SILENT_SECONDS", 1.5)
    (tmp_path / OWNER).write_text(contents)
    began = time.monotonic()
    claim(tmp_path, pytest.fail)
    assert 1.4 < time.monotonic() - began < 10
    told = capsys.readouterr().err
    assert ("taking over from process 4711 on gpu07" if "4711" in contents else "an unknown process") in told


def test_an_owner_elsewhere_that_is_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory, "SILENT_SECONDS", 30.0)
    (tmp_path / OWNER).write_text(json.dumps(elsewhere()))
    monkeypatch.setattr(run_directory.time, "sleep", lambda _: os.utime(tmp_path / OWNER, (time.time() + 5,) * 2))
    with pytest.raises(InputError, match="in use by process 4711 on gpu07"):
        claim(tmp_path, pytest.fail)
    assert [path.name for path in tmp_path.iterdir()] == [OWNER]


def test_silence_is_measured_by_the_file_system(tmp_path):
    """An owner that left a long time ago is not waited for."""
    (tmp_path / OWNER).write_text(json.dumps(elsewhere()))
    os.utime(tmp_path / OWNER, (time.time() - 3600,) * 2)
    began = time.monotonic()
    claim(tmp_path, pytest.fail)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("event", ["taken over", "moved", "deleted"])
def test_who_loses_a_directory_is_told(tmp_path, monkeypatch, event):
    monkeypatch.setattr(run_directory, "TOUCH_SECONDS", 0.05)
    told: list[str] = []
    directory = tmp_path / "run"
    claim(directory, told.append)
    time.sleep(0.2)
    assert not told
    if event == "taken over":
        atomic.write_json(directory / OWNER, elsewhere())
    elif event == "moved":
        directory.rename(tmp_path / "moved")
    else:
        (directory / OWNER).unlink()
    with pytest.raises(InputError, match="no longer this run's"):
        check_held(directory)
    time.sleep(0.3)
    assert len(told) == 1 and str(directory) in told[0]
    release()
    assert (directory / OWNER).exists() == (event == "taken over"), "what is another's stays"


def test_it_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory, "TOUCH_SECONDS", 0.05)
    claim(tmp_path, pytest.fail)
    os.utime(tmp_path / OWNER, (1.0, 1.0))
    time.sleep(0.3)
    assert time.time() - (tmp_path / OWNER).stat().st_mtime < 5


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def fail(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    claim(tmp_path, pytest.fail)
    check_held(tmp_path)
    with pytest.raises(FileExistsError):
        atomic.create_exclusively(tmp_path / OWNER, {})
    check_held(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("left_behind", [False, True])
def test_of_many_at_once_one_gets_it(tmp_path, left_behind):
    """Also where all of them find the file of a process that has ended."""
    for number in range(5):
        directory = tmp_path / str(number)
        directory.mkdir()
        if left_behind:
            (directory / OWNER).write_text(json.dumps(asdict(replace(Owner.here(), pid=2**22 + 1))))
        gate, (wait, go) = time.monotonic() + 0.2, os.pipe()
        for _ in range(8):
            if os.fork() == 0:
                status = 1
                try:
                    os.close(go)
                    time.sleep(max(0.0, gate - time.monotonic()))
                    claim(directory, print)
                    status = 0
                    os.read(wait, 1)  # alive while the others try
                except InputError as error:
                    status = 2 if "in use by" in str(error) else 1
                finally:
                    os._exit(status)
        os.close(wait)
        statuses = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(7)]
        os.close(go)
        statuses.append(os.waitstatus_to_exitcode(os.wait()[1]))
        assert statuses == [2] * 7 + [0]


@pytest.mark.slow
def test_two_samplings_at_once(run, tmp_path, checkpoints):
    """The second is refused in one line that names the first; the rows are of one seed."""
    flags = {"model_path": checkpoints["model"], "num_samples": 12, "batch_size": 1, "log_dir": "both"}

    def start(seed: int) -> subprocess.Popen:
        command = [sys.executable, str(SCRIPTS / "image_sample.py"), *as_arguments(flags | {"seed": seed})]
        return subprocess.Popen(command, cwd=tmp_path, env=clean_environment(), stderr=subprocess.PIPE, text=True)

    jobs = {seed: start(seed) for seed in (1, 2)}
    ended = {seed: (job.communicate(timeout=120)[1], job.returncode) for seed, job in jobs.items()}
    (winner,) = (seed for seed, (_, status) in ended.items() if status == 0)
    errors, status = ended[3 - winner]
    assert status == 2 and f"in use by process {jobs[winner].pid} on " in errors or "holds samples of another" in errors
    run("image_sample", flags | {"seed": winner, "log_dir": "alone"})
    rows = {name: read_npz(tmp_path / name / "samples_12x8x8x3.npz")["arr_0"] for name in ("both", "alone")}
    assert (rows["both"] == rows["alone"]).all()
    assert not list(tmp_path.glob("*/owner.json")) and Path(tmp_path / "both" / "run.json").exists()

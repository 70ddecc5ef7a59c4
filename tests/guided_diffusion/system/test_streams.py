"""Standard streams that are closed, broken or on a full disk, and names of folders that are not text."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from guided_diffusion.errors import InputError
from guided_diffusion.system import streams
from tests.support.helpers import SCRIPTS, TIMEOUT, as_arguments, clean_environment, read_npz

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")

# What may go to the streams of a run: much, from all sides, also after the failure and from another process.
TALKATIVE = """
import logging, os, subprocess, sys, warnings
from guided_diffusion import dist_util, logger
from guided_diffusion.distributed.progress import Progress
from guided_diffusion.runs import failure_log

def main():
    logger.configure(dir="out")
    failure_log.keep_warnings()
    with Progress(3, "steps") as progress:
        for i in range(3):
            logger.log("step", i, "\\udcff", "x" * 9000)
            print("step", i)
            sys.stderr.write("a word\\n")
            warnings.warn(f"a warning {i}")
            progress.update()
    subprocess.run(["true"], check=True)
    os.fstat(0), os.fstat(1), os.fstat(2)
    progress.finish()

dist_util.run_main(main)
"""


def shell(line: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a line of bash in which $PYTHON is this Python; a pipe ends with the status of its first program."""
    return subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"], cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT,
        env=clean_environment(PYTHON=sys.executable, **environment),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirection", "unbuffered"),
    [
        (">&-", False),
        ("2>&-", False),
        ("<&- >&- 2>&-", True),
        ("| head -c 100", True),
        ("2>&1 | head -c 100", False),
        pytest.param(">/dev/full", False, marks=needs_full),
        pytest.param(">/dev/full 2>/dev/full", True, marks=needs_full),
    ],
)
def test_no_run_ends_because_nobody_can_read_what_it_says(tmp_path, redirection, unbuffered):
    (tmp_path / "program.py").write_text(TALKATIVE)
    environment = {"PYTHONUNBUFFERED": "1"} if unbuffered else {}
    done = shell(f"$PYTHON program.py {redirection}", tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    log = (tmp_path / "out" / "log.txt").read_text()
    assert all(f"step {i} \\udcff xxx" in log and f"a warning {i}" in log for i in range(3))
    assert "finished: 3 steps" in log and "Traceback" not in log


@pytest.mark.slow
@needs_full
def test_real_runs_end_well_with_all_streams_on_a_full_disk_or_closed(tmp_path, images, checkpoints):
    sampling = {"model_path": checkpoints["model"], "num_samples": 3, "timestep_respacing": "3", "log_dir": "samples"}
    training = {
        "data_dir": images, "image_size": 8, "num_channels": 32, "num_res_blocks": 1, "num_heads": 1, "batch_size": 4,
        "attention_resolutions": "4", "lr_anneal_steps": 3, "log_interval": 1, "log_dir": "training",
    }  # fmt: skip
    for script, flags, closed in [
        ("image_sample", sampling, "<&- >&- 2>&-"),
        ("image_train", training, ">/dev/full 2>/dev/full"),
    ]:
        command = " ".join([str(SCRIPTS / f"{script}.py"), *as_arguments(flags)])
        done = shell(f"$PYTHON {command} {closed}", tmp_path)
        assert done.returncode == 0 and not done.stderr
    assert read_npz(tmp_path / "samples" / "samples_3x8x8x3.npz")["arr_0"].shape == (3, 8, 8, 3)
    assert list((tmp_path / "training").glob("model*.pt"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirection", "status", "said"),
    [
        ("| head -1", 0, ""),
        pytest.param(">/dev/full", 2, "error: standard output: cannot be written: No space left on device\n",
                     marks=needs_full),
        pytest.param(">/dev/full 2>&1", 2, "", marks=needs_full),
    ],
)  # fmt: skip
def test_programs_that_are_there_to_print_tell_when_they_cannot(tmp_path, redirection, status, said):
    done = shell(f"$PYTHON -m experiments list {redirection}", tmp_path)
    assert (done.returncode, done.stderr) == (status, said)
    assert done.stdout.count("\n") == (1 if "head" in redirection else 0)


@needs_full
def test_a_result_that_cannot_be_printed(capsys, monkeypatch):
    streams.print_result(["one", "two"])
    assert capsys.readouterr().out == "one\ntwo\n"
    for best_effort in (False, True):
        full = open(FULL, "w")  # noqa: SIM115
        monkeypatch.setattr(sys, "stdout", streams.BestEffort(full) if best_effort else full)
        with pytest.raises(InputError, match="standard output: cannot be written: No space left"):
            streams.print_result(["one"])
        streams._settle(full)
        full.close()  # what was left went nowhere


def test_a_stream_keeps_trying_and_is_otherwise_the_one_that_it_wraps(capsys):
    class Disk(io.StringIO):
        full = False

        def write(self, text):
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    disk = Disk()
    stream = streams.BestEffort(disk)
    assert print("one", file=stream, flush=True) is None and stream.encoding == disk.encoding and not stream.isatty()
    disk.full = True
    assert stream.write("two\n") == 4
    disk.full = False
    stream.write("three\n")
    assert disk.getvalue() == "one\nthree\n"
    disk.close()
    stream.write("four")
    stream.flush()


NAME = os.fsdecode(b"r\xff\xe9")
LOCALES = [{"LC_ALL": "C"}, {"LC_ALL": "C.UTF-8"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]


@pytest.mark.parametrize("name", ["Läufe", NAME], ids=["non-ASCII", "non-UTF-8"])
def test_folders_of_any_name(run, tmp_path, images, checkpoints, name):
    flags = {"model_path": checkpoints["model"], "num_samples": 2, "timestep_respacing": "2", "log_dir": name}
    run("image_sample", flags)
    assert read_npz(tmp_path / name / "samples_2x8x8x3.npz")["arr_0"].shape == (2, 8, 8, 3)
    logged = str(tmp_path / name).encode(errors="backslashreplace").decode()
    assert f"Logging to {logged}\n" in (tmp_path / name / "log.txt").read_text(encoding="utf-8")
    flags = {
        "data_dir": images, "image_size": 8, "classifier_width": 32, "classifier_depth": 1, "batch_size": 4,
        "classifier_attention_resolutions": "4", "iterations": 2, "log_interval": 1, "log_dir": f"{name}/training",
    }  # fmt: skip
    run("classifier_train", flags)
    assert list((tmp_path / name / "training").glob("model*.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("locale", LOCALES, ids=lambda locale: " ".join(f"{k}={v}" for k, v in locale.items()))
def test_folders_of_any_name_in_any_locale(tmp_path, checkpoints, locale):
    flags = {"model_path": checkpoints["model"], "num_samples": 2, "timestep_respacing": "2", "log_dir": NAME}
    variables = clean_environment()
    for variable in ("LANG", "LC_CTYPE", "PYTHONIOENCODING", "PYTHONUTF8"):
        variables.pop(variable, None)
    done = subprocess.run(
        [sys.executable, SCRIPTS / "image_sample.py", *as_arguments(flags)], cwd=tmp_path, env=variables | locale,
        capture_output=True, timeout=TIMEOUT,
    )  # fmt: skip
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert (tmp_path / NAME / "samples_2x8x8x3.npz").exists()
    assert rb"/r\udcff\udce9" in done.stdout and rb"/r\udcff\udce9" in (tmp_path / NAME / "log.txt").read_bytes()

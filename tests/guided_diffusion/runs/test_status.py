"""status.json in every run's directory, `ed-dpm status`, and what a run leaves about its end."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from experiments import cli
from guided_diffusion import logger
from guided_diffusion.distributed.progress import Progress
from guided_diffusion.errors import InputError
from guided_diffusion.runs import failure_log, status
from guided_diffusion.runs.status import Status, note_failure

NOW = datetime.now().astimezone()


def read(directory: Path) -> dict:
    return status.read(directory / "status.json")


class Clock:
    """time.monotonic for `status`, set by hand."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(status.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def test_rate_and_time_left(tmp_path, clock):
    run = Status(tmp_path, 100, "images", done=40)
    assert {"state": "running", "done": 40, "total": 100, "rate": None, "eta": None}.items() <= read(tmp_path).items()
    clock.now += 10
    run.alive(60)
    found = read(tmp_path)
    assert (found["done"], found["rate"], found["eta"], found["longest_silence"]) == (60, 2.0, 20.0, 10.0)
    assert (found["pid"], found["last_error"]) == (os.getpid(), None)
    assert abs(datetime.fromisoformat(found["started"]) - datetime.now().astimezone()) < timedelta(minutes=1)


def test_it_is_written_now_and_then(tmp_path, clock, monkeypatch):
    writes = []
    monkeypatch.setattr(status, "_replace", lambda path, fields: writes.append(fields["done"]))
    run = Status(tmp_path, 1000, "steps")
    for done in range(1, 101):
        clock.now += 0.5
        run.alive(done)
    assert writes == list(range(0, 101, 10)), "every five seconds"


def test_a_reader_never_sees_half_of_it(tmp_path, monkeypatch):
    run = Status(tmp_path, 10, "images")
    seen = []
    monkeypatch.setattr(status.os, "replace", lambda *paths: seen.append((read(tmp_path)["done"], os.rename(*paths))))
    run.write(done=7)
    assert seen == [(0, None)] and read(tmp_path)["done"] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_full_disk_does_not_end_the_run(tmp_path, monkeypatch):
    run = Status(tmp_path, 10, "images")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(status.os, "replace", full)
    run.write(done=7)
    assert read(tmp_path)["done"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


class TestFailure:
    def test_of_a_run_that_was_on_its_way(self, tmp_path):
        Status(tmp_path, 10, "images", done=3)
        note_failure(tmp_path, "model.pt: truncated")
        found = read(tmp_path)
        assert (found["state"], found["done"], found["last_error"]) == ("failed", 3, "model.pt: truncated")

    def test_of_a_command_that_was_refused_in_the_folder_of_a_finished_run(self, tmp_path):
        Status(tmp_path, 10, "images").write(done=10, state=status.FINISHED)
        note_failure(tmp_path, "another run")
        assert (read(tmp_path)["state"], read(tmp_path)["last_error"]) == ("finished", "another run")

    def test_before_there_was_a_status_or_with_a_damaged_one(self, tmp_path):
        for text in (None, "{", "[1]"):
            if text is not None:
                (tmp_path / "status.json").write_text(text)
            note_failure(tmp_path, "no such file")
            assert (read(tmp_path)["state"], read(tmp_path)["last_error"]) == ("failed", "no such file")

    def test_the_cause_stays(self, tmp_path):
        note_failure(tmp_path, "Connection closed by peer", consequence=True)
        assert read(tmp_path)["last_error"] == "Connection closed by peer", "better than nothing"
        note_failure(tmp_path, "rank 1: out of memory")
        note_failure(tmp_path, "Connection closed by peer", consequence=True)
        assert read(tmp_path)["last_error"] == "rank 1: out of memory"


class TestProgress:
    def test_finished(self, tmp_path):
        with logger.scoped_configure(dir=str(tmp_path), format_strs=["log"]):
            with Progress(5, "steps", initial=2, directory=tmp_path) as progress:
                for _ in range(3):
                    progress.update()
            assert read(tmp_path)["state"] == "running", "until all is written"
            progress.finish(samples="x.npz")
        found = read(tmp_path)
        assert (found["state"], found["done"]) == ("finished", 5)
        summary = found["summary"]
        assert (summary["made"], summary["samples"]) == (3, "x.npz") and summary["peak_memory"] > 1e7
        told = (tmp_path / "log.txt").read_text()
        assert "finished: 3 steps in" in told and "GB" in told and str(tmp_path) in told

    def test_left_early(self, tmp_path):
        with Progress(5, "steps", directory=tmp_path) as progress:
            progress.update()
        assert (read(tmp_path)["state"], read(tmp_path)["done"]) == ("stopped", 1)

    def test_an_exception_is_for_run_main_to_judge(self, tmp_path):
        with pytest.raises(ValueError), Progress(5, "steps", directory=tmp_path):
            raise ValueError
        assert read(tmp_path)["state"] == "running"

    def test_without_a_directory(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with Progress(5, "steps") as progress:
            progress.update(5)
        assert not list(tmp_path.iterdir())

    def test_one_process_writes(self, tmp_path, monkeypatch):
        monkeypatch.setattr("guided_diffusion.distributed.progress.get_rank", lambda: 1)
        with Progress(5, "steps", directory=tmp_path) as progress:
            progress.update(5)
        progress.finish()
        assert not list(tmp_path.iterdir())


def entry(seconds_ago: float = 0, **fields) -> dict:
    updated = (NOW - timedelta(seconds=seconds_ago)).isoformat()
    return {
        "state": "running", "done": 1200, "total": 50000, "unit": "images", "rate": 3.25, "eta": 15015.0,
        "updated": updated, "host": "gpu07", "pid": 4711, "longest_silence": 1.0, "last_error": None,
    } | fields  # fmt: skip


def test_the_table(tmp_path):
    runs = {
        tmp_path / "a": entry(3),
        tmp_path / "b" / "c": entry(400),
        tmp_path / "d": entry(90000, state="failed", last_error="model.pt: truncated"),
        tmp_path / "e": {"state": "stopped"},
    }
    assert list(status.table(runs, tmp_path, NOW)) == [
        "run  state    done                 rate    left   updated",
        "a    running  1,200/50,000 images  3.25/s  4.2 h  3 s ago",
        "b/c  running  1,200/50,000 images  3.25/s  4.2 h  7 min ago",
        "  no sign of life for 7 min (process 4711 on gpu07)",
        "d    failed   1,200/50,000 images  3.25/s  -      25.0 h ago",
        "  model.pt: truncated",
        "e    stopped  -                    -       -      inf d ago",
    ]


def test_silence_is_judged_by_what_is_usual_for_the_run():
    assert status.is_silent(entry(61), NOW) and not status.is_silent(entry(59), NOW)
    assert not status.is_silent(entry(400, longest_silence=100.0), NOW), "its batches take minutes"
    assert not status.is_silent(entry(4000, state="finished"), NOW)
    assert status.is_silent(entry(updated="yesterday"), NOW) and status.is_silent(entry(updated=None), NOW)


class TestCommand:
    def say(self, monkeypatch, capsys, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["ed-dpm", "status", *words])
        cli.main()
        return capsys.readouterr().out

    def test_one_run_and_a_tree(self, tmp_path, monkeypatch, capsys):
        for name in ("one", "deep/er/two"):
            (tmp_path / name).mkdir(parents=True)
            Status(tmp_path / name, 10, "images", done=3)
        lines = self.say(monkeypatch, capsys, str(tmp_path)).splitlines()
        assert [line.split()[:4] for line in lines[1:]] == [
            ["deep/er/two", "running", "3/10", "images"],
            ["one", "running", "3/10", "images"],
        ]
        assert self.say(monkeypatch, capsys, str(tmp_path / "one")).splitlines()[1].startswith("one  running")
        found = json.loads(self.say(monkeypatch, capsys, str(tmp_path), "--json"))
        assert found[str(tmp_path / "one")]["done"] == 3 and found[str(tmp_path / "one")]["silent"] is False

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda path: None, "no such folder"),
            (lambda path: path.write_text("x"), "no such folder"),
            (lambda path: path.mkdir(), r"no status\.json in it or below"),
            (lambda path: (path.mkdir(), (path / "status.json").write_text("{")), "expected a run's status as JSON"),
            (lambda path: (path.mkdir(), (path / "status.json").write_text('{"a": 1}')), "found JSON without a state"),
        ],
    )
    def test_mistakes(self, tmp_path, monkeypatch, capsys, make, message):
        make(tmp_path / "runs")
        with pytest.raises(InputError, match=message) as caught:
            self.say(monkeypatch, capsys, str(tmp_path / "runs"))
        assert "\n" not in str(caught.value) and str(tmp_path / "runs") in str(caught.value)


PROGRAM = """
import sys, warnings, logging
from guided_diffusion import dist_util, logger
from guided_diffusion.config.configs import RunConfig
from guided_diffusion.errors import InputError
from guided_diffusion.distributed.progress import Progress
from guided_diffusion.sampling import setup

def main():
    directory = setup.begin(RunConfig(log_dir="out"))
    with Progress(10, "steps", directory=directory) as progress:
        progress.update(4)
        warnings.warn("a warning of rank %d" % dist_util.get_rank())
        logging.getLogger("library").error("a record of rank %d" % dist_util.get_rank())
        dist_util.barrier()
        if dist_util.get_rank() == dist_util.get_world_size() - 1:
            raise {error}
        dist_util.barrier()

dist_util.run_main(main)
"""


@pytest.mark.parametrize("launcher", ["fork", "fork2"])
@pytest.mark.parametrize(
    ("error", "line", "state"),
    [
        ("InputError('no such\\\\nfile')", "no such file", "failed"),
        ("RuntimeError('out of memory\\\\nand more')", "RuntimeError: out of memory", "failed"),
        ("KeyboardInterrupt", "interrupted", "stopped"),
    ],
)
def test_the_end_of_a_run_is_in_its_folder(run, tmp_path, launcher, error, line, state):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(error=error.replace("\\\\", "\\")))
    ended = run(program, launcher=launcher, fails=True)
    found = read(tmp_path / "out")
    assert (found["state"], found["last_error"], found["done"]) == (state, line, 4)
    names = ["log.txt", "log-rank001.txt"][: len(ended.statuses)]
    logs = [(tmp_path / "out" / name).read_text() for name in names]
    for rank, text in enumerate(logs):
        assert f"a warning of rank {rank}" in text and f"a record of rank {rank}" in text
        assert f"a warning of rank {rank}" in ended.stderr and f"a record of rank {rank}" in ended.stderr
    if state == "failed":
        assert ("Traceback" in logs[-1]) == error.startswith("RuntimeError") and line.split(": ")[-1] in logs[-1]


def test_a_sampling_run_leaves_its_status(run, checkpoints, tmp_path):
    flags = {"model_path": checkpoints["model"], "num_samples": 5, "batch_size": 2, "timestep_respacing": "3"}
    ended = run("image_sample", flags | {"log_dir": "out"}, launcher="fork2")
    found = read(tmp_path / "out")
    assert (found["state"], found["done"], found["total"], found["unit"]) == ("finished", 5, 5, "images")
    assert found["summary"]["samples"] == str(tmp_path / "out" / "samples_5x8x8x3.npz")
    (told,) = [line for line in ended.stdout.splitlines() if line.startswith("finished: ")]
    assert "5 images in" in told and "images/s" in told and "peak_memory" in told
    run("image_sample", flags | {"log_dir": "out", "seed": 1}, fails=True)
    assert read(tmp_path / "out")["state"] == "finished" and "--seed 1" in read(tmp_path / "out")["last_error"]


def test_warnings_are_kept_once(tmp_path, capsys):
    shown, handlers = warnings.showwarning, list(logging.getLogger().handlers)
    try:
        with logger.scoped_configure(dir=str(tmp_path), format_strs=["log"]):
            failure_log.keep_warnings()
            failure_log.keep_warnings()
            logging.getLogger("x").warning("only once")
        assert (tmp_path / "log.txt").read_text().count("only once") == 1
        assert capsys.readouterr().err.count("only once") == 1
        logging.getLogger("x").warning("after the run")  # no log is open: the screen alone
    finally:
        logging.captureWarnings(False)
        warnings.showwarning = shown
        logging.getLogger().handlers[:] = handlers

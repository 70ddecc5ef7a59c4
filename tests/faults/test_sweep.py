"""A few of the faults of `python -m tests.faults --sweep`, which does thousands; and that the sweep finds faults."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from tests.faults import points
from tests.faults.points import KILL, KILL_AFTER, READ, WRITE, Plan, Point
from tests.faults.sweep import LOST, STATUS, Sweep, choose, disturb, prepare, start
from tests.faults.sweep_jobs import RUN, Files, make_jobs
from tests.faults.together import make_pair, meet

FEW = 2  # points of an action


# ---- the programs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sampling-resumed", "classifier_train"])
def test_no_fault_in_a_few_points(name, tmp_path):
    job = make_jobs(tmp_path, (name,))[name]
    with Sweep(tmp_path) as sweep:
        prepared = sweep.prepare(job)
        assert not prepared.problems
        for action in points.ACTIONS:
            found = choose(prepared.points, action, 1)
            chosen = [found[len(found) * k // FEW + len(found) // (2 * FEW)] for k in range(FEW)]
            row = sweep.row(prepared, action, chosen)
            assert row.runs == FEW and not any(row.counts.values()), row


@pytest.mark.slow
def test_two_commands_in_one_folder(tmp_path):
    with Sweep(tmp_path) as sweep:
        row = sweep.call(meet, sweep.call(make_pair, "two-sampling", tmp_path), tmp_path, None, 2)
    assert row.runs == 2 and not any(row.counts.values()), row


# ---- the points


def _watched(tmp_path: Path, program: str, plan: Plan | None = None) -> tuple[int, list[tuple[Point, int | None]]]:
    """Run a program in a folder, watched; its status and its trace."""
    script = tmp_path / "program.py"
    script.write_text(program)
    (tmp_path / RUN).mkdir(exist_ok=True)
    trace = tmp_path / "trace"
    job = Files("toy", script, [])
    ended = start(job, tmp_path, watch=partial(points.watch, tmp_path / RUN, trace, plan)).wait()
    return ended.status, points.read_trace(trace)


def test_every_byte_is_seen(tmp_path):
    """What is written and read in all the ways of the programs, in bytes, is what the files hold."""
    status, trace = _watched(
        tmp_path,
        """
import hashlib, json, os, shutil, zipfile
from pathlib import Path
import numpy as np, torch
from PIL import Image
Path("run/text.txt").write_text("a" * 100000)
with open("run/log.txt", "a") as log:
    for i in range(5):
        log.write("line\\n"); log.flush()
with open("run/model.pt", "wb") as file:
    torch.save({"w": torch.ones(30000)}, file)
with open("run/model.pt", "rb") as file:
    torch.load(file, weights_only=True)
with open("run/arrays.npz", "wb") as file:
    np.savez(file, a=np.arange(20000), b=np.zeros(3))
np.load("run/arrays.npz")["a"]
with open("run/image.png", "wb") as file:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, format="PNG")
shutil.copyfile("run/text.txt", "run/copy.txt")
with open("run/text.txt", "rb") as file:
    hashlib.file_digest(file, "sha256"); os.fsync(file.fileno())
descriptor = os.open("run/raw", os.O_WRONLY | os.O_CREAT)
os.write(descriptor, b"12345"); os.fsync(descriptor); os.close(descriptor)
Path("outside.txt").write_text("not seen")
""",
    )
    assert status == 0
    written, read = {}, {}
    for point, number in trace:
        if (point.call, number is not None) == ("write", True):
            written[point.path] = written.get(point.path, 0) + number
        if (point.kind, point.call) == (READ, "read"):
            read[point.path] = read.get(point.path, 0) + (number or 0)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / RUN).iterdir()}
    assert written.keys() == sizes.keys()
    for name, size in sizes.items():
        # Zip files are written over in places: sizes become known after the data.
        assert written[name] >= size if name.endswith(".npz") else written[name] == size, name
    assert read["model.pt"] >= sizes["model.pt"] * 0.9 and read["arrays.npz"] >= sizes["arrays.npz"] * 0.9
    assert sum(point.call == "fsync" for point, _ in trace) == 2
    assert not any("outside" in point.path for point, _ in trace)


def test_names_are_seen(tmp_path):
    status, trace = _watched(
        tmp_path,
        """
import os, shutil
from pathlib import Path
run = Path("run")
(run / "a" / "b").mkdir(parents=True)
(run / "a" / ".x.01234567-99-89abcdef.tmp").write_bytes(b"")
(run / "a" / ".x.01234567-99-89abcdef.tmp").replace(run / "x")
(run / "x").exists(), (run / "none").is_file(), os.path.exists("run/x"), os.path.islink("run/x")
(run / "y").hardlink_to(run / "x")
os.rename("run/y", "run/z"), os.utime("run/z")
list(run.glob("*")), list(run.iterdir()), os.listdir("run"), list(os.walk("run"))
(run / "z").unlink(), os.remove("run/x")
shutil.rmtree(run / "a")
""",
    )
    assert status == 0
    seen = [(point.kind, point.call, point.path) for point, _ in trace]
    for expected in [
        (WRITE, "mkdir", "a"), (WRITE, "mkdir", "a/b"), (WRITE, "open", "a/.x.*.tmp"), (WRITE, "replace", "x"),
        (READ, "stat", "x"), (READ, "stat", "none"), (READ, "lstat", "x"), (WRITE, "link", "y"), (WRITE, "rename", "z"),
        (WRITE, "utime", "z"), (READ, "scandir", "."), (READ, "listdir", "."), (WRITE, "unlink", "z"),
        (WRITE, "unlink", "x"), (WRITE, "rmdir", "a/b"), (WRITE, "rmdir", "a"),
    ]:  # fmt: skip
        assert expected in seen, expected


@pytest.mark.parametrize(
    ("action", "left"), [(KILL, {"a"}), (KILL_AFTER, {"b"}), ("EIO", {"a", "5"}), ("ENOSPC", {"a", "28"})]
)
def test_actions(action, left, tmp_path):
    program = """
import os
from pathlib import Path
Path("run/a").write_text("")
try:
    os.replace("run/a", "run/b")
except OSError as error:
    Path(f"run/{error.errno}").write_text("")
"""
    status, trace = _watched(tmp_path, program, Plan(action, Point(WRITE, "replace", "b", 1)))
    assert status == (-signal.SIGKILL if action.startswith("kill") else 0) and len(trace) == 1
    assert set(os.listdir(tmp_path / RUN)) == left


def test_what_is_chosen():
    found = [Point(WRITE, "open", "f", 1), *(Point(WRITE, "write", "f", n) for n in range(1, 8))]
    found += [Point(WRITE, "replace", "g", 1), Point(READ, "stat", "g", 1), Point(WRITE, "unlink", "h", 1)]
    assert [point.number for point in choose(found, "EIO", 1)] == [1, 1, 4, 7, 1, 1, 1]
    assert [point.call for point in choose(found, KILL_AFTER, 1)] == ["replace"]
    assert "stat" not in {point.call for point in choose(found, KILL, 1)}
    assert [point.call for point in choose(found, "ENOSPC", 9)] == ["open", "write", "replace"]
    assert {Point.parse(str(point)) for point in found} == set(found)


# ---- the sweep finds faults

CAREFUL = """
import os, sys
try:
    os.makedirs("run", exist_ok=True)
    for name in os.listdir("run"):
        if name.endswith(".tmp"):
            os.unlink("run/" + name)
    if not os.path.lexists("run/result.json"):
        temporary = f"run/.result.json.{os.getpid()}.tmp"
        with open(temporary, "w") as file:
            file.write('{"value": [1, 2, 3]}'); file.flush(); os.fsync(file.fileno())
        os.replace(temporary, "run/result.json")
except OSError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
"""
PLANTED = {
    "writes in place": ('f"run/.result.json.{os.getpid()}.tmp"', '"run/result.json"', KILL, LOST),
    "leaves its temporary file": ('os.unlink("run/" + name)', "pass", KILL, LOST),
    "has a traceback": ("except OSError", "except KeyError", "EIO", STATUS),
    "takes what it cannot read for missing": ("    print", "    os._exit(0)", "EIO", LOST),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nothing", *PLANTED])
def test_a_planted_fault_is_found(name, tmp_path):
    old, new, action, kind = PLANTED.get(name, ("", "", None, None))
    program = CAREFUL.replace(old, new) if old else CAREFUL
    (tmp_path / "toy.py").write_text(program)
    prepared = prepare(Files("toy", tmp_path / "toy.py", [], patterns=("result.json",)), tmp_path)
    found, told = set(), []
    for tried in [action] if action else points.ACTIONS:
        for number, point in enumerate(choose(prepared.points, tried, 1)):
            fired, wrong = disturb(prepared, Plan(tried, point), tmp_path / f"{tried}{number}")
            assert fired, point
            found |= {(tried, what) for what, _ in wrong}
            told += [f"{tried}@{point}: {text}" for _, text in wrong]
    assert (not found) if action is None else (action, kind) in found, "\n".join(told)

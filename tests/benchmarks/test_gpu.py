"""The command for a GPU: needs little, ends in time, loses nothing, leaves nothing running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import report
from benchmarks.gpu.record import Context, append, read_rows
from benchmarks.gpu.stage_runner import descendants
from benchmarks.upstream import require_upstream
from tests.support.helpers import ROOT, clean_environment

ABSENT = ("blobfile", "mpi4py", "safetensors", "requests", "tensorflow", "tensorboard", "pytest", "hypothesis")
MODULES = (
    "scripts.classifier_sample", "scripts.classifier_train", "scripts.image_sample", "scripts.image_train",
    "scripts.image_nll", "scripts.super_res_sample", "scripts.super_res_train", "evaluations.evaluator",
    "benchmarks.gpu.stage", "benchmarks.gpu.probe", "benchmarks.gpu.correctness", "benchmarks.gpu.compiled_checks",
    "benchmarks.gpu.sampling", "benchmarks.gpu.training", "benchmarks.gpu.end_to_end",
)  # fmt: skip
WITHOUT = f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))\n"


@pytest.mark.slow
def test_nothing_but_torch_numpy_scipy_pillow_and_tqdm_is_imported():
    program = WITHOUT + f"import importlib\nfor name in {MODULES}: importlib.import_module(name)"
    found = subprocess.run(
        [sys.executable, "-c", program], env=clean_environment(), capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stderr[-2000:]


def gpu(out: Path, *flags: str) -> tuple[int, str]:
    """Run the command on a CPU; its status and stdout. Nothing that names its folder may be left alive."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), "--device", "cpu", "--tiny", *flags]
    found = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=1600)
    assert not left_alive(out), "processes are left running"
    return found.returncode, found.stdout + found.stderr


def left_alive(out: Path) -> list[str]:
    """Processes with the run's folder in their command or environment: its stages, and all that these started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            texts = [(process / name).read_bytes() for name in ("cmdline", "environ")]
        except OSError:
            continue
        if int(process.name) != os.getpid() and any(str(out).encode() in text for text in texts):
            found.append(f"{process.name} {texts[0]!r}")
    return found


def stages(out: Path) -> dict[str, str]:
    return {row["stage"]: row["status"] for row in read_rows(out) if row["what"] == "stage"}


@pytest.mark.slow
@pytest.mark.timeout(1700)
def test_every_stage_computes_on_a_cpu(tmp_path):
    """About 90 s on an idle core; the limit leaves room for a machine that does other work."""
    require_upstream()  # installs it where it is missing
    status, text = gpu(tmp_path, "--minutes", "25")
    assert status == 0, text[-3000:]
    assert set(stages(tmp_path).values()) == {"ok"} and len(stages(tmp_path)) == 5
    rows = read_rows(tmp_path)
    checked = {row["what"] for row in rows if row.get("passed")}
    assert {"two processes", "compiled networks", "resumed image_train", "features attention"} <= checked
    for what in ("tiny", "tiny regional", "training tiny-b2", "classifier_sample --eds", "evaluator --features"):
        assert any(row["what"] == what for row in rows), what


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="fails for want of a GPU")
def test_a_stage_that_fails_is_reported_and_the_next_one_runs(tmp_path):
    status, text = gpu(tmp_path, "--device", "cuda", "--only", "probe", "training")
    assert status == 1 and stages(tmp_path) == {"probe": "failed", "training": "ok"}
    assert "probe | stage | failed" in text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert not summary["fine"] and {row["stage"] for row in summary["rows"]} >= {"probe", "training"}


HANGING = """
import subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
print("hanging", flush=True)
time.sleep(600)
"""


CRASHING = "import os; os.abort()"


@pytest.mark.parametrize(("stage", "status", "said"), [(HANGING, "cut", "hanging"), (CRASHING, "failed", "")])
def test_a_stage_that_hangs_or_crashes_is_killed_with_its_children(tmp_path, stage, status, said):
    """The child has a process group of its own and ignores SIGTERM."""
    program = "import os, sys; from pathlib import Path; from benchmarks.gpu import stage_runner as runner\n"
    program += "runner.adopt_orphans()\nout = Path(sys.argv[1])\n"
    program += "print(runner.run_stage([sys.executable, '-c', sys.argv[2]], out / 'log', 8.0, dict(os.environ), out))"
    environment = clean_environment() | {"GPU_TEST_MARK": str(tmp_path)}
    command = [sys.executable, "-c", program, str(tmp_path), stage]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert not left_alive(tmp_path), "processes are left running"
    assert f"'status': '{status}'" in found.stdout and said in found.stdout, found.stdout + found.stderr


@pytest.mark.slow
def test_what_was_measured_before_the_time_was_up_is_there(tmp_path):
    status, text = gpu(tmp_path, "--only", "correctness", "probe", "--minutes", "0.6")
    assert status == 1 and stages(tmp_path)["correctness"] == "cut" and "probe" in stages(tmp_path)
    assert any(row.get("passed") for row in read_rows(tmp_path)) and "passed" in text


def test_a_case_that_fails_or_takes_too_long_is_its_own_result(tmp_path):
    context = Context("sampling", tmp_path, "cpu", True, time.monotonic() + 60)
    context.case("slow", 0.2, lambda: time.sleep(30))
    context.case("wrong", 5, lambda: 1 / 0)
    context.case("right", 5, lambda: context.add("right", value=1.5))
    rows = read_rows(tmp_path)
    assert [row.get("error", "").partition(":")[0] for row in rows] == ["OutOfTime", "ZeroDivisionError", ""]
    lines, fine = report.write(tmp_path)
    assert not fine and "| sampling | right | value 1.5 |" in lines


def test_the_table_stays_short_and_says_first_what_failed(tmp_path):
    for i in range(100):
        append(tmp_path, {"stage": "sampling", "what": f"case {i}", **({"error": "a | b"} if i == 99 else {"x": 1.0})})
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"stage": "samp')  # cut off in the middle
    lines, fine = report.write(tmp_path)
    assert not fine and len(lines) == 60
    assert lines[2] == "| sampling | case 99 | **failed**: a / b |" and "more" in lines[-1]


def test_what_is_missing_is_named_first(tmp_path):
    program = "import sys, importlib.util as u\nfind = u.find_spec\n"
    program += "u.find_spec = lambda name, *a: None if name == 'scipy' else find(name, *a)\n"
    program += f"sys.argv = ['gpu', '--out', {str(tmp_path / 'out')!r}]\nimport runpy\n"
    program += "runpy.run_module('benchmarks.gpu', run_name='__main__')"
    found = subprocess.run(
        [sys.executable, "-c", program], env=clean_environment(), capture_output=True, text=True, timeout=100
    )
    assert found.returncode == 2 and "missing: scipy" in found.stderr


def test_descendants_are_found():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert child.pid in descendants(os.getpid())
    finally:
        child.kill()
        child.wait()

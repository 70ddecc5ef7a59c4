"""Steps, their records and the runner: what is run, what is not run again, and what an error leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import steps
from experiments.runner import Runner
from experiments.steps import Records, Step
from guided_diffusion.errors import InputError
from tests.support.helpers import ROOT, clean_environment

# Joins its inputs with a word, into its output, and counts its calls.
PROGRAM = """
import pathlib, sys
*inputs, word, output = sys.argv[1:]
with open(output + ".calls", "a") as calls:
    calls.write("x")
pathlib.Path(output).write_text("".join(pathlib.Path(i).read_text() for i in inputs) + word)
"""


class Kitchen:
    """Steps over small text files in a folder: a -> b -> c, and d by itself."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.program = folder / "program.py"
        self.program.write_text(PROGRAM)

    def file(self, name: str) -> Path:
        return self.folder / name

    def step(self, name: str, *inputs: str, word: str | None = None, precious: bool = False) -> Step:
        paths = [self.file(i) for i in inputs]
        command = ["python", self.program, *paths, word or name, self.file(name)]
        return Step(name, tuple(map(str, command)), tuple(paths), (self.file(name),), precious)

    def steps(self, **options) -> list[Step]:
        return [self.step("a"), self.step("b", "a", **options), self.step("c", "b"), self.step("d")]

    def run(self, steps: list[Step], jobs: int = 1) -> int:
        return Runner(self.folder).run(steps, jobs)

    def calls(self) -> str:
        """How often each was made, as "a2b1"."""
        counts = {p.name[0]: len(p.read_text()) for p in sorted(self.folder.glob("?.calls"))}
        return "".join(f"{name}{count}" for name, count in counts.items())


@pytest.fixture
def kitchen(tmp_path) -> Kitchen:
    return Kitchen(tmp_path)


def test_each_step_once_and_in_order(kitchen):
    # The order of the list does not matter where steps need each other.
    assert kitchen.run(kitchen.steps()[::-1], jobs=2) == 4
    assert kitchen.file("c").read_text() == "abc" and kitchen.calls() == "a1b1c1d1"
    assert kitchen.run(kitchen.steps()) == 0
    assert kitchen.calls() == "a1b1c1d1"


def test_a_runner_can_be_called_again(kitchen):
    runner = Runner(kitchen.folder, {"WORD": "x"}, show=False)
    assert [runner.run(kitchen.steps()[:2]), runner.run(kitchen.steps()[2:])] == [2, 2]
    assert runner.line(["python", "x.py"]) == "WORD=x python x.py"


def test_a_deleted_file_is_made_again_with_what_depends_on_it(kitchen):
    kitchen.run(kitchen.steps())
    kitchen.file("b").unlink()
    assert kitchen.run(kitchen.steps()) == 2
    assert kitchen.calls() == "a1b2c2d1"


def test_a_changed_input_is_noticed_by_content_not_by_date(kitchen):
    kitchen.run(kitchen.steps())
    text = kitchen.file("a").read_text()
    kitchen.file("a").write_text(text)
    assert kitchen.run(kitchen.steps()) == 0
    kitchen.file("a").write_text("z")
    assert kitchen.run(kitchen.steps()) == 3  # a is not what was made, so it is made again
    assert kitchen.calls() == "a2b2c2d1"


def test_another_command_is_run_again(kitchen):
    kitchen.run(kitchen.steps())
    assert kitchen.run(kitchen.steps(word="B")) == 2
    assert kitchen.file("c").read_text() == "aBc"


def test_what_took_long_is_never_replaced(kitchen):
    kitchen.run(kitchen.steps(precious=True))
    with pytest.raises(InputError, match=r"b was made differently: .*b then, .*B now; use another --out"):
        kitchen.run(kitchen.steps(precious=True, word="B"))
    assert kitchen.file("b").read_text() == "ab"
    kitchen.file("b").write_text("spoilt")
    with pytest.raises(InputError, match=r"b has sha256 \w{12}, then \w{12}"):
        kitchen.run(kitchen.steps(precious=True))
    assert kitchen.file("b").read_text() == "spoilt"


def test_work_begun_from_other_files_is_not_continued(kitchen):
    """Half of the samples from one checkpoint and half from another would be nobody's."""
    kitchen.run([kitchen.step("a")])
    step = kitchen.step("b", "a", precious=True)
    Records(kitchen.folder).start(step)
    assert Records(kitchen.folder).is_done(step) is False
    kitchen.file("a").write_text("other")
    with pytest.raises(InputError, match="b was made differently: .*/a has sha256"):
        Records(kitchen.folder).is_done(step)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("mpiexec -n 8 python x.py --a 1 --batch_size 4", "mpiexec -n 2 python x.py --a 1 --batch_size 16", True),
        ("python x.py --a 1 --eval_interval 5", "python x.py --a 1", True),
        ("python x.py --a 1", "python x.py --a 2", False),
        ("python x.py --a 1", "python x.py --a 1 --eds True", False),
        ("python x.py --a 1 --eds True", "python x.py --a 1", False),
    ],
)
def test_processes_and_batches_make_no_difference(kitchen, old, new, same):
    kitchen.file("b").write_text("")
    steps = [Step("b", tuple(command.split()), (), (kitchen.file("b"),)) for command in (old, new)]
    Records(kitchen.folder).finish(steps[0], 1.0)
    assert Records(kitchen.folder).is_done(steps[1]) is same


def test_a_record_of_an_earlier_version_counts_with_flags_that_now_make_no_difference(kitchen):
    kitchen.file("b").write_text("")
    step = Step("b", ("python", "x.py", "--a", "1"), (), (kitchen.file("b"),))
    Records(kitchen.folder).finish(step, 1.0)
    path = kitchen.folder / "steps" / "b.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"work": [*record["work"], "--eval_interval", "5"]}))
    assert Records(kitchen.folder).is_done(step)


def test_a_failure_stops_what_needs_it_and_nothing_else(kitchen, capfd):
    command = ("python", "-c", "print('error: no luck'); raise SystemExit(3)")
    bad = Step("b", command, (kitchen.file("a"),), (kitchen.file("b"),))
    steps = [kitchen.step("a"), bad, kitchen.step("c", "b"), kitchen.step("d")]
    with pytest.raises(InputError, match=r"exit status 3.*no luck \(and 1 more steps.*runs what"):
        kitchen.run(steps)
    assert kitchen.calls() == "a1d1"
    assert "failed: c: not run: it needs a step that failed" in capfd.readouterr().out
    assert kitchen.run(kitchen.steps()) == 2


def test_a_step_that_leaves_nothing_has_failed(kitchen):
    with pytest.raises(InputError, match=r"x: wrote no .*/x, expected that"):
        kitchen.run([Step("x", ("python", "-c", ""), (), (kitchen.file("x"),))])


def test_the_record_says_what_was_done(kitchen):
    kitchen.run(kitchen.steps())
    record = json.loads((kitchen.folder / "steps" / "b.json").read_text())
    assert list(record["inputs"]) == [str(kitchen.file("a"))]
    output = record["outputs"][str(kitchen.file("b"))]
    assert output["size"] == 2 and len(output["sha256"]) == 64
    assert record["command"][0] == "python" and record["processes"] == 1 and record["seconds"] > 0
    assert not list((kitchen.folder / "steps").glob("*.started"))


def test_a_resumed_step_has_no_time(kitchen):
    """What an interrupted run has done is not in the time of the last one."""
    step = kitchen.step("a")
    Records(kitchen.folder).start(step)
    kitchen.run([step])
    assert json.loads((kitchen.folder / "steps" / "a.json").read_text())["seconds"] is None


@pytest.mark.parametrize("content", ["{", "folder"])
def test_the_cache_of_hashes_is_of_no_consequence(kitchen, content):
    cache = kitchen.folder / "steps" / "hashes.cache"
    cache.parent.mkdir()
    cache.mkdir() if content == "folder" else cache.write_text(content)
    assert kitchen.run([kitchen.step("a")]) == 1 and kitchen.run([kitchen.step("a")]) == 0


def test_a_record_that_cannot_be_written_fails_its_step_alone(kitchen):
    """In one line that names the file; the others are run."""
    (kitchen.folder / "steps" / "a.json").mkdir(parents=True)
    (kitchen.folder / "logs" / "b.log").mkdir(parents=True)
    steps = [kitchen.step("a"), kitchen.step("b"), kitchen.step("d")]
    with pytest.raises(InputError, match=r"steps/a.json: found a folder.*1 more step") as caught:
        kitchen.run(steps)
    assert "\n" not in str(caught.value) and kitchen.file("d").read_text() == "d"
    with pytest.raises(InputError, match=r"Is a directory: '.*/logs/b.log'; the same command runs what"):
        kitchen.run(steps[1:])


def test_a_log_on_a_full_disk_is_not_worth_the_step(kitchen):
    (kitchen.folder / "logs").mkdir()
    (kitchen.folder / "logs" / "talk.log").symlink_to("/dev/full")
    code = f"print('words'); open({str(kitchen.file('x'))!r}, 'w').close()"
    assert kitchen.run([Step("talk", ("python", "-c", code), (), (kitchen.file("x"),))]) == 1


def test_a_damaged_record_is_named(kitchen):
    kitchen.run([kitchen.step("a")])
    (kitchen.folder / "steps" / "a.json").write_text("{")
    with pytest.raises(InputError, match="a.json: expected a JSON object, found no JSON"):
        kitchen.run([kitchen.step("a")])


def test_only_steps_of_several_processes_need_mpiexec(kitchen, monkeypatch):
    monkeypatch.setattr("experiments.runner.shutil.which", lambda *_, **__: None)
    assert kitchen.run([kitchen.step("a")]) == 1
    several = Step("b", ("mpiexec", "-n", "2", "python", "-c", ""), (), (kitchen.file("b"),))
    with pytest.raises(InputError, match="mpiexec: found none in PATH.* `--nproc 1` of `ed-dpm run` needs none"):
        kitchen.run([several])


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGTERM, signal.SIGINT])
def test_ending_it_ends_what_it_runs(tmp_path, blow):
    program = (
        "import sys; from pathlib import Path; from experiments.runner import Runner\n"
        "from experiments.steps import Step\n"
        "code = 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'\n"
        f"out = Path({str(tmp_path)!r})\n"
        "Runner(out).run([Step('long', ('python', '-c', code), (), (out / 'x',))], jobs=2)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=clean_environment(), stderr=-3)
    log = tmp_path / "logs" / "long.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child = int(log.read_text())
    process.send_signal(blow)
    assert process.wait(timeout=30) != 0
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(child, 0)
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("noted", "now"),
    [("ed_dpm_patches/recipes", "experiments/recipes"), ("ablation/recipes/full", "experiments/cifar10/recipes/full")],
)
def test_a_folder_of_the_version_before_is_for_the_recipes_that_moved(tmp_path, noted, now):
    (tmp_path / "book.json").write_text(json.dumps({"recipes": noted, "rehearsal": False}))
    steps.claim(tmp_path / "book.json", {"recipes": now, "rehearsal": False})
    assert json.loads((tmp_path / "book.json").read_text())["recipes"] == now
    with pytest.raises(InputError, match="use another --out"):
        steps.claim(tmp_path / "book.json", {"recipes": "elsewhere", "rehearsal": False})

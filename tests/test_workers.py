"""Processes that stay: what they make is what processes of their own make, and one that dies is replaced."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from ed_dpm_patches.reproduce import workers
from ed_dpm_patches.reproduce.runner import Runner
from ed_dpm_patches.reproduce.steps import Step
from ed_dpm_patches.reproduce.workers import Workers
from guided_diffusion.checkpoint import read_config
from guided_diffusion.configs import ClassifierConfig
from guided_diffusion.errors import InputError
from guided_diffusion.frozen import Frozen
from guided_diffusion.kept_networks import KeptNetworks
from guided_diffusion.script_util import build_classifier
from tests.helpers import as_arguments, clean_environment, executable, make_checkpoint, read_npz

SIZE = {"image_size": 8, "num_samples": 4, "batch_size": 4, "timestep_respacing": "ddim3", "use_ddim": True}


def sampling(folder: Path, model: Path, classifier: Path | None, **flags) -> Step:
    script = "classifier_sample" if classifier else "image_sample"
    flags = {"model_path": str(model), **SIZE, "log_dir": str(folder), **flags}
    flags |= {"classifier_path": str(classifier)} if classifier else {}
    command = ["mpiexec", "-n", "1", "python", f"scripts/{script}.py", *as_arguments(flags)]
    return Step(folder.name, tuple(command), (), (folder / "samples_4x8x8x3.npz",))


def test_samples_are_those_of_processes_of_their_own(tmp_path, checkpoints, run):
    executable("mpiexec")
    other = make_checkpoint(tmp_path / "other", "classifier", seed=1)
    model, classifier = checkpoints["model"], checkpoints["classifier"]
    kinds = {"first": (classifier, 1.0), "second": (other, 4.0), "third": (classifier, 1.0), "fourth": (None, None)}
    steps = []
    for name, (path, gamma) in kinds.items():
        flags = {"classifier_scale": gamma, "eds": True, "trace": str(tmp_path / f"{name}.npz")} if path else {}
        steps.append(sampling(tmp_path / name, model, path, **flags))
    assert Runner(tmp_path, {"OMP_NUM_THREADS": "1"}, samplers=1).run(steps, at_once=3) == 4
    made = [read_npz(step.outputs[0])["arr_0"] for step in steps]
    assert np.array_equal(made[0], made[2]) and not np.array_equal(made[0], made[1])
    for step, images in zip(steps, made, strict=True):
        alone = [word.replace(str(tmp_path / step.name), str(tmp_path / "alone" / step.name)) for word in step.command]
        assert run(Path(step.command[4]).stem, alone[5:]).statuses == [0]
        assert np.array_equal(read_npz(tmp_path / "alone" / step.name / step.outputs[0].name)["arr_0"], images)
        log = (tmp_path / "logs" / f"{step.name}.log").read_text()
        assert f"samples: {step.outputs[0]}" in log and log.count("samples: ") == 1


def test_bad_input_is_one_line_and_the_worker_goes_on(tmp_path, checkpoints):
    executable("mpiexec")
    bad = sampling(tmp_path / "bad", checkpoints["model"], None, nonsense=1)
    first, last = (sampling(tmp_path / name, checkpoints["model"], None) for name in ("first", "last"))
    with pytest.raises(InputError, match=r"exit status 2, expected 0; .*bad.log ends with: error: .*--nonsense"):
        Runner(tmp_path, samplers=1).run([first, bad, last])
    assert first.outputs[0].is_file() and last.outputs[0].is_file()
    assert json.loads((tmp_path / "first" / "status.json").read_text())["state"] == "finished"


PROGRAM = """
import os, pathlib, sys
def main():
    what, path = sys.argv[1:]
    if what == "fail":
        raise ValueError("no such luck")
    if what == "die":
        os.kill(os.getpid(), 9)
    pathlib.Path(path).write_text(str(os.getpid()))
    print("written")
"""


@pytest.fixture
def pool(tmp_path, monkeypatch) -> Workers:
    """One worker for a program that does as it is told."""
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setattr(workers, "SAMPLERS", (str(tmp_path / "program.py"),))
    pool = Workers(1, clean_environment())
    yield pool
    pool.end()


def test_a_worker_that_failed_or_died_is_replaced(pool, tmp_path):
    program, log = str(tmp_path / "program.py"), tmp_path / "log"

    def ask(what: str, name: str = "") -> int:
        return pool.run(pool.take(["python", program, what, str(tmp_path / name)]), log)

    assert [ask("write", "a"), ask("write", "b")] == [0, 0]
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() and log.read_text() == "written\n"
    assert ask("fail") == 1 and "ValueError: no such luck" in log.read_text()
    assert ask("write", "c") == 0 and (tmp_path / "c").read_text() != (tmp_path / "a").read_text()
    assert ask("die") == -signal.SIGKILL
    assert ask("write", "d") == 0
    os.kill(int((tmp_path / "d").read_text()), signal.SIGKILL)  # while it waits
    assert {ask("write", "e"), ask("write", "e")} <= {0, -signal.SIGKILL} and ask("write", "f") == 0
    pool.end()
    with pytest.raises(InputError, match="interrupted"):
        assert ask("write", "g") != 0
        ask("write", "g")


def test_only_steps_of_one_process_that_somebody_knows_are_taken(pool, tmp_path):
    program = str(tmp_path / "program.py")
    assert pool.take(["mpiexec", "-n", "1", "python", program, "x"]) == [program, "x"]
    assert pool.take(["python", "evaluations/evaluator.py", "a.npz"]) == ["evaluations/evaluator.py", "a.npz"]
    assert pool.take(["mpiexec", "-n", "2", "python", program, "x"]) is None
    assert pool.take(["python", "scripts/classifier_train.py"]) is None
    one, other = ["python", program, "x"], ["python", "evaluations/evaluator.py", "a.npz"]
    assert pool.is_full(one, [other, one]) and not pool.is_full(one, [other]) and not pool.is_full(other, [one, other])
    assert not Workers(0, {}).is_full(one, [one])
    assert Workers(0, {}).take(["python", program, "x"]) is None


def test_a_network_of_a_kind_takes_other_weights(tmp_path):
    paths = [make_checkpoint(tmp_path / str(seed), "classifier", seed=seed) for seed in (1, 2)]
    kept = KeptNetworks()

    def build():
        config = read_config(paths[0])
        return build_classifier(ClassifierConfig(**{f.name: config[f.name] for f in fields(ClassifierConfig)}))

    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"nothing")
    first = kept.load("kind", build, paths[0], None)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    assert isinstance(first, Frozen) and kept.load("other kind", build, paths[0], None) is not first
    assert kept.load("kind", build, paths[1], None) is first
    fresh = KeptNetworks().load("kind", build, paths[1], None).state_dict()
    assert all((value == fresh[name]).all() for name, value in first.state_dict().items())
    assert any((value != before[name]).any() for name, value in first.state_dict().items())
    with pytest.raises(InputError, match="broken.pt"):
        kept.load("kind", build, broken, None)
    assert kept.load("kind", build, paths[0], None) is not first

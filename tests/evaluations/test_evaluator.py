"""The evaluator program with a classifier, and with everything that can be wrong with its input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evaluations import evaluator
from evaluations.features.classifier import ClassifierExtractor
from evaluations.metrics.frechet import frechet_distance
from evaluations.metrics.statistics import fit_gaussian
from guided_diffusion.errors import InputError, Terminated
from tests.support.evaluations import make_images, write_classifier
from tests.support.helpers import ROOT, clean_environment

PROGRAM = ROOT / "evaluations" / "evaluator.py"
REFERENCE, SAMPLES = make_images(0, 24, 16), make_images(1, 20, 16)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a classifier and two good files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    write_classifier(tmp_path / "run")
    np.savez("ref.npz", REFERENCE)
    np.savez("s.npz", SAMPLES, np.arange(20) % 5)
    return tmp_path


def _run(*args) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([sys.executable, PROGRAM, *args], capture_output=True, text=True, env=environment)


def _main(monkeypatch, *args) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluator.py", *map(str, args)])
    evaluator.main()


@pytest.mark.slow
def test_program_with_a_classifier(place):
    done = _run("ref.npz", "s.npz", "--features", "run/model000010.pt", "--json", "out.json")
    assert done.returncode == 0, done.stderr
    lines = [line.split(": ") for line in done.stdout.splitlines()]
    names = ["Inception Score", "FID", "sFID", "Precision", "Recall", "Accuracy"]
    assert [name for name, _ in lines] == names
    values = [float(value) for _, value in lines]
    engine = ClassifierExtractor("run/model000010.pt")
    reference, samples = engine.compute_activations([REFERENCE]), engine.compute_activations([SAMPLES])
    fid = frechet_distance(fit_gaussian(reference.pool), fit_gaussian(samples.pool))
    assert values[1] == pytest.approx(fid, rel=1e-4)
    assert values[5] == pytest.approx((samples.probabilities.argmax(1) == np.arange(20) % 5).mean())
    written = json.loads(Path("out.json").read_text())
    found = [written[key] for key in ("inception_score", "fid", "sfid", "precision", "recall", "accuracy")]
    assert found == values
    assert written["engine"] == "classifier run/model000010.pt" and written["n_samples"] == 20
    assert not list(place.glob("*.tmp")) and not list(place.glob(".*"))


def test_a_signal_is_told(place, monkeypatch, caplog):
    monkeypatch.setattr(evaluator, "evaluate", lambda *args, **options: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(Terminated):
            _main(monkeypatch, "ref.npz", "s.npz", "--features", "run/model000010.pt")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "stopped by SIGTERM; nothing is printed before the end: the same command begins anew" in caplog.text


def test_the_command_line_of_the_release(place, monkeypatch, capsys):
    """Its results are YAML, of which JSON is a part."""
    network = ("--features", "run/model000010.pt")
    _main(monkeypatch, "--ref_batch", "ref.npz", "--sample_batch=s.npz", "--save_result_path", "there.yaml", *network)
    found = capsys.readouterr().out
    _main(monkeypatch, "ref.npz", "s.npz", *network)
    assert capsys.readouterr().out == found
    assert {"inception_score", "fid", "sfid", "precision", "recall"} <= set(json.loads(Path("there.yaml").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("full", ["json", "stdout"])
def test_what_can_be_told_is_told_on_a_full_disk(place, full):
    """Metrics that cannot be printed are still written, and the other way round."""
    os.mkdir("results")
    if full == "json":  # becomes too small during the evaluation
        code = (
            "import runpy, sys, guided_diffusion.io.atomic as atomic\n"
            "def full(_): raise OSError(28, 'No space left on device')\n"
            "atomic.os.fsync = full\n"
            f"sys.argv[:] = [{str(PROGRAM)!r}, *sys.argv[1:]]\n"
            f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
        )
        command = [sys.executable, "-c", code]
    else:
        command = [sys.executable, PROGRAM]
    command += ["ref.npz", "s.npz", "--features", "run/model000010.pt", "--json", "results/out.json"]
    with open("/dev/full" if full == "stdout" else "printed", "w") as stdout:
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=clean_environment())
    assert done.returncode == 2 and "Traceback" not in done.stderr
    name = "results/out.json" if full == "json" else "standard output"
    assert done.stderr.splitlines()[-1] == f"error: {name}: cannot be written: No space left on device"
    if full == "json":
        assert Path("printed").read_text().count("\n") == 6 and not os.listdir("results")
    else:
        assert json.loads(Path("results/out.json").read_text())["n_samples"] == 20


def test_no_accuracy_without_labels_and_batch_size(place, monkeypatch, capsys):
    np.savez("s.npz", SAMPLES)
    _main(monkeypatch, "ref.npz", "s.npz", "--features", "run/model000010.pt")
    first = capsys.readouterr().out.splitlines()
    assert len(first) == 5
    _main(monkeypatch, "ref.npz", "s.npz", "--features", "run/model000010.pt", "--batch_size", "7")
    for one, other in zip(first, capsys.readouterr().out.splitlines(), strict=True):
        assert float(one.split(": ")[1]) == pytest.approx(float(other.split(": ")[1]), rel=1e-4)


def test_a_set_judged_by_itself(place):
    metrics = evaluator.evaluate("ref.npz", "ref.npz", ClassifierExtractor("run/model000010.pt"))
    assert (metrics.precision, metrics.recall, metrics.accuracy) == (1, 1, None)
    assert abs(metrics.fid) < 1e-6 and abs(metrics.sfid) < 1e-6


def test_stored_statistics_are_inceptions(place, caplog):
    caplog.set_level("INFO")
    wrong = {"mu": np.zeros(3), "sigma": np.eye(3), "mu_s": np.zeros(3), "sigma_s": np.eye(3)}
    np.savez("stored.npz", REFERENCE, **wrong)
    engine = ClassifierExtractor("run/model000010.pt")
    stored, plain = (evaluator.evaluate(name, "s.npz", engine) for name in ("stored.npz", "ref.npz"))
    assert (stored.fid, stored.sfid) == (plain.fid, plain.sfid)
    assert "stored.npz: its stored statistics are Inception's" in caplog.text


def _objects():
    return np.savez("bad.npz", np.array([{}, {}, {}, {}], dtype=object))


def _truncated():
    np.savez("bad.npz", SAMPLES)
    Path("bad.npz").write_bytes(Path("bad.npz").read_bytes()[:4000])


BAD_FILES = {
    "missing file": (lambda: None, "no such file"),
    "no arr_0": (lambda: np.savez("bad.npz", images=SAMPLES), "missing array arr_0"),
    "objects": (_objects, "pickled"),
    "truncated": (_truncated, "truncated"),
    "shape": (lambda: np.savez("bad.npz", SAMPLES[0]), r"uint8 \[N, H, W, 1 or 3\]"),
    "dtype": (lambda: np.savez("bad.npz", SAMPLES / 255), "found float64"),
    "too few": (lambda: np.savez("bad.npz", SAMPLES[:3]), "found 3 images, expected at least 4"),
    "size": (lambda: np.savez("bad.npz", make_images(0, 5, 24)), "24x24 pixels, expected 16x16"),
}


@pytest.mark.parametrize("as_reference", [True, False])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files(place, monkeypatch, capsys, kind, as_reference):
    write, complaint = BAD_FILES[kind]
    write()
    before = sorted(os.listdir())
    names = ["bad.npz", "s.npz"] if as_reference else ["ref.npz", "bad.npz"]
    with pytest.raises(InputError, match=rf"bad\.npz.*{complaint}") as caught:
        _main(monkeypatch, *names, "--features", "run/model000010.pt", "--json", "out.json")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""
    assert sorted(os.listdir()) == before


def test_bad_labels(place):
    np.savez("s.npz", SAMPLES, np.zeros(3, int))
    with pytest.raises(InputError, match="s.npz.*20 integer"):
        evaluator.evaluate("ref.npz", "s.npz", ClassifierExtractor("run/model000010.pt"))


def test_labels_of_other_classes_cost_the_accuracy_and_nothing_else(place):
    engine = ClassifierExtractor("run/model000010.pt")
    np.savez("s.npz", SAMPLES, np.arange(20) % 5)
    known = evaluator.evaluate("ref.npz", "s.npz", engine)
    np.savez("s.npz", SAMPLES, np.arange(20) + 1)
    other = evaluator.evaluate("ref.npz", "s.npz", engine)
    assert known.accuracy is not None and other.accuracy is None and other.class_accuracy is None
    assert (other.fid, other.precision) == (known.fid, known.precision)
    (said,) = (line for line in other.warnings if "no accuracy" in line)
    assert re.search(r"s\.npz: no accuracy: found labels from 1 to 20 in arr_1, expected 0 to 4, the classes", said)


def test_coloured_images_for_a_grey_classifier_name_the_file(place):
    (place / "grey").mkdir()
    engine = ClassifierExtractor(write_classifier(place / "grey", in_channels=1))
    with pytest.raises(InputError, match=r"ref\.npz: found coloured images"):
        evaluator.evaluate("ref.npz", "s.npz", engine)


def test_broken_classifier_is_not_averaged_away(place):
    engine = ClassifierExtractor("run/model000010.pt")
    engine._model.input_blocks[0][0].bias.data.fill_(float("nan"))
    with pytest.raises(InputError, match="ref.npz: classifier .* nan or infinite"):
        evaluator.evaluate("ref.npz", "s.npz", engine)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--batch_size", "0"], "--batch_size"),
        (["--json", "run"], "--json"),
        (["--json", "ref.npz/x"], "--json"),
    ],
)
def test_bad_flags(place, monkeypatch, flags, complaint):
    with pytest.raises(InputError, match=complaint):
        _main(monkeypatch, "ref.npz", "s.npz", "--features", "run/model000010.pt", *flags)


@pytest.mark.slow
def test_error_line_and_exit_status(place):
    _objects()
    done = _run("ref.npz", "bad.npz", "--json", "out.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: bad.npz: array arr_0 holds pickled objects")
    assert len(done.stderr.splitlines()) == 1
    assert not Path("out.json").exists() and not Path("classify_image_graph_def.pb.part").exists()


def test_a_reference_made_for_a_judge_is_pointed_out_without_it(place, monkeypatch, caplog):
    settings = json.dumps({"engine": "classifier runs/judge"})
    np.savez("judged.npz", arr_0=REFERENCE, settings=np.array(settings))
    monkeypatch.setattr(evaluator, "create_extractor", lambda args: None)
    monkeypatch.setattr(evaluator, "_evaluate", lambda *_: None)
    for flags, wanted in (([], 1), (["--features", "run"], 0)):
        caplog.clear()
        monkeypatch.setattr(sys, "argv", ["evaluator.py", "judged.npz", "s.npz", *flags])
        with caplog.at_level("INFO"):
            evaluator.main()
        line = "was made with --features runs/judge, here Inception is used"
        told = [message for message in caplog.messages if line in message]
        assert len(told) == wanted

"""Runs that the version before was interrupted in, or finished: the same commands go on with them."""

from __future__ import annotations

import json
import tarfile

import pytest

from tests.data.runs_before.make import COMMANDS, HERE, LONGER, arguments, machine, result

EXPECTED = json.loads((HERE / "expected.json").read_text())


@pytest.fixture
def place(tmp_path):
    """The runs' working directory, unpacked."""
    with tarfile.open(HERE / "runs.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sampling", "resuming: 4 of 10 images are there"),
        ("guided", f"resuming: 4 of {LONGER} images are there"),
        ("image_train", "model000000.pt with step 1"),
        ("classifier_train", "model000000.pt with step 1"),
    ],
)
def test_goes_on(name, said, place, run):
    more = ["--num_samples", str(LONGER)] if name == "guided" else []
    done = run(COMMANDS[name][0], [*arguments(name), *more])
    assert said in done.stdout
    found = result(place / name, name)
    assert found.keys() == EXPECTED[name].keys()
    if machine() != EXPECTED["machine"]:
        pytest.skip(f"the last bits are those of {EXPECTED['machine']}, this is {machine()}")
    assert found == EXPECTED[name]


def test_a_finished_run_is_found_finished(place, run):
    before = (place / "guided" / "samples_4x8x8x3.npz").read_bytes()
    assert "already complete" in run("classifier_sample", arguments("guided")).stdout
    assert (place / "guided" / "samples_4x8x8x3.npz").read_bytes() == before


def test_other_flags_are_refused(place, run):
    for name in ("sampling", "image_train", "classifier_train"):
        done = run(COMMANDS[name][0], [*arguments(name), "--seed", "4"], fails=True)
        assert done.statuses == [2] and len(done.error_lines) == 1 and "another run" in done.stderr

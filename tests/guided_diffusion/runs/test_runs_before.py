"""Runs that the version before was interrupted in, or finished: the same commands go on with them."""

from __future__ import annotations

import hashlib
import json
import tarfile

import numpy as np
import pytest

from tests.data.runs_before.make import COMMANDS, HERE, LONGER, SMALL, arguments, machine, result, small_arguments
from tests.support.helpers import read_npz

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
        ("sampling", "resuming: 4 of 10 images exist"),
        ("guided", f"resuming: 4 of {LONGER} images exist"),
        ("image_train", "model000000.pt at step 1"),
        ("classifier_train", "model000000.pt at step 1"),
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


@pytest.fixture
def small(tmp_path):
    """The working directory of the small runs, in which a flag with a default had not been invented yet."""
    with tarfile.open(HERE / "small.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    manifest, state = tmp_path / "sampling" / "run.json", tmp_path / "training" / "state000000.json"
    flags = json.loads(manifest.read_text())
    assert flags.pop("amp_dtype") == "fp16"
    manifest.write_text(json.dumps(flags))
    entry = json.loads(state.read_text())
    assert entry["state"]["flags"].pop("amp_dtype") == "fp16" and entry.pop("sha256")
    digest = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
    state.write_text(json.dumps(entry | {"sha256": digest}))
    return tmp_path


def test_a_training_without_a_flag_of_today_goes_on(small, run):
    done = run(SMALL["training"][0], small_arguments("training"))
    assert "model000000.pt at step 1" in done.stdout and (small / "training" / "model000003.pt").is_file()


def test_samples_without_a_flag_of_today_are_extended(small, run):
    before = read_npz(small / "sampling" / "samples_2x8x8x3.npz")
    done = run(SMALL["sampling"][0], [*small_arguments("sampling"), "--num_samples", "4"])
    assert "resuming: 2 of 4 images exist" in done.stdout
    after = read_npz(small / "sampling" / "samples_4x8x8x3.npz")
    assert all(np.array_equal(after[name][:2], before[name]) for name in ("arr_0", "arr_1"))


@pytest.mark.parametrize("name", SMALL)
def test_another_value_than_the_default_is_another_run(name, small, run):
    done = run(SMALL[name][0], [*small_arguments(name), "--amp_dtype", "bf16"], fails=True)
    assert "another run: --amp_dtype bf16 (the run there has fp16); use another" in done.error_lines[0]

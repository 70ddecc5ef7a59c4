"""What a sampling run does with parts and results that vanish, rot or cannot be read; and between its last writes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from guided_diffusion import logger
from guided_diffusion.config.class_labels import Classes
from guided_diffusion.errors import InputError
from guided_diffusion.io import atomic
from guided_diffusion.runs import status
from guided_diffusion.sampling import run, shards
from guided_diffusion.sampling.noise import LabelPlan
from guided_diffusion.sampling.run import Batch, SampleRun
from tests.support.helpers import read_npz, tree

COUNT, SIZE = 8, "4x4x3"
RESULT = f"samples_{COUNT}x{SIZE}.npz"


class Maker:
    """Draws batches, counts them, and lets something happen after one of them."""

    def __init__(self, directory: Path, event=lambda: None, after: int = -1, **options):
        self.made: list[int] = []
        self.directory, self._event, self._after = directory, event, after
        defaults = {"num_samples": COUNT, "batch_size": 2, "shape": (3, 4, 4), "seed": 0, "flags": {"seed": 0}}
        labels = LabelPlan("", False, Classes(10))
        self.run = SampleRun(directory=directory, **{**defaults, "labels": labels, **options})

    def draw(self, batch: Batch) -> torch.Tensor:
        self.made += batch.indices
        if self._after == batch.indices[0]:
            self._event()
        return batch.noise.normal((3, 4, 4)) / 2

    def extras(self) -> dict[str, np.ndarray]:
        return {"scale": np.array(self.made[-2:], np.float32)} if self.run.extras_path else {}

    def generate(self) -> dict[str, np.ndarray]:
        return read_npz(self.run.generate(self.draw, self.extras))


@pytest.fixture(autouse=True)
def told(tmp_path_factory):
    """The log."""
    folder = tmp_path_factory.mktemp("log")
    with logger.scoped_configure(dir=folder, format_strs=["log"]):
        yield folder / "log.txt"


@pytest.fixture
def expected(tmp_path) -> dict[str, np.ndarray]:
    return Maker(tmp_path / "undisturbed").generate()


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


def part(folder: Path, first: int) -> Path:
    return folder / "parts" / f"part-{first:09d}.npz"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"\x93NUMPY") + 150] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize("harm", [Path.unlink, flip, truncate])
def test_a_part_that_is_lost_during_the_run_is_made_again(tmp_path, told, expected, harm):
    maker = Maker(tmp_path / "run", lambda: harm(part(tmp_path / "run", 2)), after=6)
    assert same(maker.generate(), expected)
    assert maker.made == [*range(8), 2, 3]
    kept = tree(tmp_path / "run")
    assert [name for name in kept if "damaged" in name] == (
        [] if harm is Path.unlink else ["parts/part-000000002.npz.damaged"]
    )
    assert "making them again" in told.read_text() or "made again" in told.read_text()


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("failing", ["listdir", "open_regular"])
def test_a_read_fault_ends_the_run_and_changes_nothing(tmp_path, monkeypatch, expected, code, failing):
    """The first run is interrupted; the second cannot read what is there; the third can."""
    folder = tmp_path / "run"

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Maker(folder, interrupt, after=4).generate()
    before = tree(folder)

    def fail(path, *_):
        if "parts" in str(path):
            raise OSError(code, os.strerror(code))
        return real(path)

    owner = os if failing == "listdir" else shards
    real = getattr(owner, failing)
    with monkeypatch.context() as patched:
        patched.setattr(owner, failing, fail)
        with pytest.raises(InputError, match=rf"parts.*: cannot be read: {os.strerror(code)}"):
            Maker(folder).generate()
    assert {name: data for name, data in tree(folder).items() if "status" not in name} == {
        name: data for name, data in before.items() if "status" not in name
    }
    maker = Maker(folder)
    assert same(maker.generate(), expected)
    assert maker.made == [4, 5, 6, 7]


def test_a_folder_that_always_loses_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_MOST_PASSES", 3)
    monkeypatch.setattr(shards.ShardStore, "write", lambda *_: None)
    with pytest.raises(InputError, match="8 samples missing although written, 3 times"):
        Maker(tmp_path).generate()
    assert not list(tmp_path.glob("*.npz"))


@pytest.mark.parametrize("harm", [flip, truncate, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_finished_file_is_checked_before_it_is_called_complete(tmp_path, expected, harm, recorded):
    """With its digest, or, where an earlier version wrote it, by shape and checksums."""
    folder = tmp_path / "run"
    Maker(folder).generate()
    if not recorded:
        forget_results(folder)
    harm(folder / RESULT)
    harmed = (folder / RESULT).read_bytes()
    maker = Maker(folder)
    assert same(maker.generate(), expected) and maker.made == list(range(8))
    assert (folder / f"{RESULT}.damaged").read_bytes() == harmed


def forget_results(folder: Path) -> None:
    manifest = json.loads((folder / "run.json").read_text())
    del manifest["results"]
    (folder / "run.json").write_text(json.dumps(manifest))


def test_a_result_of_an_earlier_version_is_accepted_and_recorded(tmp_path, expected):
    Maker(tmp_path / "run").generate()
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    assert list(recorded.values()) == [RESULT]
    forget_results(tmp_path / "run")
    maker = Maker(tmp_path / "run")
    assert same(maker.generate(), expected) and maker.made == []
    assert json.loads((tmp_path / "run" / "run.json").read_text())["results"] == recorded


def test_another_shape_under_the_right_name(tmp_path, expected):
    Maker(tmp_path / "run").generate()
    forget_results(tmp_path / "run")
    np.savez(tmp_path / "run" / RESULT, arr_0=np.zeros((7, 4, 4, 3), np.uint8), arr_1=np.zeros(7, int))
    assert same(Maker(tmp_path / "run").generate(), expected)


class Killed(BaseException):
    """Ends a run as kill -9 would, but for its process."""


@pytest.mark.parametrize("killed_before", range(1, 14))
def test_ended_anywhere_between_the_last_part_and_the_end(tmp_path, monkeypatch, killed_before):
    """Killed before its n-th rename; the same command completes everything and makes no finished sample again."""
    options = {"save_images": True}
    for folder in (tmp_path / "whole", tmp_path / "run"):
        Maker(folder, num_samples=4, extras_path=folder / "trace.npz").generate()
    whole = Maker(tmp_path / "whole", extras_path=tmp_path / "whole" / "trace.npz", **options)
    expected = whole.generate(), read_npz(tmp_path / "whole" / "trace.npz")
    renames = 0

    def replace(old, new):
        nonlocal renames
        renames += status.NAME not in str(new)
        if renames == killed_before:
            raise Killed
        real(old, new)

    folder, real = tmp_path / "run", os.replace
    first, again = (Maker(folder, extras_path=folder / "trace.npz", **options) for _ in range(2))
    with monkeypatch.context() as patched:
        patched.setattr(atomic.os, "replace", replace)
        try:
            first.generate()
        except Killed:
            (folder / status.NAME).write_text(json.dumps({"state": status.RUNNING}))
    there = sum(path.name.startswith("part-") for path in (folder / "parts").glob("*")) * 2
    finished = (folder / RESULT).exists()
    assert same(again.generate(), expected[0]) and same(read_npz(folder / "trace.npz"), expected[1])
    assert len(again.made) == (0 if finished else COUNT - 4 - there), "samples 0 to 3 and parts are not made again"
    assert set(tree(folder)) == set(tree(tmp_path / "whole"))
    assert status.read(folder / status.NAME)["state"] == status.FINISHED


def test_a_damaged_list_of_what_is_not_finite(tmp_path, told):
    (tmp_path / "nonfinite.json").write_text("[1")
    maker = Maker(tmp_path, num_samples=2)
    maker.run.detector.take = lambda images, indices: []
    maker.generate()
    assert (tmp_path / "nonfinite.json.damaged").exists() and "nonfinite.json.damaged" in told.read_text()


def test_an_empty_manifest_is_one_line(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match="run.json: holds nothing, expected the flags of a run"):
        Maker(tmp_path).generate()


def test_old_parts_that_cannot_be_read_do_not_fail_a_finished_run(tmp_path, monkeypatch, expected):
    folder = tmp_path / "run"
    real, done = shards.assemble, []

    def assemble(finished, names, path, commit):
        real(finished, names, path, commit)
        done.append(path)
        monkeypatch.setattr(shards, "list_names", fail)

    def fail(_):
        raise InputError("parts: cannot be read")

    monkeypatch.setattr(run, "assemble", assemble)
    assert same(Maker(folder).generate(), expected) and done
    assert status.read(folder / status.NAME)["state"] == status.FINISHED


def test_a_trace_that_was_deleted_is_missed(tmp_path, told):
    options = {"extras_path": tmp_path / "run" / "trace.npz"}
    Maker(tmp_path / "run", **options).generate()
    (tmp_path / "run" / "trace.npz").unlink()
    maker = Maker(tmp_path / "run", **options)
    maker.generate()
    assert maker.made == [] and "trace.npz: not there; it is made only with the samples" in told.read_text()

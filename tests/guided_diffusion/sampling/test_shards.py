"""Part files, the npz they become, and what run.json refuses."""

from __future__ import annotations

import errno
import io
import json
import os
import shlex
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guided_diffusion import logger
from guided_diffusion.errors import DamagedError, InputError
from guided_diffusion.runs.run_directory import check_manifest, versions
from guided_diffusion.sampling.shards import (
    Shard,
    ShardStore,
    assemble,
    check_result,
    missing_batches,
    read_array,
    result_paths,
    without_overlap,
)
from tests.support.helpers import read_npz


@pytest.fixture(autouse=True)
def quiet_logger(tmp_path_factory):
    with logger.scoped_configure(dir=str(tmp_path_factory.mktemp("log")), format_strs=[]):
        yield


def fail_on_disk(monkeypatch, failing: str) -> None:
    """Opening, or reading, files under the name of a part fails as on a lost file server."""
    real = io.open

    class Failing(io.FileIO):
        def readinto(self, _):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def fake(path, *args, **kwargs):
        if "part-" not in str(path):
            return real(path, *args, **kwargs)
        if failing == "open":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return io.BufferedReader(Failing(path))

    monkeypatch.setattr("builtins.open", fake)


class TestParts:
    def test_write_and_find(self, tmp_path):
        store = ShardStore(tmp_path)
        assert store.shards() == []
        store.write(4, {"arr_0": np.arange(6).reshape(2, 3), "arr_1": np.arange(2)})
        (shard,) = store.shards()
        assert shard.indices == range(4, 6) and shard.names() == ["arr_0", "arr_1"]
        assert np.array_equal(read_array(shard.path, "arr_1"), [0, 1])

    @pytest.mark.parametrize("damage", ["truncate", "empty", "garbage", "no arr_0"])
    def test_a_damaged_part_counts_as_missing(self, tmp_path, damage):
        store = ShardStore(tmp_path)
        store.write(0, {"arr_0": np.zeros((2, 3))})
        (path,) = (tmp_path / "parts").iterdir()
        whole = path.read_bytes()
        replacement = {"truncate": whole[: len(whole) // 2], "empty": b"", "garbage": b"x" * 500}
        if damage == "no arr_0":
            np.savez(path, other=np.zeros((2, 3)))
        else:
            path.write_bytes(replacement[damage])
        found = path.read_bytes()
        assert store.shards() == []
        store.remove(below=2)
        assert [kept.read_bytes() for kept in store.directory.iterdir()] == [found], "set aside, not deleted"

    def test_a_part_that_cannot_be_read_is_not_damaged(self, tmp_path, monkeypatch):
        """zipfile calls a failing disk "not a zip file"."""
        store = ShardStore(tmp_path)
        store.write(0, {"arr_0": np.zeros((2, 3))})
        for failing in ("open", "read"):
            with monkeypatch.context() as patched, pytest.raises(InputError, match="cannot be read: Stale") as caught:
                fail_on_disk(patched, failing)
                store.shards()
            assert not isinstance(caught.value, DamagedError)
        assert len(store.shards()) == 1

    def test_a_part_with_other_bytes_is_named_when_joined(self, tmp_path):
        store = ShardStore(tmp_path)
        store.write(0, {"arr_0": np.zeros((50, 3000), np.uint8)})
        (path,) = (tmp_path / "parts").iterdir()
        data = bytearray(path.read_bytes())
        data[100_000] ^= 1
        path.write_bytes(data)
        with pytest.raises(DamagedError, match=r"part-000000000\.npz: damaged: Bad CRC"):
            assemble(store.shards(), ["arr_0"], tmp_path / "joined.npz")
        assert not (tmp_path / "joined.npz").exists()

    def test_remove_takes_only_its_own(self, tmp_path):
        store = ShardStore(tmp_path)
        for first in (0, 2, 4):
            store.write(first, {"arr_0": np.zeros(2)})
        (tmp_path / "samples.npz").write_bytes(b"keep")
        store.remove(below=4)
        assert [shard.indices for shard in store.shards()] == [range(4, 6)], "finished samples beyond are kept"
        store.remove(below=6)
        assert [path.name for path in tmp_path.iterdir()] == ["samples.npz"]

    @settings(max_examples=20, deadline=None)
    @given(
        st.lists(st.integers(1, 4), min_size=1, max_size=5),
        st.sampled_from([np.uint8, np.int64, np.float32]),
        st.lists(st.integers(1, 3), max_size=3),
    )
    def test_streaming_equals_savez(self, tmp_path_factory, counts, dtype, shape):
        folder = tmp_path_factory.mktemp("parts")
        store = ShardStore(folder)
        generator = np.random.default_rng(0)
        whole = (generator.random((sum(counts), *shape)) * 200).astype(dtype)
        labels = np.arange(sum(counts))
        firsts = np.cumsum([0, *counts[:-1]]).tolist()
        for first, count in zip(firsts, counts, strict=True):
            rows = slice(first, first + count)
            store.write(first, {"arr_0": np.asfortranarray(whole[rows]), "arr_1": labels[rows]})
        assemble(store.shards(), ["arr_0", "arr_1"], folder / "streamed.npz")
        np.savez(folder / "saved.npz", whole, labels)
        with zipfile.ZipFile(folder / "streamed.npz") as a, zipfile.ZipFile(folder / "saved.npz") as b:
            assert a.namelist() == b.namelist()
            assert [a.read(name) for name in a.namelist()] == [b.read(name) for name in b.namelist()]

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), max_size=6), st.integers(1, 24))
    def test_overlapping_parts_give_each_sample_once(self, tmp_path_factory, parts, total):
        folder = tmp_path_factory.mktemp("parts")
        store, numbers = ShardStore(folder), np.arange(40)
        for first, count in parts:
            store.write(first, {"arr_0": numbers[first : first + count, None]})
        shards = without_overlap(store.shards(), total)
        there = {i for first, count in dict(parts).items() for i in range(first, first + count) if i < total}
        assert [i for shard in shards for i in shard.indices] == sorted(there)
        for batch_size in (1, 4, 5):
            missing = missing_batches(shards, total, batch_size)
            assert sorted([*there, *(i for batch in missing for i in batch)]) == list(range(total))
            assert all(len({i // batch_size for i in batch}) == 1 for batch in missing)
        if shards:
            assemble(shards, ["arr_0"], folder / "joined.npz")
            assert read_npz(folder / "joined.npz")["arr_0"][:, 0].tolist() == sorted(there)

    def test_joining_needs_constant_memory(self, tmp_path):
        big = np.arange(24 << 20, dtype=np.uint8).reshape(24, -1)
        np.savez(tmp_path / "samples_24x1048576x1x1.npz", big)
        shards = [Shard(tmp_path / "samples_24x1048576x1x1.npz", 0, range(24))]
        tracemalloc.start()
        assemble(shards, ["arr_0"], tmp_path / "joined.npz")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 << 20
        assert np.array_equal(read_npz(tmp_path / "joined.npz")["arr_0"], big)

    def test_a_result_must_be_what_its_name_says(self, tmp_path):
        for name, rows in (("samples_5x2x2x1", 5), ("samples_9x2x2x1", 4), ("samples_7x2x2x3", 7), ("samples_x", 1)):
            np.savez(tmp_path / f"{name}.npz", np.zeros((rows, 2, 2, 1), np.uint8))
        found = result_paths(tmp_path, "2x2x1")
        counts = {path.name: count for path, count in found.items()}
        assert counts == {"samples_5x2x2x1.npz": 5, "samples_9x2x2x1.npz": 9}
        check_result(tmp_path / "samples_5x2x2x1.npz", {"arr_0": (5, 2, 2, 1)})
        with pytest.raises(DamagedError, match=r"found \[4, 2, 2, 1\], expected \[9, 2, 2, 1\]"):
            check_result(tmp_path / "samples_9x2x2x1.npz", {"arr_0": (9, 2, 2, 1)})
        with pytest.raises(DamagedError, match="arr_1"):
            check_result(tmp_path / "samples_5x2x2x1.npz", {"arr_1": (5,)})


def test_rows_of_the_first_samples_only(tmp_path):
    np.savez(tmp_path / "part.npz", arr_0=np.arange(10, 16), map=np.array([10, 11]))
    for indices, expected in ((range(10, 16), [10, 11]), (range(11, 14), [11]), (range(12, 16), [])):
        data = b"".join(Shard(tmp_path / "part.npz", 10, indices).blocks("map"))
        assert np.frombuffer(data, np.int64).tolist() == expected


def saved(folder: Path) -> dict:
    found = json.loads((folder / "run.json").read_text())
    assert found.pop("commands") == [shlex.join(sys.argv)]
    return found


class TestManifest:
    def test_first_run_records_then_the_same_may_go_on(self, tmp_path):
        check_manifest(tmp_path, {"seed": 1, "cap": None, "scale": 0.1}, ())
        assert saved(tmp_path) == {"seed": 1, "cap": None, "scale": 0.1}
        check_manifest(tmp_path, {"seed": 1, "cap": None, "scale": 0.1}, ())

    def test_every_other_flag_is_named(self, tmp_path):
        check_manifest(tmp_path, {"seed": 1, "eds": True, "num": 3}, ("num",))
        with pytest.raises(InputError) as error:
            check_manifest(tmp_path, {"seed": 2, "eds": False, "num": 4}, ("num",))
        line = str(error.value)
        assert "--seed 2 (the run there has 1)" in line and "--eds False (the run there has True)" in line
        assert "--num" not in line and str(tmp_path) in line and "--log_dir" in line
        assert saved(tmp_path)["seed"] == 1

    def test_a_flag_that_came_later_had_its_default(self, tmp_path):
        check_manifest(tmp_path, {"seed": 1}, ())
        later = {"seed": 1, "rate": 0.5, "name": None}
        with pytest.raises(InputError, match=r"another run: --rate 0.7 \(the run there has 0.5\); use"):
            check_manifest(tmp_path, later | {"rate": 0.7}, (), defaults={"rate": 0.5})
        with pytest.raises(InputError, match=r"--rate 0.5 \(the run there has None\)"):  # no flag of this program
            check_manifest(tmp_path, later, ())
        check_manifest(tmp_path, later, (), defaults={"rate": 0.5})
        assert saved(tmp_path) == later

    def test_other_contents_are_named_and_a_manifest_without_hashes_gets_them(self, tmp_path):
        flags = {"model_path": "model.pt"}
        check_manifest(tmp_path, flags, ())
        check_manifest(tmp_path, flags, (), sha256={"model_path": "a" * 64})
        assert saved(tmp_path)["sha256"] == {"model_path": "a" * 64}
        with pytest.raises(InputError, match=r"--model_path model\.pt has other contents .*bbb.*, then aaa"):
            check_manifest(tmp_path, flags, (), sha256={"model_path": "b" * 64})

    def test_other_versions_are_noted_only(self, tmp_path):
        for torch in ("2.4", "2.5", "2.5"):
            check_manifest(tmp_path, {}, (), versions={"torch": torch})
        assert saved(tmp_path)["versions"] == [{"torch": "2.4"}, {"torch": "2.5"}]
        assert set(versions()) == {"python", "torch", "numpy", "device"}

    def test_not_json(self, tmp_path):
        (tmp_path / "run.json").write_text("{")
        with pytest.raises(InputError, match=r"run\.json: expected the flags .* found no JSON"):
            check_manifest(tmp_path, {}, ())

    def test_no_object(self, tmp_path):
        (tmp_path / "run.json").write_text("[1]")
        with pytest.raises(InputError, match=r"run\.json"):
            check_manifest(tmp_path, {"seed": 1}, ())

"""Reading arrays out of npz files: streaming, and one clear line for every kind of damage."""

from __future__ import annotations

import errno
import io
import os
import tracemalloc
import zipfile

import numpy as np
import pytest

from evaluations import reference
from guided_diffusion.errors import InputError
from guided_diffusion.io import npz


def _images(count: int = 10) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, size=(count, 6, 5, 3)).astype(np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 64])
def test_batches_are_the_array(tmp_path, save, batch_size):
    save(tmp_path / "a.npz", _images(), np.arange(10))
    with reference.open_images(tmp_path / "a.npz") as reader:
        assert (reader.shape, reader.dtype, reader.remaining()) == ((10, 6, 5, 3), np.uint8, 10)
        batches = reader.read_batches(batch_size)
        assert len(batches) == -(-10 // batch_size)
        found = list(batches)
        assert reader.remaining() == 0 and reader.read_batch(3) is None
    assert [len(batch) for batch in found[:-1]] == [batch_size] * (len(found) - 1)
    np.testing.assert_array_equal(np.concatenate(found), _images())


def test_fortran_order(tmp_path):
    np.savez(tmp_path / "a.npz", np.asfortranarray(_images()))
    with npz.open_npz_array(tmp_path / "a.npz", "arr_0") as reader:
        np.testing.assert_array_equal(np.concatenate(list(reader.read_batches(4))), _images())


def test_streaming_holds_one_batch_only(tmp_path):
    """Much larger than a batch, and read from a stream that counts."""
    np.savez(tmp_path / "a.npz", np.zeros((1000, 8, 8, 3), np.uint8))
    with npz.open_npz_array(tmp_path / "a.npz", "arr_0") as reader:
        reader.read_batch(2)
        assert reader._file.tell() < 2000
        assert reader.remaining() == 998


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_does_not_grow_with_the_file(tmp_path, save):
    save(tmp_path / "a.npz", np.zeros((1000, 128, 128, 3), np.uint8))  # 49 MB
    tracemalloc.start()
    with reference.open_images(tmp_path / "a.npz") as reader:
        assert sum(len(batch) for batch in reader.read_batches(16)) == 1000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6


def test_small_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", scalar=np.float64(3), empty=np.zeros((0, 4)), words=np.array(["a", "bc"]))
    assert npz.list_arrays(tmp_path / "a.npz") == ["scalar", "empty", "words"]
    assert npz.read_array(tmp_path / "a.npz", "scalar") == 3
    assert npz.read_array(tmp_path / "a.npz", "empty").shape == (0, 4)
    assert npz.read_array(tmp_path / "a.npz", "words").tolist() == ["a", "bc"]


class _Bomb:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_objects_are_not_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", np.array([_Bomb()] * 4, dtype=object))
    with pytest.raises(InputError, match=r"a\.npz.*pickled"), reference.open_images("a.npz"):
        pass
    assert not os.path.exists("unpickled")


def _fails(path, match):
    with pytest.raises(InputError, match=match) as caught, reference.open_images(path) as reader:
        list(reader.read_batches(4))
    assert isinstance(caught.value, ValueError)  # what upstream's callers catch
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


class _Failing(io.BytesIO):
    """A file on a disk that fails after a few reads."""

    def read(self, *arguments):
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(*arguments)


@pytest.mark.parametrize("reads", range(7))
def test_what_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch, reads):
    np.savez(tmp_path / "a.npz", _images())

    def fail(path):
        file = _Failing((tmp_path / "a.npz").read_bytes())
        file.left = reads
        return file

    monkeypatch.setattr(npz, "open_regular", fail)
    with pytest.raises(InputError, match=r"a\.npz.*: cannot be read: Input/output error") as caught:
        npz.read_array(tmp_path / "a.npz", "arr_0")
    assert "damaged" not in str(caught.value) and "truncated" not in str(caught.value)


def test_missing_file_and_array(tmp_path):
    _fails(tmp_path / "none.npz", "no such file")
    with pytest.raises(InputError, match="found a folder, expected a regular file"), reference.open_images(tmp_path):
        pass
    np.savez(tmp_path / "a.npz", images=_images())
    _fails(tmp_path / "a.npz", "missing array arr_0; found images")


@pytest.mark.parametrize(
    "array",
    [
        _images().astype(np.float32),
        _images()[0],
        _images()[..., :2],
        _images()[:0],
        np.zeros((4, 3, 8, 8), np.uint8),
        np.uint8(3),
    ],
    ids=["float", "one image", "two channels", "none", "channels first", "scalar"],
)
def test_images_of_another_kind(tmp_path, array):
    np.savez(tmp_path / "a.npz", array)
    _fails(tmp_path / "a.npz", "expected images in arr_0 as uint8")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("keep", [0, 10, 500, -5])
def test_truncated_archive(tmp_path, save, keep):
    save(tmp_path / "a.npz", _images())
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(data[:keep])
    _fails(tmp_path / "a.npz", "not an npz file, or truncated")


def _pack(path, member: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", member)


def test_truncated_or_strange_member(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, _images())
    data = buffer.getvalue()
    _pack(tmp_path / "short.npz", data[:-7])
    _fails(tmp_path / "short.npz", "truncated: expected 900 bytes, found 893")
    _pack(tmp_path / "long.npz", data + b"more")
    _fails(tmp_path / "long.npz", "expected 900 bytes, found 904")
    _pack(tmp_path / "header.npz", data[:20])
    _fails(tmp_path / "header.npz", "damaged")
    _pack(tmp_path / "text.npz", b"hello, world")
    _fails(tmp_path / "text.npz", "damaged")


def test_flipped_bytes(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", np.zeros((500, 6, 5, 3), np.uint8) + np.arange(3, dtype=np.uint8))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[100:110] = b"\xff" * 10
    (tmp_path / "a.npz").write_bytes(data)
    _fails(tmp_path / "a.npz", "damaged")


def test_labels(tmp_path):
    np.savez(tmp_path / "a.npz", _images(), np.arange(10, dtype=np.int32))
    assert reference.read_labels(tmp_path / "a.npz", 10).dtype == np.int64
    with pytest.raises(InputError, match="expected 9 integer labels"):
        reference.read_labels(tmp_path / "a.npz", 9)
    np.savez(tmp_path / "b.npz", _images())
    assert reference.read_labels(tmp_path / "b.npz", 10) is None
    np.savez(tmp_path / "c.npz", _images(), np.zeros(10))
    with pytest.raises(InputError, match="found float64"):
        reference.read_labels(tmp_path / "c.npz", 10)


def test_stored_statistics(tmp_path):
    good = {"mu": np.zeros(3), "sigma": np.eye(3), "mu_s": np.ones(2, np.float32), "sigma_s": np.eye(2)}
    np.savez(tmp_path / "a.npz", _images(), **good)
    pool, spatial = reference.read_stored_statistics(tmp_path / "a.npz")
    assert (pool.mu.shape, spatial.sigma.shape) == ((3,), (2, 2))
    np.savez(tmp_path / "b.npz", _images())
    assert reference.read_stored_statistics(tmp_path / "b.npz") is None
    np.savez(tmp_path / "c.npz", mu=good["mu"], sigma=good["sigma"])
    pool, spatial = reference.read_stored_statistics(tmp_path / "c.npz")
    assert pool.sigma.shape == (3, 3) and spatial is None
    for missing in ("sigma", "sigma_s"):
        np.savez(tmp_path / "e.npz", **{name: array for name, array in good.items() if name != missing})
        with pytest.raises(InputError, match=f"but not {missing}$"):
            reference.read_stored_statistics(tmp_path / "e.npz")
    np.savez(tmp_path / "d.npz", **{**good, "sigma_s": np.eye(3)})
    with pytest.raises(InputError, match="mu_s .*3, 3"):
        reference.read_stored_statistics(tmp_path / "d.npz")


def test_settings(tmp_path):
    for text, found in (('{"seed": 3}', {"seed": 3}), ("[1]", {}), ("{", {}), ("[" * 10**5, {}), (3, {})):
        np.savez(tmp_path / "a.npz", settings=np.array(text))
        assert reference.read_settings(tmp_path / "a.npz") == found
    np.savez(tmp_path / "a.npz", _images(), settings={"seed": 3})  # pickled
    assert reference.read_settings(tmp_path / "a.npz") == {}
    np.savez(tmp_path / "a.npz", _images())
    assert reference.read_settings(tmp_path / "a.npz") == {}


def test_claims_of_terabytes(tmp_path):
    """A header, a directory entry and next to no data."""
    header = io.BytesIO()
    claim = {"descr": "|u1", "fortran_order": False, "shape": (1 << 22, 512, 512, 3)}
    np.lib.format.write_array_header_1_0(header, claim)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", header.getvalue())
        archive.getinfo("arr_0.npy").file_size += (1 << 40) * 3  # written to the directory on closing
    _fails(tmp_path / "a.npz", "array arr_0 claims 3298534883328 bytes out of")


def test_what_must_be_read_at_once_is_bounded(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", mu=np.zeros(100), order=np.zeros((20, 20), order="F"))
    monkeypatch.setattr(npz, "_LARGEST_IN_MEMORY", 799)
    for name in ("mu", "order"):
        with pytest.raises(InputError, match=f"array {name}.* at once, expected at most 799"):
            npz.read_array(tmp_path / "a.npz", name)

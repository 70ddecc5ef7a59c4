"""Damaged files of every kind that is read: success, or the one typed error, and nothing else.

ED_DPM_FUZZ=20000 tries so many mutations of each file, others every time; without it the few are the same ones.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from evaluations import reference
from evaluations.image_sets import open_image_set
from experiments.figures.inputs import read_arrays
from guided_diffusion.errors import InputError
from guided_diffusion.image_datasets import ImageDataset
from guided_diffusion.io import checkpoint
from guided_diffusion.io.images import LIMIT_VARIABLE, pixel_limit
from guided_diffusion.sampling.shards import ShardStore

EXAMPLES = int(os.environ.get("ED_DPM_FUZZ", "0"))

fuzzed = settings(
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


# ---- mutations


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """A file with some bytes exchanged, left out, doubled, cut off, or replaced altogether."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["byte", "byte", "number", "cut", "drop", "double", "insert", "random"]))
        if kind == "byte" and data:
            data[place] = draw(st.integers(0, 255))
        elif kind == "number":  # lengths and counts: the values at which code goes wrong
            value = draw(st.sampled_from([0, 1, 0x7F, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1]))
            width = draw(st.sampled_from([1, 2, 4, 8]))
            order = draw(st.sampled_from(["little", "big"]))
            data[place : place + width] = (value % (1 << (8 * width))).to_bytes(width, order)
        elif kind == "cut":
            del data[place:]
        elif kind == "drop":
            del data[place : place + draw(st.integers(1, 64))]
        elif kind == "double":
            data[place:place] = data[place : place + draw(st.integers(1, 64))]
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=16))
        else:
            data = bytearray(draw(st.binary(max_size=200)))
    return bytes(data)


@st.composite
def damaged_inside(draw, whole: bytes) -> bytes:
    """A zip archive with a damaged member and right checksums: the damage gets past the archive's own checks."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    victim = draw(st.sampled_from(sorted(members)))
    members[victim] = draw(damaged(members[victim]))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@st.composite
def damaged_chunk(draw, whole: bytes) -> bytes:
    """A PNG with a damaged chunk and right checksums."""
    chunks, place = [], 8
    while place < len(whole):
        (length,) = struct.unpack(">I", whole[place : place + 4])
        chunks.append((whole[place + 4 : place + 8], whole[place + 8 : place + 8 + length]))
        place += 12 + length
    victim = draw(st.integers(0, len(chunks) - 1))
    chunks[victim] = (chunks[victim][0], draw(damaged(chunks[victim][1])))
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return whole[:8] + b"".join(packed)


def either(whole: bytes) -> st.SearchStrategy[bytes]:
    return damaged(whole) | damaged_inside(whole)


def survives(path: Path, data: bytes, *readers: Callable[[Path], object]) -> None:
    """Each reader returns or raises InputError in one line with the file's name."""
    path.write_bytes(data)
    for read in readers:
        try:
            read(path)
        except InputError as error:
            assert "\n" not in str(error) and path.name in str(error)
    assert not (path.parent / "executed").exists(), "code in a file was run"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One for all examples: what they write is written over."""
    return tmp_path_factory.mktemp("fuzz")


# ---- npz


def npz_bytes(save=np.savez, **arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


PIXELS = np.arange(4 * 4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 4, 3)
NPZ = {
    "plain": npz_bytes(arr_0=PIXELS, arr_1=np.arange(4)),
    "compressed": npz_bytes(np.savez_compressed, arr_0=PIXELS, arr_1=np.arange(4)),
    "fortran": npz_bytes(arr_0=np.asfortranarray(PIXELS), arr_1=np.arange(4)),
    "statistics": npz_bytes(mu=np.zeros(3), sigma=np.eye(3), mu_s=np.zeros(2), sigma_s=np.eye(2)),
}


def read_all_images(path: Path) -> None:
    with reference.open_images(path) as reader:
        for batch in reader.read_batches(3):
            assert batch.dtype == np.uint8 and batch.ndim == 4


def read_image_set(path: Path) -> None:
    images = open_image_set(path)
    if images.count < 1000:
        images.labels()
        for batch in images.batches(3):
            assert batch.dtype == np.uint8 and batch.shape[1:] == images.shape[1:]


@pytest.mark.parametrize("kind", NPZ)
def test_npz_files(kind, folder):
    @fuzzed
    @given(either(NPZ[kind]))
    def check(data):
        survives(
            folder / "a.npz",
            data,
            read_all_images,
            read_image_set,
            lambda path: reference.read_labels(path, 4),
            reference.read_stored_statistics,
            read_arrays,
        )

    check()


def test_parts_of_a_run(tmp_path):
    """A damaged part counts as missing, whatever the damage."""
    store = ShardStore(tmp_path)
    store.write(0, {"arr_0": PIXELS})
    (path,) = (tmp_path / "parts").iterdir()
    whole = path.read_bytes()

    @fuzzed
    @given(either(whole))
    def check(data):
        path.write_bytes(data)
        for shard in store.shards():
            assert shard.start == 0 and shard.indices.start == 0

    check()


# ---- checkpoints


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict()


def checkpoint_bytes(folder: Path, name: str, **options) -> bytes:
    if name.endswith(".safetensors"):
        checkpoint.save(weights(), folder / name)
    else:
        torch.save(weights(), folder / name, **options)
    return (folder / name).read_bytes()


def load(path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    checkpoint.load_weights(model, path)
    assert all(values.isfinite().all() for values in model.state_dict().values())


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_checkpoints(kind, folder):
    name = "model.safetensors" if kind == "safetensors" else "model.pt"
    options = {"_use_new_zipfile_serialization": False} if kind == "legacy" else {}
    whole = checkpoint_bytes(folder, name, **options)

    @fuzzed
    @given(either(whole) if kind == "zip" else damaged(whole))
    def check(data):
        survives(folder / name, data, load, checkpoint.load_state_dict)

    check()


@fuzzed
@given(st.binary(max_size=100) | damaged(b'{"image_size": 64, "class_names": ["a", "b"], "x": [[1]]}'))
def test_config_json(folder, data):
    (folder / "config.json").write_bytes(data)
    with suppress(InputError):
        assert isinstance(checkpoint.read_config(folder / "model.pt"), dict)


# ---- images


def image_bytes(kind: str) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(np.arange(12 * 9 * 3, dtype=np.uint8).reshape(12, 9, 3) * 7)
    if kind == "GIF":
        picture = picture.quantize(16)
    picture.save(buffer, format=kind)
    return buffer.getvalue()


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setenv(LIMIT_VARIABLE, "1000000")  # so that no example takes seconds
    pixel_limit.cache_clear()
    yield
    pixel_limit.cache_clear()


def train_on(path: Path) -> None:
    pixels, _ = ImageDataset(8, [str(path)], random_crop=True)[0]
    assert pixels.shape == (3, 8, 8) and np.abs(pixels).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_images(kind, folder, small_limit):
    whole = image_bytes(kind)
    (folder / kind).mkdir(exist_ok=True)

    @fuzzed
    @given(damaged(whole) | damaged_chunk(whole) if kind == "PNG" else damaged(whole))
    def check(data):
        survives(folder / kind / f"a.{kind.lower()}", data, train_on)
        with suppress(InputError):
            read_image_set(folder / kind)

    check()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_of_images(kind, folder, small_limit):
    import tarfile

    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for label in range(2):
                archive.writestr(f"{label}_{label}.png", image_bytes("PNG"))
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for label in range(2):
                member = tarfile.TarInfo(f"{label}_{label}.png")
                member.size = len(image_bytes("PNG"))
                archive.addfile(member, io.BytesIO(image_bytes("PNG")))
    whole = buffer.getvalue()

    @fuzzed
    @given(either(whole) if kind == "zip" else damaged(whole))
    def check(data):
        survives(folder / f"images.{kind}", data, read_image_set)

    check()

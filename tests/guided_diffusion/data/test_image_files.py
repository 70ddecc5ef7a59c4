"""Which files of a folder or archive are images, in what order, and what is said of the others."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from evaluations.image_sets import open_image_set
from guided_diffusion import logger
from guided_diffusion.data import image_files, image_oddities
from guided_diffusion.data.image_files import list_images
from guided_diffusion.data.image_labels import read_labels
from guided_diffusion.data.image_oddities import Oddities
from guided_diffusion.errors import InputError
from guided_diffusion.image_datasets import find_images, load_data, open_dataset
from guided_diffusion.io.images import Reading, open_image, read_image

NAMES = ("a/1.png", "a/2.webp", "b/3.bmp", "b/4.TIF", "b/c/5.ppm", "d.jpg")
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in NAMES:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS).save(path)
    for name in (".ipynb_checkpoints/a.png", "__MACOSX/a.png", "a/._1.png", "a/notes.txt", "b/x.txt", "README"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("no image")
    return tmp_path / "images"


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(logger, "warn", found.append)
    return found


def packed(folder: Path, kind: str) -> Path:
    """The folder's files in an archive beside it."""
    target = folder.with_suffix(f".{kind}")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if kind == "zip":
        with zipfile.ZipFile(target, "w") as archive:
            for path in files:
                archive.write(path, path.relative_to(folder))
    else:
        with tarfile.open(target, f"w:{kind.partition('.')[2]}") as archive:
            for path in files:
                archive.add(path, f"./{path.relative_to(folder)}")
    return target


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_every_suffix_is_found_and_the_rest_counted(folder, kind):
    files = list_images(str(folder if kind == "folder" else packed(folder, kind)))
    assert files.names == list(NAMES)
    assert files.skipped == {".txt": 2, "README": 1, "._*": 1, ".ipynb_checkpoints/": 1, "__MACOSX/": 1}
    assert files.describe_skipped().startswith(f"{files.place}: 4 files skipped: 2 .txt, ")
    assert "; 2 folders skipped: 1 .ipynb_checkpoints/" in files.describe_skipped()
    for name, file in files.stream():
        assert read_image(name, file, "RGB").size == (8, 8)
    if kind != "tar.gz":
        again = pickle.loads(pickle.dumps(files))  # as for a worker process that is not forked
        with again.open(again.path("a/1.png")) as file:
            assert (np.asarray(read_image("a", file, "RGB")) == PIXELS).all()


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_training_and_evaluation_read_the_same_files(folder, kind, warnings):
    place = str(folder if kind == "folder" else packed(folder, kind))
    dataset = open_dataset(find_images(place), 6, resolution=8, random_flip=False)
    images = np.stack([dataset[i][0] for i in range(len(dataset))])
    (judged,) = open_image_set(place).batches(6)
    assert np.array_equal(np.rint((images.transpose(0, 2, 3, 1) + 1) * 127.5), judged)
    assert len(warnings) == 1 and "4 files skipped" in warnings[0] and ".ipynb_checkpoints/" in warnings[0]


def test_upstreams_function_takes_upstreams_suffixes_and_says_so(folder, warnings):
    load_data(data_dir=str(folder), batch_size=2, image_size=8)
    assert "8 files skipped: " in warnings[0] and "1 .webp" in warnings[0]
    with pytest.raises(InputError, match="found 2 images, expected at least a batch of --batch_size"):
        load_data(data_dir=str(folder), batch_size=3, image_size=8)


def test_training_refuses_a_packed_tar(folder):
    with pytest.raises(InputError, match="found a packed tar; expected a folder, a zip or an unpacked tar"):
        find_images(str(packed(folder, "tar.gz")))


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.heic").write_text("")
    with pytest.raises(InputError, match=r"found none in the tree \(1 file skipped: 1 .heic\)"):
        find_images(str(tmp_path / "x"))
    with pytest.raises(InputError, match=r"x: found no images, expected some of bmp, .*; 1 file skipped: 1 .heic"):
        open_image_set(tmp_path / "x")


def test_links(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "elsewhere" / "1.png")
    (folder / "e").symlink_to(tmp_path / "elsewhere")
    assert list_images(str(folder)).names[-1] == "e/1.png"
    (folder / "f").symlink_to(tmp_path / "nowhere")
    line = rf"images: f: a link to {tmp_path}/nowhere, where there is nothing; expected it mended or removed"
    with pytest.raises(InputError, match=line):
        list_images(str(folder))
    with pytest.raises(InputError, match="data_dir .*/f: a link to .*/nowhere, where there is nothing"):
        find_images(str(folder / "f"))
    (folder / "f").unlink()
    (folder / "a" / "9.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match=r"images: a/9.png: a link to .*nowhere.png, where there is nothing"):
        list_images(str(folder))
    (folder / "a" / "9.png").unlink()
    (folder / "a" / "self").symlink_to(folder / "a" / "self")
    with pytest.raises(InputError, match="images: a/self: cannot be listed: Too many levels of symbolic links"):
        list_images(str(folder))
    (folder / "a" / "self").unlink()
    (folder / "a" / "up").symlink_to(folder)
    with pytest.raises(InputError, match="images: a/up links to a folder that it is in; remove the link"):
        list_images(str(folder))


def test_an_unreadable_subfolder_is_an_error(folder):
    scandir = os.scandir

    def refuse(path):
        if str(path).rstrip("/").endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    with (
        mock.patch.object(image_files.os, "scandir", refuse),
        pytest.raises(InputError, match="images: b: cannot be listed: Permission denied"),
    ):
        list_images(str(folder))


def test_names_that_are_no_text(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff_1.png")
    assert len(open_image_set(tmp_path).digest()) == 64
    files = find_images(str(tmp_path))
    dataset = open_dataset(files, 1, read_labels(files, "filename"), resolution=8)
    assert dataset[0][1]["y"] == 0


def png(image: Image.Image, **more) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, format="PNG", **more)
    file.seek(0)
    return file


def test_12_bits_in_16_are_warned_of_and_read(tmp_path, warnings):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 63
    for number in range(3):
        Image.fromarray(values).save(tmp_path / f"a_{number}.png")
    find = {"files": find_images(str(tmp_path)), "batch_size": 1, "resolution": 8, "channels": 1, "random_flip": False}
    dataset = open_dataset(**find)
    assert len(warnings) == 1 and "3 of 3 images looked at have 16 bits a value and use under a" in warnings[0]
    assert "--bit_depth" in warnings[0] and dataset[0][0].max() < -0.8
    dataset = open_dataset(**find, reading=Reading(bit_depth=12))
    assert len(warnings) == 1
    assert np.array_equal(np.rint((dataset[0][0][0] + 1) * 127.5), values >> 4)
    open_dataset(**find, reading=Reading(bit_depth=10))
    assert "have values of more than 10 bits, which come out white; --bit_depth 16 keeps them" in warnings[1]


def test_the_evaluator_counts_what_is_unusual(tmp_path, caplog):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "README").touch()
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 63
    for number in range(5):
        Image.fromarray(values if number < 2 else values * 16).save(folder / f"{number}.png")
    for _ in range(2):  # it is opened twice, and warns once
        open_image_set(folder)
    lines = [line.partition("images: ")[2] for line in caplog.messages]
    assert lines == [
        "1 file skipped: 1 README",
        "2 of 5 images looked at have 16 bits a value and use under a sixteenth of the range of 16, and so come out "
        "nearly black; --bit_depth says how many bits they use, such as 12",
    ]


def test_exif_orientation(tmp_path, warnings):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the right side is the bottom
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    find = {"files": find_images(str(tmp_path)), "batch_size": 1, "resolution": 8, "random_flip": False}
    plain = open_dataset(**find)[0][0]
    assert "1 of 1 images looked at say in EXIF that they are to be turned" in warnings[0] and len(warnings) == 1
    turned = open_dataset(**find, reading=Reading(exif_transpose=True))[0][0]
    assert len(warnings) == 1
    assert np.array_equal(np.rint((plain.transpose(1, 2, 0) + 1) * 127.5), PIXELS)
    assert np.array_equal(np.rint((turned.transpose(1, 2, 0) + 1) * 127.5), np.rot90(PIXELS, -1))


def test_one_odd_image_among_many_is_found(tmp_path, warnings, monkeypatch):
    """Wherever it is in the order; when the time is up the line says how many were looked at."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(200):
        Image.fromarray(PIXELS).save(tmp_path / f"{number:03}.jpg", **({"exif": exif} if number in (0, 123) else {}))
    find = {"files": find_images(str(tmp_path)), "batch_size": 1, "resolution": 8}
    open_dataset(**find)
    assert "2 of 200 images looked at say in EXIF that they are to be turned" in warnings[0]
    monkeypatch.setattr(image_oddities, "_LOOKING", -1)
    open_dataset(**find)
    assert "1 of the 1 images looked at (of 200) say in EXIF" in warnings[1]


def test_images_are_looked_at_in_a_spread_out_order():
    for count in (1, 2, 3, 10, 1000, 1597):
        order = list(image_oddities._spread_out(count))
        assert sorted(order) == list(range(count))
    gaps = np.diff(sorted(list(image_oddities._spread_out(100_003))[:100]))
    assert gaps.max() < 3 * 1000


def test_looking_at_a_png_file_does_not_decode_it(monkeypatch):
    image = open_image(png(Image.fromarray(PIXELS)))
    monkeypatch.setattr(image, "load", mock.Mock(side_effect=AssertionError))
    Oddities().look(image)


@pytest.mark.parametrize(
    ("value", "says"), [(b"\x0f\xff", "come out nearly black"), (b"\x7f\xff", "of which the lower 8 are dropped")]
)
def test_sixteen_bits_a_colour_are_told(value, says):
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" + 3 * value)),
        (b"IEND", b""),
    ]
    packed = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    oddities = Oddities()
    oddities.look(open_image(io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(packed))))
    (line,) = oddities.describe("x")
    assert line.startswith("x: 1 of 1 images looked at have 16 bits a colour") and says in line


def test_transparent_pixels():
    hidden = np.zeros((2, 2, 4), np.uint8)
    hidden[0] = (200, 10, 10, 255)
    hidden[1] = (0, 255, 0, 0)
    image = Image.fromarray(hidden)
    for alpha, expected in (("keep", (0, 255, 0)), ("white", (255, 255, 255)), ("black", (0, 0, 0))):
        found = np.asarray(read_image("a", png(image), "RGB", Reading(alpha=alpha)))
        assert found[0, 0].tolist() == [200, 10, 10] and tuple(found[1, 0]) == expected
        oddities = Oddities(Reading(alpha=alpha))
        oddities.look(open_image(png(image)))
        oddities.look(open_image(png(image.convert("RGB").convert("RGBA"))))  # nothing shines through
        lines = oddities.describe("x")
        assert lines == [] if alpha != "keep" else lines[0].startswith("x: 1 of 2 images looked at have transparent")

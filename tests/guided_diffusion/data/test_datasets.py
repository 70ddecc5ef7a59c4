"""Folders of images: what is found, labelled, cropped, batched and refused."""

import itertools
import os
import random
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from evaluations.image_sets import open_image_set
from guided_diffusion import image_datasets
from guided_diffusion.data.image_files import UPSTREAMS
from guided_diffusion.data.image_labels import read_labels
from guided_diffusion.errors import InputError
from guided_diffusion.image_datasets import ImageDataset, find_images, load_data
from tests.support.helpers import ROOT


@pytest.fixture(scope="module")
def peer():
    """The genuine upstream, where it can be had."""
    parity = pytest.importorskip("benchmarks.upstream", reason="benchmarks.upstream is not importable")
    return parity.require_upstream()


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def folder(tmp_path):
    """Ten images of three classes, and files that are none."""
    names = [
        "b_0.png",
        "b_1.JPG",
        "c_2.jpeg",
        "sub/a_3.png",
        "sub/a_4.gif",
        "sub/deep/b_5.PNG",
        "sub/c_6.png",
    ]
    names += ["t/a_7.png", "t/b_8.png", "t/c_9.png"]
    for seed, name in enumerate(names):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(20 + seed, 24, seed=seed).save(path)
    for other in ("notes.txt", "sub/x_1.bmp", "png", "t/archive.png.tar"):
        (tmp_path / "images" / other).write_text("no image")
    return str(tmp_path / "images")


def take(count: int, data) -> list:
    batches = list(itertools.islice(data, count))
    data.close()
    return batches


def test_files_are_found_in_one_sorted_pass(folder):
    found = image_datasets._list_image_files_recursively(folder)
    assert [os.path.relpath(path, folder) for path in found] == [
        *("b_0.png", "b_1.JPG", "c_2.jpeg", "sub/a_3.png", "sub/a_4.gif", "sub/c_6.png", "sub/deep/b_5.PNG"),
        *("t/a_7.png", "t/b_8.png", "t/c_9.png"),
    ]


def test_labels_are_numbered_over_the_whole_tree(folder):
    assert read_labels(find_images(folder, UPSTREAMS), "filename").names == ["a", "b", "c"]
    keywords = {
        "data_dir": folder,
        "batch_size": 5,
        "image_size": 8,
        "class_cond": True,
        "deterministic": True,
    }
    (_, first), (_, second) = take(2, load_data(**keywords))
    assert first["y"].dtype == torch.int64
    assert torch.cat([first["y"], second["y"]]).tolist() == [1, 1, 2, 0, 0, 2, 1, 0, 1, 2]
    names = ["z", "c", "b", "a"]
    (_, first), _ = take(2, load_data(**keywords, class_names=names))
    assert first["y"].tolist() == [2, 2, 1, 3, 3]


def test_a_name_without_underscore_is_its_own_label(tmp_path):
    for name in ("cat.png", "dog_1.png"):
        noise(8, 8).save(tmp_path / name)
    assert read_labels(find_images(str(tmp_path)), "filename").names == ["cat.png", "dog"]


def test_a_label_outside_the_given_classes_names_the_file(folder):
    with pytest.raises(
        InputError, match=r"sub/a_3\.png: its label 'a' is none of the 2 known classes \(b, c\)"
    ):
        load_data(data_dir=folder, batch_size=1, image_size=8, class_cond=True, class_names=["b", "c"])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("random_crop", [False, True])
def test_batches(folder, channels, random_crop):
    data = load_data(data_dir=folder, batch_size=3, image_size=16, channels=channels, random_crop=random_crop)
    for images, condition in take(4, data):  # the fourth belongs to the second epoch
        assert images.shape == (3, channels, 16, 16) and images.dtype == torch.float32
        assert -1 <= images.min() < -0.3 and 0.3 < images.max() <= 1  # grey noise, made smaller, has few extremes
        assert condition == {}


def test_pixels_are_scaled_exactly(tmp_path):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = values.astype(np.float32) / np.float32(127.5) - np.float32(1)
    for channels in (1, 3):
        image, condition = ImageDataset(16, [str(tmp_path / "a.png")], random_flip=False, channels=channels)[
            0
        ]
        assert image.shape == (channels, 16, 16) and condition == {}
        assert (image == expected).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "P with transparency", "PA", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_training_and_evaluation_read_every_mode_alike(tmp_path, mode, channels):
    """And as upstream does: PIL's conversion."""
    path = tmp_path / "a.png"
    picture = noise(16, 16).convert(mode.split()[0])
    more = {"transparency": 3} if "with" in mode else {}
    picture.save(path, format="TIFF" if mode in ("CMYK", "PA") else "PNG", **more)
    image, _ = ImageDataset(16, [str(path)], random_flip=False, channels=channels)[0]
    assert image.shape == (channels, 16, 16) and image.min() < -0.5 and image.max() > 0.5
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("L" if channels == 1 else "RGB")).reshape(16, 16, channels)
    assert np.array_equal(np.rint((image.transpose(1, 2, 0) + 1) * 127.5), expected)
    (judged,) = open_image_set(tmp_path).batches(1)
    if judged.shape[3] == channels:
        assert np.array_equal(judged[0], expected)
    assert judged.shape[3] == (1 if mode in ("1", "L", "LA") else 3)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_training_and_evaluation_take_the_upper_8_of_16_bits(tmp_path, form):
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(values).save(tmp_path / "a.png", format=form)
    image, _ = ImageDataset(16, [str(tmp_path / "a.png")], random_flip=False, channels=1)[0]
    (judged,) = open_image_set(tmp_path).batches(1)
    assert np.array_equal(np.rint((image[0] + 1) * 127.5), values >> 8)
    assert np.array_equal(judged[0, ..., 0], values >> 8)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_training_and_evaluation_refuse_32_bits_alike(tmp_path, mode):
    values = np.arange(256).reshape(16, 16) * 257
    kind = {"F": np.float32, "I": np.int32}[mode]
    Image.fromarray(values.astype(kind)).save(tmp_path / "a.png", format="TIFF")
    line = f"a.png: cannot be read as an image: found an image of mode {mode}, expected 8 bits of grey or RGB"
    for read in (lambda: ImageDataset(16, [str(tmp_path / "a.png")])[0], lambda: open_image_set(tmp_path)):
        with pytest.raises(InputError) as error:
            read()
        assert str(error.value).endswith(line)


def test_flips_follow_the_crop_and_happen_half_the_time(folder):
    dataset = ImageDataset(16, image_datasets._list_image_files_recursively(folder), random_crop=True)
    flipped = 0
    for seed in range(200):
        random.seed(seed)
        image, _ = dataset[0]
        dataset.random_flip = False
        random.seed(seed)
        plain, _ = dataset[0]
        dataset.random_flip = True
        mirrored = random.random() < 0.5  # the next draw
        assert np.array_equal(image, plain[:, :, ::-1] if mirrored else plain)
        flipped += mirrored
    assert 70 < flipped < 130


def test_shards_are_disjoint_and_cover_everything(folder):
    paths = image_datasets._list_image_files_recursively(folder)
    shards = [ImageDataset(8, paths, list(range(10)), shard, 3) for shard in range(3)]
    assert [len(shard) for shard in shards] == [4, 3, 3]
    assert sorted(path for shard in shards for path in shard.local_images) == sorted(paths)
    assert shards[1].local_classes == [1, 4, 7]


def test_the_rank_decides_the_shard(folder):
    keywords = {
        "data_dir": folder,
        "batch_size": 5,
        "image_size": 8,
        "class_cond": True,
        "deterministic": True,
    }
    seen = []
    for rank in ("0", "1"):
        with mock.patch.dict(os.environ, {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank}):
            if torch.distributed.is_initialized():
                pytest.skip("another test left a process group")
            seen.append(take(1, load_data(**keywords))[0][1]["y"].tolist())
    assert seen == [[1, 2, 0, 1, 1], [1, 0, 2, 0, 2]]


CROPS = [((200, 131), 32), ((33, 500), 16), ((20, 30), 32), ((129, 128), 64), ((7, 7), 16), ((65, 64), 64)]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size, side", CROPS)
def test_crops_equal_upstreams(peer, size, side, mode):
    image = noise(*size, mode)
    ours = image_datasets.center_crop_arr(image, side)
    theirs = peer.image_datasets.center_crop_arr(image, side)
    assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    for fractions in ((), (0.5, 0.9)):
        both = []
        for module in (image_datasets, peer.image_datasets):
            random.seed(1)
            both.append([module.random_crop_arr(image, side, *fractions) for _ in range(8)])
            both[-1].append(random.random())
        assert all(np.array_equal(a, b) for a, b in zip(*both, strict=True))


def test_centre_crop_takes_the_middle():
    columns = np.tile(np.arange(40, dtype=np.uint8), (9, 1))
    crop = image_datasets.center_crop_arr(Image.fromarray(columns), 9)
    assert crop.shape == (9, 9) and (crop == np.arange(15, 24)).all()


def test_random_crops_reach_every_place_and_scale():
    columns = np.tile(np.arange(10, dtype=np.uint8), (8, 1))
    random.seed(0)
    lefts = {
        int(image_datasets.random_crop_arr(Image.fromarray(columns), 8, 1.0, 1.0)[0, 0]) for _ in range(99)
    }
    assert lefts == {0, 1, 2}
    sides = []
    with mock.patch("guided_diffusion.data.datasets._resize_short_side") as resize:
        resize.side_effect = lambda image, side: sides.append(side) or image.resize((side, side))
        for _ in range(99):
            image_datasets.random_crop_arr(Image.new("L", (64, 64)), 8)
    assert set(sides) == {8, 9, 10}


@pytest.mark.parametrize("deterministic", [False, True])
def test_epochs_draw_the_random_numbers_that_upstream_draws(peer, folder, deterministic):
    """Shuffling, flips, crops and the main process's own torch numbers, over three epochs."""
    runs = []
    for module in (image_datasets, peer.image_datasets):
        torch.manual_seed(5)
        data = module.load_data(
            data_dir=folder,
            batch_size=4,
            image_size=8,
            class_cond=True,
            random_crop=True,
            deterministic=deterministic,
        )
        runs.append([(next(data), torch.rand(1)) for _ in range(6)])
        data.close()
    for ((ours, our_y), our_draw), ((theirs, their_y), their_draw) in zip(*runs, strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(our_y["y"], their_y["y"])
        assert torch.equal(our_draw, their_draw)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [b"", b"not an image", None])
def test_an_unreadable_image_is_named_in_one_line(folder, damage):
    path = Path(folder, "sub", "a_3.png")
    path.write_bytes(path.read_bytes()[:700] if damage is None else damage)
    data = load_data(data_dir=folder, batch_size=5, image_size=8, deterministic=True)
    with pytest.raises(InputError, match=rf"^{path}: cannot be read as an image: .") as caught:
        next(data)
    assert "\n" not in str(caught.value)


def test_refusals_come_before_the_first_batch(folder, tmp_path):
    keywords = {"batch_size": 4, "image_size": 8}
    with pytest.raises(ValueError, match="data_dir") as caught:
        load_data(data_dir="", **keywords)
    assert isinstance(caught.value, InputError)
    with pytest.raises(InputError, match=r"data_dir .*/nowhere: no such folder"):
        load_data(data_dir=str(tmp_path / "nowhere"), **keywords)
    with pytest.raises(InputError, match=r"notes\.txt: cannot be listed"):
        load_data(data_dir=f"{folder}/notes.txt", **keywords)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"/empty: expected images \(gif, jpeg, jpg, png\), found none"):
        load_data(data_dir=str(tmp_path / "empty"), **keywords)
    with pytest.raises(InputError, match=r": found 10 images, expected at least a batch of --batch_size 11; lower"):
        load_data(data_dir=folder, batch_size=11, image_size=8)
    with pytest.raises(InputError, match="batch_size: expected at least 1, found 0"):
        load_data(data_dir=folder, batch_size=0, image_size=8)
    with pytest.raises(InputError, match="channels: expected 1 or 3, found 2"):
        load_data(data_dir=folder, channels=2, **keywords)


def test_too_few_images_for_every_rank_stops_every_rank(folder):
    """Ten images among three ranks: rank 0 alone would have its batch of four."""
    for rank in ("0", "1", "2"):
        with (
            mock.patch.dict(os.environ, {"RANK": rank, "WORLD_SIZE": "3", "LOCAL_RANK": rank}),
            pytest.raises(InputError, match="found 10 images, 3 for each of 3 processes, expected"),
        ):
            if torch.distributed.is_initialized():
                pytest.skip("another test left a process group")
            load_data(data_dir=folder, batch_size=4, image_size=8)


@pytest.mark.slow
def test_a_program_that_stops_in_mid_epoch_ends(folder):
    code = (
        "from guided_diffusion.image_datasets import load_data\n"
        f"data = load_data(data_dir={folder!r}, batch_size=2, image_size=8)\nnext(data)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")

"""Crops, the image folder and the logger's files, compared byte by byte."""

from __future__ import annotations

import os
import random
import tempfile
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from guided_diffusion import image_datasets, logger
from tests.parity.compare import Cases, Refusal, outcome_of

CASES = Cases()
BITWISE = 0.0
SIZES = ((64, 64), (65, 64), (64, 97), (200, 131), (33, 500), (129, 128), (20, 30), (7, 7))


def random_image(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


@CASES.add("center_crop_arr", BITWISE)
def center_crops(peer):
    for (width, height), size in product(SIZES, (16, 32, 64)):
        image = random_image(width, height)
        sides = (module.center_crop_arr(image, size) for module in (image_datasets, peer.image_datasets))
        yield f"{width}x{height} to {size}", *sides


@CASES.add("random_crop_arr, the same draws from random", BITWISE)
def random_crops(peer):
    for (width, height), size, fractions in product(SIZES, (16, 32, 64), ((), (0.5, 0.9), (1.0, 1.0))):
        image = random_image(width, height)
        sides = []
        for module in (image_datasets, peer.image_datasets):
            random.seed(width + height)
            crops = [module.random_crop_arr(image, size, *fractions) for _ in range(5)]
            sides.append([*crops, random.random()])
        yield f"{width}x{height} to {size}, fractions {fractions}", *sides


@contextmanager
def image_folder():
    """A tree of images of several formats, modes and sizes, with labels in the names, and other files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for sub in ("b", "a/deep"):
            (folder / sub).mkdir(parents=True)
        names = (
            "cat_1.png", "cat_2.JPG", "dog_1.jpeg", "b/ant_7.png", "b/ant_8.PNG", "a/dog_9.png",
            "a/deep/cat_3.gif", "a/deep/unlabelled.png",
            "b/ant_7.txt", "notes", "b/.hidden_1.png", "bee_1.bmp",
        )  # fmt: skip
        modes = ("RGB", "L", "RGBA", "P", "RGB", "LA", "L", "RGB")
        for index, path in enumerate(names):
            if path.lower().endswith(("png", "jpg", "jpeg", "gif", "bmp")):
                mode = (
                    "RGB"
                    if path.lower().endswith(("jpg", "jpeg", "gif", "bmp"))
                    else modes[index % len(modes)]
                )
                random_image(40 + 7 * index, 70 - 3 * index, mode, index).save(folder / path)
            else:
                (folder / path).write_text("not an image")
        yield name


@CASES.add("the files of a tree, in upstream's order", BITWISE)
def listing(peer):
    with image_folder() as folder:
        sides = (
            [os.path.relpath(str(path), folder) for path in module._list_image_files_recursively(folder)]
            for module in (image_datasets, peer.image_datasets)
        )
        yield "paths", *sides


@CASES.add("ImageDataset: shards, crops, flips, classes", BITWISE)
def datasets(peer):
    with image_folder() as folder:
        paths = peer.image_datasets._list_image_files_recursively(folder)
        classes = list(range(len(paths)))
        for shards, crop, flip, labels in product((1, 3), (False, True), (False, True), (None, classes)):
            for shard in range(shards):
                keywords = {
                    "classes": labels,
                    "shard": shard,
                    "num_shards": shards,
                    "random_crop": crop,
                    "random_flip": flip,
                }
                sides = []
                for module in (image_datasets, peer.image_datasets):
                    dataset = module.ImageDataset(16, paths, **keywords)
                    random.seed(3)
                    sides.append([len(dataset), *(dataset[i] for i in range(len(dataset)))])
                yield f"shard {shard} of {shards}, crop {crop}, flip {flip}, labels {bool(labels)}", *sides


@CASES.add("load_data: batches, labels, epochs, refusal of an empty name", BITWISE)
def loaders(peer):
    with image_folder() as folder:
        for class_cond in (False, True):
            sides = []
            for module in (image_datasets, peer.image_datasets):
                data = module.load_data(
                    data_dir=folder, batch_size=3, image_size=16, class_cond=class_cond, deterministic=True,
                    random_flip=False,
                )  # fmt: skip
                sides.append([as_plain(batch) for batch in islice(data, 4)])
                data.close()
            yield f"class_cond {class_cond}", *sides
    for module in (image_datasets, peer.image_datasets):
        refused = outcome_of(lambda m=module: next(m.load_data(data_dir="", batch_size=1, image_size=16)))
        yield "empty data_dir", refused, Refusal(ValueError)


def as_plain(batch):
    images, condition = batch
    return [torch.as_tensor(images), dict(condition)]


def write_logs(module, folder: str) -> list:
    """Log fixed values through one implementation's logger; return its results and every file that it wrote."""
    returned = []
    with module.scoped_configure(dir=folder, format_strs=["log", "csv", "json"]):
        module.log("hello", 3, "worlds")
        module.logkv("step", 0)
        module.logkv("a name that is much longer than thirty characters", 1.23456789)
        module.logkv("B", "text")
        module.logkv_mean("loss", 1.0)
        module.logkv_mean("loss", 2.5)
        module.logkv_mean("loss", np.float32(0.1))
        returned.append(dict(module.getkvs()))
        returned.append(dict(module.dumpkvs()))
        module.logkvs({"step": 1, "zeta": 1e-9, "alpha": 123456.789, "array": np.float64(1 / 3)})
        returned.append(dict(module.dumpkvs()))
        module.logkvs({"step": 2, "loss": float("nan"), "Alpha": -1})
        module.record_tabular("later", 5)
        module.dump_tabular()
        module.set_level(module.WARN)
        for write in (module.debug, module.info, module.warn, module.error):
            write("a message from", write.__name__)
        module.log("shown", level=module.ERROR)
        returned.append(module.get_dir())
    return returned


@CASES.add("logger: log.txt, progress.csv, progress.json, what is returned", BITWISE)
def logger_files(peer):
    ranks = ({}, {"PMI_RANK": "2"}, {"OMPI_COMM_WORLD_RANK": "1"})
    for environment in ranks:
        sides = []
        for module in (logger, peer.logger):
            with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, environment):
                returned = write_logs(module, folder)
                files = {
                    path.name: path.read_text().replace(folder, "DIR")
                    for path in sorted(Path(folder).iterdir())
                }
                sides.append([returned[:-1], returned[-1] == folder, files])
        yield f"{environment or 'rank 0'}", *sides


@CASES.add("logger: formats and directories from the environment", BITWISE)
def logger_environment(peer):
    settings = (
        {"OPENAI_LOG_FORMAT": "csv"},
        {"OPENAI_LOG_FORMAT": "log,json"},
        {"OPENAI_LOG_FORMAT": ""},
        {"PMI_RANK": "3"},
        {"PMI_RANK": "3", "OPENAI_LOG_FORMAT_MPI": "json"},
    )
    for environment in settings:
        sides = []
        for module in (logger, peer.logger):
            with tempfile.TemporaryDirectory() as folder:
                variables = environment | {"OPENAI_LOGDIR": folder + "/new/place"}
                with mock.patch.dict(os.environ, variables), module.scoped_configure():
                    module.logkv("a", 1)
                    module.dumpkvs()
                    sides.append([path.name for path in sorted(Path(folder, "new/place").iterdir())])
        yield f"{environment}", *sides
    for module in (logger, peer.logger):
        refused = outcome_of(module.make_output_format, "xml", tempfile.gettempdir())
        yield "unknown format", refused, Refusal(ValueError)

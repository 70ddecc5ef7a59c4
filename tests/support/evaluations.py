"""Images, activations, classifiers and frozen graphs for tests of the evaluator; the same for the same seed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evaluations.features.base import Activations
from guided_diffusion.io.checkpoint import save, write_config
from guided_diffusion.script_util import create_classifier


def make_activations(recipe: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reference features, sample features (both float32 [N, D]) and class weights float32 [D, K]."""
    random = np.random.RandomState(recipe["seed"])
    dims = recipe["dims"]
    mixing = random.randn(dims, dims) / np.sqrt(dims)
    reference = random.randn(recipe["n_reference"], dims) @ mixing
    samples = 0.9 * random.randn(recipe["n_samples"], dims) @ mixing + recipe["shift"]
    weights = recipe["weight_scale"] * random.randn(dims, recipe["classes"]) / np.sqrt(dims)
    if recipe["kind"] == "relu":  # like pool_3: no negative values, many zeros
        reference, samples = np.maximum(reference - 0.3, 0), np.maximum(samples - 0.3, 0)
    elif recipe["kind"] == "large":  # squared norms beyond half precision
        reference, samples = 100 * reference, 100 * samples
    return reference.astype(np.float32), samples.astype(np.float32), weights.astype(np.float32)


def make_images(seed: int, count: int, size: int) -> np.ndarray:
    """Smooth random colour images, uint8 [N, size, size, 3]."""
    random = np.random.RandomState(seed)
    coarse = random.randint(0, 256, size=(count, 4, 4, 3))
    fine = random.randint(-20, 21, size=(count, size, size, 3))
    return np.clip(coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2) + fine, 0, 255).astype(np.uint8)


def write_frozen_graph(path: Path, seed: int = 0, size: int = 68) -> None:
    """A small random network under the node names of the frozen Inception graph, with its fixed batch of 1.

    A picture is cast, expanded to a batch of one, resized to ``size`` and normalised; a convolution makes
    the 17x17 map ``mixed_6/conv``, a second one and a mean over space make ``pool_3``.
    """
    import tensorflow.compat.v1 as tf

    random = np.random.RandomState(seed)
    first = (random.randn(4, 4, 3, 16) / 7).astype(np.float32)
    second = (random.randn(1, 1, 16, 2048) / 4).astype(np.float32)
    weights = random.randn(2048, 1008).astype(np.float32)
    with tf.Graph().as_default() as graph:
        picture = tf.placeholder(tf.uint8, [None, None, 3], name="DecodeJpeg")
        batch = tf.expand_dims(tf.cast(picture, tf.float32, name="Cast"), 0, name="ExpandDims")
        resized = tf.image.resize_bilinear(batch, [size, size], name="ResizeBilinear")
        normal = tf.multiply(tf.subtract(resized, 128.0, name="Sub"), 1 / 128, name="Mul")
        with tf.name_scope("mixed_6/"):
            spatial = tf.nn.conv2d(normal, first, strides=[1, 4, 4, 1], padding="VALID", name="conv")
        hidden = tf.nn.relu(tf.nn.conv2d(tf.nn.relu(spatial), second, strides=1, padding="VALID"))
        pool = tf.nn.avg_pool(hidden, ksize=17, strides=1, padding="VALID", name="pool_3")
        flat = tf.reshape(pool, [1, 2048], name="pool_3/_reshape")
        with tf.name_scope("softmax/logits/"):
            product = tf.matmul(flat, tf.constant(weights), name="MatMul")
        tf.nn.softmax(product + 1.0, name="softmax")
        path.write_bytes(graph.as_graph_def(add_shapes=True).SerializeToString())


CLASSIFIER_CONFIG = {
    "image_size": 16,
    "classifier_use_fp16": False,
    "classifier_width": 32,
    "classifier_depth": 1,
    "classifier_attention_resolutions": "8",
    "classifier_use_scale_shift_norm": True,
    "classifier_resblock_updown": True,
    "classifier_pool": "attention",
    "num_classes": 5,
    "in_channels": 3,
    "classifier_num_head_channels": 32,
    "classifier_channel_mult": "1,2",
}

CLASSIFIER_EXTRA = {"noised": False, "lr": 3e-4, "data_dir": "somewhere", "batch_size": 4}

def write_classifier(directory: Path, **changes) -> Path:
    """A classifier with random weights, saved with its config.json as a training run does."""
    config = {**CLASSIFIER_CONFIG, **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_classifier(**config)
        for parameter in model.parameters():  # also those that start at zero
            torch.nn.init.normal_(parameter, std=0.1)
    save(model.state_dict(), directory / "model000010.pt")
    write_config(directory, {**config, **CLASSIFIER_EXTRA})
    return directory / "model000010.pt"


REFERENCE, SAMPLES = make_images(0, 24, 16), make_images(1, 20, 16)

def png_bytes(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_folder(folder: Path, images: np.ndarray, labels: np.ndarray | None = None) -> Path:
    (folder / "deep").mkdir(parents=True)
    for i, pixels in enumerate(images):
        name = f"{i:03d}.png" if labels is None else f"{labels[i]}_{i:03d}.png"
        (folder / "deep" / name).write_bytes(png_bytes(pixels))
    (folder / "notes.txt").write_text("no image")
    return folder


class StoredFeatures:
    """An engine whose statistics a file may hold: the mean colours of a few places."""

    name, batch_size, uses_stored_statistics, weights_path = "colours", 8, True, None

    def check(self, path, shape):
        pass

    def compute_activations(self, batches):
        x = np.concatenate(list(batches)).astype(np.float32) / 255
        pool, spatial = x[:, ::8, ::8].reshape(len(x), -1), x[:, 4, 4]
        return Activations(pool, spatial, np.abs(spatial) / np.abs(spatial).sum(axis=1, keepdims=True))


def precision_recall_by_definition(reference: np.ndarray, samples: np.ndarray, k: int = 3) -> tuple[float, float]:
    def distances(first, second):
        first, second = first.astype(np.float64), second.astype(np.float64)
        return np.stack([((row - second) ** 2).sum(axis=1) for row in first])

    reach_reference = np.sort(distances(reference, reference), axis=1)[:, k]
    reach_samples = np.sort(distances(samples, samples), axis=1)[:, k]
    between = distances(reference, samples)
    return (between <= reach_reference[:, None]).any(axis=0).mean(), (between <= reach_samples).any(
        axis=1
    ).mean()

"""Inputs that the evaluator tests and the stored upstream numbers share, and a check that they are stable."""

from __future__ import annotations

from pathlib import Path

import numpy as np


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


def test_recipes_are_deterministic():
    recipe = {
        "seed": 5, "dims": 8, "n_reference": 6, "n_samples": 7, "shift": 0.1,
        "weight_scale": 1.0, "classes": 3, "kind": "relu",
    }  # fmt: skip
    first, second = make_activations(recipe), make_activations(recipe)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert [a.shape for a in first] == [(6, 8), (7, 8), (8, 3)]
    assert (first[0] >= 0).all()
    assert np.array_equal(make_images(1, 2, 8), make_images(1, 2, 8))

"""What an evaluation holds at once: the activations, not the images, and no second copy of either."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from evaluations.evaluate import evaluate
from evaluations.features.base import Activations, run_batches, stack_rows
from evaluations.metrics import exact_neighbours
from evaluations.metrics.precision_recall import inside_manifolds

MB = 1 << 20


def _peak(work: Callable[[], object]) -> float:
    """Most memory (MiB) allocated at once beyond what there was before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return (tracemalloc.get_traced_memory()[1] - before) / MB
    finally:
        tracemalloc.stop()


class _Means:
    """Stands for a network: the mean colours of an image's quarters."""

    name, batch_size, uses_stored_statistics = "means", 16, False
    spread = staticmethod(map)

    def check(self, path, shape):
        pass

    def run_batch(self, images):
        means = images.reshape(len(images), 2, images.shape[1] // 2, 2, images.shape[2] // 2, 3).mean(axis=(2, 4))
        means = means.reshape(len(images), -1).astype(np.float32)
        return means, means[:, :5], np.full((len(images), 4), 0.25, np.float32)

    def compute_activations(self, batches):
        return Activations(*run_batches(self, batches, "means"))


@pytest.mark.slow
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_are_streamed(tmp_path, save):
    images = np.random.default_rng(0).integers(0, 256, (640, 128, 128, 3), dtype=np.uint8)
    save(tmp_path / "s.npz", images)
    save(tmp_path / "ref.npz", images[:40])
    size = images.nbytes / MB
    del images
    peak = _peak(lambda: evaluate(tmp_path / "ref.npz", tmp_path / "s.npz", _Means()))
    assert size == 30 and peak < 12  # a batch in float64 is 6


def test_activations_are_held_once():
    batch = np.zeros((50, 1, 1, 3), np.uint8)
    engine = SimpleNamespace(batch_size=50, spread=map, run_batch=lambda x: (np.ones((len(x), 2000), np.float32),))
    sized = [batch] * 80
    expected = 4000 * 2000 * 4 / MB
    found = []
    assert _peak(lambda: found.append(run_batches(engine, sized, "ones"))) < 1.1 * expected
    assert found[0][0].shape == (4000, 2000)


def test_rows_beyond_the_expected_ones():
    random = np.random.default_rng(1)
    parts = [random.random((n, 2), dtype=np.float32) for n in (2, 1, 4, 0, 1, 9)]
    (found,) = stack_rows(((part,) for part in parts), 3)
    np.testing.assert_array_equal(found, np.concatenate(parts))


@pytest.mark.slow
def test_precision_and_recall_copy_no_features(monkeypatch):
    monkeypatch.setattr(exact_neighbours, "_PAIRS", 64)
    random = np.random.default_rng(2)
    reference, samples = (random.random((n, 2000), dtype=np.float32) for n in (200, 3000))
    size = samples.nbytes / MB
    peak = _peak(lambda: inside_manifolds(reference, samples, block=250))
    assert size > 20 and peak < size / 2

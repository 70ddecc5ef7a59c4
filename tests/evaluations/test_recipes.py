"""Inputs that the evaluator tests and the stored upstream numbers share, and a check that they are stable."""

from __future__ import annotations

import numpy as np

from tests.support.evaluations import make_activations, make_images


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

"""Compiled networks on a CUDA GPU, whose calls replay CUDA graphs; see test_cuda.py for ED_DPM_TEST_DEVICE=cpu."""

from __future__ import annotations

import pytest

from benchmarks.gpu import compiled_checks
from tests.test_cuda import pytestmark, without_tf32  # noqa: F401 - the fixture serves by being there


@pytest.mark.slow
def test_compiled_networks_compute_the_same():
    compiled_checks.compiled_networks_compute_the_same()


@pytest.mark.slow
@pytest.mark.parametrize("layer", compiled_checks.LAYERS)
def test_compiled_layers_have_the_same_gradients(layer):
    compiled_checks.compiled_layers_have_the_same_gradients(layer)


@pytest.mark.slow
def test_compiled_training_has_the_same_gradients():
    compiled_checks.compiled_training_has_the_same_gradients()

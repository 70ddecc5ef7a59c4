"""Compiled networks on a CUDA GPU, whose calls replay CUDA graphs; see test_cuda.py for ED_DPM_TEST_DEVICE=cpu."""

from __future__ import annotations

import pytest

from benchmarks.gpu import compiled_checks
from tests.test_cuda import pytestmark, without_tf32  # noqa: F401 - the fixture serves by being there


@pytest.mark.slow
@pytest.mark.parametrize("check", compiled_checks.CHECKS.values(), ids=compiled_checks.CHECKS)
def test_compiled_networks_compute_what_they_did(check):
    check()

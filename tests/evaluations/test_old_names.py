"""Modules of the evaluations that had other names in the version before."""

from __future__ import annotations

import importlib
import sys

import pytest

import evaluations  # noqa: F401  installs the old names
from guided_diffusion.moved import OldNames

(FINDER,) = (found for found in sys.meta_path if isinstance(found, OldNames) and "evaluations.engine" in found.names)
NAMES = {
    "evaluations.engine": ("Activations", "run_batches"),
    "evaluations.metrics.npz": ("open_npz_array", "read_labels", "read_stored_statistics"),
    "evaluations.metrics.resampling": ("mean_figure",),
    "evaluations.torch_inception": ("TorchInceptionEngine",),
}


@pytest.mark.parametrize("old", FINDER.names)
def test_old_modules_are_the_new_ones(old):
    new = FINDER.names[old]
    with pytest.warns(DeprecationWarning, match=f"^{old} is now {new}$"):
        module = FINDER.create_module(FINDER.find_spec(old))
    assert module is importlib.import_module(new)
    assert all(hasattr(module, name) for name in NAMES.get(old, ()))

"""The former place of `softmax`."""

import warnings

from .softmax import Softmax  # noqa: F401

warnings.warn("ed_dpm_patches.probabilities is now ed_dpm_patches.softmax", DeprecationWarning, stacklevel=2)

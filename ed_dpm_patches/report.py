"""The former place of `scale_stats`."""

import warnings

from .scale_stats import ScaleReport, summary_line  # noqa: F401

warnings.warn("ed_dpm_patches.report is now ed_dpm_patches.scale_stats", DeprecationWarning, stacklevel=2)

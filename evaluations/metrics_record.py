"""What an evaluation found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Metrics:
    """The quality of a set of samples against a reference set.

    ``inception_score`` 1..K; ``fid`` and ``sfid`` >= 0, smaller is better; ``precision``, ``recall`` and
    ``accuracy`` 0..1. ``precision`` and ``recall`` are None if the reference holds statistics only, ``sfid`` if it
    holds none of spatial features or the engine has none, ``inception_score`` if the engine has no probabilities.
    ``accuracy`` and ``class_accuracy`` (label to share) are None unless the engine is a classifier and the
    samples have labels, ``reference_accuracy`` unless the reference has. ``n_reference`` and ``n_samples`` count
    images.

    Only where asked for: ``kid`` with its deviation over subsets of ``kid_subset_size`` images, ``density``,
    ``coverage``; ``intervals`` (metric to its 95 % interval); ``paired`` (metric to difference and p); ``per_class``
    (label to figures, see ``per_class.by_class``). Hashes are sha256, hex; ``network_config`` is what decides beside
    the weights. ``warnings`` are the lines that went to stderr. ``chosen`` says which images were taken where not all
    were; ``quantisation``, ``resize_before`` and ``resize`` what was done to the images on their way into the network,
    ``reading`` how files became 8 bits where not as usual.
    """

    inception_score: float | None
    fid: float
    sfid: float | None
    precision: float | None
    recall: float | None
    accuracy: float | None
    n_reference: int
    n_samples: int
    engine: str
    reference: str
    samples: str
    class_accuracy: dict[str, float] | None = None
    reference_accuracy: float | None = None
    kid: float | None = None
    kid_deviation: float | None = None
    kid_subset_size: int | None = None
    density: float | None = None
    coverage: float | None = None
    intervals: dict[str, tuple[float, float]] | None = None
    paired: dict[str, dict[str, float]] | None = None
    per_class: dict[str, dict[str, Any]] | None = None
    paired_with: str | None = None
    paired_rounds: int = 0
    bootstrap: int = 0
    seed: int = 0
    half_precision: bool = False
    chosen: str | None = None
    quantisation: str = "none: uint8, 0..255, as stored"
    resize_before: str | None = None
    resize: str | None = None
    reading: dict[str, Any] | None = None
    network_sha256: str | None = None
    network_config: dict[str, Any] | None = None
    reference_sha256: str | None = None
    samples_sha256: str | None = None
    paired_sha256: str | None = None
    warnings: list[str] = field(default_factory=list)

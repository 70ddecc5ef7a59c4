"""What an evaluation found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Metrics:
    """The quality of a set of samples against a reference set.

    ``inception_score`` 1..K; ``fid`` and ``sfid`` >= 0, smaller is better; ``precision``, ``recall`` and
    ``accuracy`` 0..1. ``precision`` and ``recall`` are None if the reference holds statistics only;
    ``accuracy`` and ``class_accuracy`` (label to share) are None unless the engine is a classifier and the
    samples have labels. ``n_reference`` and ``n_samples`` count images.

    Only where asked for: ``kid`` with its deviation over subsets, ``density``, ``coverage``; ``intervals``
    (metric to its 95 % interval); ``paired`` (metric to difference and p). Hashes are sha256, hex;
    ``warnings`` are the lines that went to stderr. ``quantisation`` and ``resize`` say what was done to the images
    on their way into the network.
    """

    inception_score: float
    fid: float
    sfid: float
    precision: float | None
    recall: float | None
    accuracy: float | None
    n_reference: int
    n_samples: int
    engine: str
    reference: str
    samples: str
    class_accuracy: dict[str, float] | None = None
    kid: float | None = None
    kid_deviation: float | None = None
    density: float | None = None
    coverage: float | None = None
    intervals: dict[str, tuple[float, float]] | None = None
    paired: dict[str, dict[str, float]] | None = None
    paired_with: str | None = None
    paired_rounds: int = 0
    bootstrap: int = 0
    seed: int = 0
    half_precision: bool = False
    quantisation: str = "none: uint8, 0..255, as stored"
    resize: str | None = None
    network_sha256: str | None = None
    reference_sha256: str | None = None
    samples_sha256: str | None = None
    paired_sha256: str | None = None
    warnings: list[str] = field(default_factory=list)

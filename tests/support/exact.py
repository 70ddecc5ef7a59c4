"""Guidance rules in arbitrary precision, straight from the paper's formulas."""

from __future__ import annotations

import mpmath as mp


def softmax(logits: list[float]) -> list[mp.mpf]:
    """p from logits. Call inside `mp.workdps` with more digits than the logits' spread needs."""
    largest = max(logits)
    weights = [mp.e ** (mp.mpf(z) - mp.mpf(largest)) for z in logits]
    total = mp.fsum(weights)
    return [w / total for w in weights]


def entropy(p: list[mp.mpf]) -> mp.mpf:
    """H(p) in nats, Eq. 9."""
    return -mp.fsum(q * mp.log(q) for q in p if q > 0)


def gradient_on_logits(logits: list[float], y: int, gamma: float, eds: bool) -> list[mp.mpf]:
    """Return v = s (onehot(y) - p), s = gamma or gamma log K / H(p) (Eq. 10)."""
    p = softmax(logits)
    scale = gamma * mp.log(len(p)) / entropy(p) if eds else mp.mpf(gamma)
    return [scale * ((1 if k == y else 0) - q) for k, q in enumerate(p)]


def digits_for(logits: list[float]) -> int:
    """Decimal digits that leave 40 correct ones after the cancellations in the formulas above."""
    return 60 + int((max(logits) - min(logits)) / 2)


def relative_error(found: float, exact: mp.mpf) -> float:
    """|found - exact| / |exact|, 0 when both vanish (or are below what float64 can hold)."""
    if abs(exact) < mp.mpf("1e-290"):
        return 0.0 if abs(found) < 1e-289 else float("inf")
    return float(abs((mp.mpf(found) - exact) / exact))

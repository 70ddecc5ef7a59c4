"""Distances as upstream's evaluator computes them, for figures that must equal published ones to the image."""

from __future__ import annotations

import numpy as np

BLOCK = 10_000  # upstream's: whether a block is in half precision depends on all of it
_STRIP = 1024


def upstream_distances(rows_RD: np.ndarray, columns_CD: np.ndarray) -> np.ndarray:
    """Squared distances [R, C], float32, of |u|^2 - 2uv + |v|^2 in float16 floored at 0.

    If a single one overflows, all are computed in float32. Products and sums of squares are summed in float32
    and rounded once, as graphics processors do; each further step rounds to float16. For the figures that
    upstream would print hand this blocks of ``BLOCK``.
    """
    half = _in(np.float16, rows_RD, columns_CD)
    return (half if half is not None else _in(np.float32, rows_RD, columns_CD)).astype(np.float32, copy=False)


def _in(kind: type, rows_RD: np.ndarray, columns_CD: np.ndarray) -> np.ndarray | None:
    """Distances in one precision, or None if that is float16 and not enough."""
    with np.errstate(over="ignore", invalid="ignore"):
        rows, columns = rows_RD.astype(kind), columns_CD.astype(kind)
        row_norms, column_norms = (np.square(x).sum(axis=1, dtype=np.float32).astype(kind) for x in (rows, columns))
        columns = columns.astype(np.float32)
        distances = np.empty((len(rows), len(columns)), dtype=kind)
        for begin in range(0, len(rows), _STRIP):
            strip = slice(begin, begin + _STRIP)
            products = (rows[strip].astype(np.float32) @ columns.T).astype(kind)
            distances[strip] = np.maximum(row_norms[strip, None] - kind(2) * products + column_norms, kind(0))
            if kind is np.float16 and not np.isfinite(distances[strip]).all():
                return None
    return distances

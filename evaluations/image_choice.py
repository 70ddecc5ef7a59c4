"""A random part of a set of images, the same for sets of one size: for figures of equal counts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evaluations.image_sets import ImageSet


def choose_images(images: ImageSet, count: int, seed: int) -> ImageSet:
    """Return ``count`` images of a set, drawn without replacement by ``seed``, in the order that they have in it.

    They are drawn because the first ones of a folder are often all of one class. Two sets of one size give the same
    places. A set of no more images than ``count`` is returned as it is.
    """
    if images.count <= count:
        return images
    chosen = np.sort(np.random.default_rng(seed).choice(images.count, count, replace=False))
    parts, begin = [], 0
    for part in images.parts:
        end = begin + part.shape[0]
        rows = chosen[(chosen >= begin) & (chosen < end)] - begin
        parts += [_ChosenPart(part, rows)] if len(rows) else []
        begin = end
    return replace(images, shape=(count, *images.shape[1:]), parts=tuple(parts))


@dataclass(frozen=True)
class _ChosenPart:
    """Some ``rows`` (ascending) of a part of an image set."""

    part: Any
    rows: np.ndarray

    @property
    def path(self) -> str:
        return self.part.path

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.part.shape[1:])

    def labels(self, class_names: Sequence[str] | None = None) -> np.ndarray | None:
        labels = self.part.labels(class_names)
        return None if labels is None else labels[self.rows]

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        waiting, begin = np.empty((0, *self.shape[1:]), dtype=np.uint8), 0
        for batch in self.part.batches(batch_size):
            rows = self.rows[(self.rows >= begin) & (self.rows < begin + len(batch))] - begin
            waiting, begin = np.concatenate([waiting, batch[rows]]), begin + len(batch)
            if len(waiting) >= batch_size:
                yield waiting[:batch_size]
                waiting = waiting[batch_size:]
        if len(waiting):
            yield waiting

    def digest(self) -> str:
        rows = hashlib.sha256(self.rows.astype("<i8").tobytes()).hexdigest()
        return f"{self.part.digest()} rows {rows}"

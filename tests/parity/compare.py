"""Cases and how two results are compared.

A case yields (label, ours, theirs) triples. Each leaf of the two structures becomes one comparison.
The relative error is max|ours - theirs| / max|theirs| over a whole array, so that it means the same for
images of size 1 and for gradients of size 1e-6. A case passes when every relative error is at most
`required`; `required=0` (written "bitwise") asks for equal values. Types, shapes, dtypes, keys and the
places of NaN must be equal in any case. Keys may come in any order unless a case lists them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.upstream import require_upstream

Triple = tuple[str, Any, Any]
FLOAT32 = 1e-5


@dataclass(frozen=True)
class Case:
    """One line of the table. `run(peer)` yields the triples to compare."""

    name: str
    run: Callable[[SimpleNamespace], Iterable[Triple]]
    required: float = FLOAT32

    def __str__(self) -> str:
        return self.name


class Cases(list[Case]):
    """The cases of one topic; `@cases.add(name, ...)` on a generator function appends one."""

    def add(self, name: str, required: float = FLOAT32, **arguments):
        def register(function):
            self.append(Case(name, lambda peer: function(peer, **arguments), required))
            return function

        return register


@dataclass(frozen=True)
class Comparison:
    label: str
    absolute: float
    relative: float
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """The comparisons of a case, and the worst of them."""

    case: Case
    comparisons: list[Comparison]

    @property
    def absolute(self) -> float:
        return max(c.absolute for c in self.comparisons)

    @property
    def relative(self) -> float:
        return max(c.relative for c in self.comparisons)

    @property
    def failures(self) -> list[Comparison]:
        return [c for c in self.comparisons if not c.relative <= self.case.required]


def run(case: Case, peer: SimpleNamespace) -> Outcome:
    with one_thread():
        comparisons = [c for label, ours, theirs in case.run(peer) for c in compare(label, ours, theirs)]
    if not comparisons:
        raise AssertionError(f"{case.name}: compared nothing")
    return Outcome(case, comparisons)


@contextmanager
def one_thread():
    """Compute on one thread: the models are tiny, and more threads only slow down other test processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check(case: Case) -> None:
    """Run one case under pytest."""
    outcome = run(case, require_upstream())
    lines = [f"{c.label}: {c.note or f'relative error {c.relative:.3g}'}" for c in outcome.failures[:10]]
    assert not lines, f"{len(outcome.failures)} of {len(outcome.comparisons)} differ\n" + "\n".join(lines)


def compare(label: str, ours: Any, theirs: Any) -> Iterator[Comparison]:
    """One Comparison per leaf of two nested structures."""
    if isinstance(theirs, Refusal):
        same = theirs.fits(ours)
        yield Comparison(label, 0.0, 0.0) if same else unequal(label, f"{ours!r} instead of {theirs!r}")
    elif isinstance(theirs, Mapping):
        if not isinstance(ours, Mapping) or set(ours) != set(theirs):
            yield unequal(label, f"{keys(ours)} instead of {keys(theirs)}")
            return
        for key in theirs:
            yield from compare(f"{label}[{key}]", ours[key], theirs[key])
    elif isinstance(theirs, (list, tuple)):
        if type(ours) is not type(theirs) or len(ours) != len(theirs):
            yield unequal(label, f"{type(ours)} of {len(ours)} instead of {type(theirs)} of {len(theirs)}")
            return
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            yield from compare(f"{label}[{index}]", a, b)
    elif isinstance(theirs, (torch.Tensor, np.ndarray, np.generic, float)):
        yield compare_numbers(label, ours, theirs)
    else:
        same = type(ours) is type(theirs) and ours == theirs
        yield Comparison(label, 0.0, 0.0) if same else unequal(label, f"{ours!r} instead of {theirs!r}")


def keys(value: Any) -> str:
    return f"keys {sorted(map(str, value))}" if isinstance(value, Mapping) else f"{value!r}"


def compare_numbers(label: str, ours: Any, theirs: Any) -> Comparison:
    if isinstance(ours, torch.Tensor) != isinstance(theirs, torch.Tensor):
        return unequal(label, f"{type(ours)} instead of {type(theirs)}")
    a, b = as_array(ours), as_array(theirs)
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return unequal(label, f"{a.dtype}{a.shape} instead of {b.dtype}{b.shape}")
    if np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"):
        return Comparison(label, 0.0, 0.0)
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        return unequal(label, "non-finite values in other places")
    difference = np.abs(a - b)[finite].max()
    largest = np.abs(b[finite]).max()
    return Comparison(label, float(difference), float(difference / largest) if largest else math.inf)


def as_array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def unequal(label: str, note: str) -> Comparison:
    return Comparison(label, math.inf, math.inf, note if len(note) < 400 else f"{note[:400]}...")


def outcome_of(function: Callable, *arguments, **keywords) -> Any:
    """The result, or a Refusal, to compare what both implementations refuse."""
    try:
        return function(*arguments, **keywords)
    except Exception as error:
        return Refusal(type(error))


@dataclass(frozen=True)
class Refusal:
    """An exception of this type was raised."""

    error: type[Exception]

    def fits(self, ours: Any) -> bool:
        """Whether ours refuses too; where upstream raises on purpose, with a type its callers catch."""
        on_purpose = self.error in (ValueError, NotImplementedError, argparse.ArgumentTypeError)
        return isinstance(ours, Refusal) and issubclass(ours.error, self.error if on_purpose else Exception)

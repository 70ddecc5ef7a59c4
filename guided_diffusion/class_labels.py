"""The classes of a network: how many, what they are called, and which of them its training data had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import logger
from .errors import InputError

_SHOWN = 50  # classes that a line lists


@dataclass(frozen=True)
class Classes:
    """A network's classes, numbered from 0.

    :param names: of the first of them, by number; empty where nobody knows.
    :param seen: the numbers that were in the training data, ascending; None where nobody knows.
    """

    count: int
    names: tuple[str, ...] = ()
    seen: tuple[int, ...] | None = None

    @classmethod
    def from_config(cls, count: int, saved: Mapping[str, Any] | None, path: str) -> Classes:
        """What the config.json beside a checkpoint says about its classes; InputError, naming it, if that is nonsense.

        Training writes `class_names`, and `seen_classes` where the data had others than those with a name.
        """
        names = (saved or {}).get("class_names") or []
        seen = (saved or {}).get("seen_classes", list(range(len(names))) or None)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) > count:
            raise InputError(f"{path}: config.json beside it has class_names that are no list of up to {count} names")
        numbers = seen is None or (isinstance(seen, list) and all(type(n) is int and 0 <= n < count for n in seen))
        if not numbers:
            raise InputError(f"{path}: config.json beside it has seen_classes that are no numbers below {count}")
        return cls(count, tuple(names), tuple(sorted(seen)) if seen else None)

    def choose(self, text: str) -> list[int]:
        """The classes to sample, by --classes: numbers or names separated by commas; "": all that training has seen.

        `name:X` is the class called X, whatever X looks like. InputError for a class that is not there, and for a
        number that is also the name of another class.
        """
        if not text:
            return list(range(self.count) if self.seen is None else self.seen)
        chosen = [self._number(part.strip()) for part in text.split(",")]
        if unseen := self.unseen(chosen):
            line = f"--classes: training never saw {self.listed(unseen)}: such samples show nothing in particular"
            logger.warning(line)
        return chosen

    def _number(self, part: str) -> int:
        name = part.removeprefix("name:")
        named = self.names.index(name) if name in self.names else None
        number = int(part) if part.removeprefix("-").isdecimal() else None
        if number is None or (named is not None and not 0 <= number < self.count):
            if named is None:
                raise InputError(f"--classes: found {part!r}, expected {self._expected()}")
            return named
        if not 0 <= number < self.count:
            raise InputError(f"--classes: found {part}, expected 0 to {self.count - 1}")
        if named not in (None, number):
            readings = f"name:{part} for the class of that name (number {named})"
            if number < len(self.names):
                readings += f" or name:{self.names[number]} for class number {part}"
            raise InputError(f"--classes: found {part}, a number and another class's name, expected {readings}")
        return number

    def _expected(self) -> str:
        if not self.names:
            return "class numbers such as 3,7 (no config.json beside the checkpoint tells the classes' names)"
        return f"numbers from 0 to {self.count - 1}, or names: {_shortened(self.names)}"

    def unseen(self, numbers: Sequence[int]) -> list[int]:
        """Those of the classes that are known not to have been in the training data, ascending."""
        return [] if self.seen is None else sorted(set(numbers) - set(self.seen))

    def listed(self, numbers: Sequence[int]) -> str:
        """The classes with their names, "0 = cat, 1 = dog"."""
        return _shortened([f"{n} = {self.names[n]}" if n < len(self.names) else str(n) for n in numbers])

    def clash(self, other: Classes) -> str | None:
        """The first class that two networks call by different names, in words; None where there is none."""
        pairs = enumerate(zip(self.names, other.names, strict=False))
        return next((f"class {n} is {ours!r}, but {theirs!r}" for n, (ours, theirs) in pairs if ours != theirs), None)


def _shortened(items: Sequence[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")

"""The classes of a network: their number, their names, and which of them its training data had."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guided_diffusion.config.configs import NUM_CLASSES
from guided_diffusion.config.flags import ParsedFlags
from guided_diffusion.errors import InputError, counted, some_of
from guided_diffusion.io import checkpoint, checkpoint_flags
from guided_diffusion.runs import logger

_SHOWN = 50  # classes listed in a line


@dataclass(frozen=True)
class Classes:
    """A network's classes, numbered from 0.

    :param names: of the first of them, by number; empty where unknown.
    :param seen: the numbers that were in the training data, ascending; None where unknown.
    """

    count: int
    names: tuple[str, ...] = ()
    seen: tuple[int, ...] | None = None

    @classmethod
    def from_config(cls, count: int, saved: Mapping[str, Any] | None, path: str) -> Classes:
        """Read the classes from the config.json beside a checkpoint; InputError, naming it, for invalid ones.

        Training writes `class_names`, and `seen_classes` where the data had not all of those with a name.
        """
        names = (saved or {}).get("class_names") or []
        if type(count) is not int or count < 1:
            raise InputError(f"{path}: config.json beside it has num_classes {count!r}, expected a whole number from 1")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) > count:
            raise InputError(f"{path}: config.json beside it has class_names that are no list of up to {count} names")
        seen = (saved or {}).get("seen_classes", list(range(len(names))) or None)
        numbers = seen is None or (isinstance(seen, list) and all(type(n) is int and 0 <= n < count for n in seen))
        if not numbers:
            raise InputError(f"{path}: config.json beside it has seen_classes that are no numbers below {count}")
        return cls(count, tuple(names), tuple(sorted(seen)) if seen else None)

    @classmethod
    def of_checkpoint(cls, path: str, count: int) -> Classes:
        """Return the classes of a checkpoint's network, from the config.json beside it."""
        return cls.from_config(count, checkpoint.read_config(path), path)

    def choose(self, text: str) -> list[int]:
        """Return the classes to sample by --classes: numbers or names separated by commas; "": all seen in training.

        `name:X` is the class called X, even if X is a number. InputError for an unknown class, and for a number that
        is also the name of another class.
        """
        if not text:
            return list(range(self.count) if self.seen is None else self.seen)
        chosen = [self._number(part.strip()) for part in text.split(",")]
        if unseen := self.unseen(chosen):
            logger.warning(f"--classes: training never saw {self.listed(unseen)}: such samples are meaningless")
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
        """Return those classes known not to have been in the training data, ascending."""
        return [] if self.seen is None else sorted(set(numbers) - set(self.seen))

    def listed(self, numbers: Sequence[int]) -> str:
        """Return the classes with their names, "0 = cat, 1 = dog"."""
        return _shortened([f"{n} = {self.names[n]}" if n < len(self.names) else str(n) for n in numbers])

    def describe(self) -> str:
        """Return the number of classes and their known names: "3 classes (cat, dog, fox)"."""
        return counted(self.count, "classes") + (f" ({_shortened(self.names)})" if self.names else "")

    def clash(self, other: Classes) -> str | None:
        """Describe the first class that two networks name differently; None where there is none."""
        pairs = enumerate(zip(self.names, other.names, strict=False))
        return next((f"class {n} is {ours!r}, but {theirs!r}" for n, (ours, theirs) in pairs if ours != theirs), None)


def count_classes(parsed: ParsedFlags, data_dir: str, names: Sequence[str], resume: str = "") -> Classes:
    """Return the classes of a network to be trained on a folder's images, on rank 0.

    Their number is that of --num_classes, else of the checkpoints in the log's directory, else of the checkpoint
    to resume, else counted in the folder. Names known to the checkpoint keep their numbers; otherwise the folder's
    classes are numbered in their order.

    :param names: of the classes in the folder. resume: path of a checkpoint to resume; "": none.
    :raises InputError: the folder has more classes than that.
    """
    before, source = _classes_before(resume)
    wanted = parsed.values.get("num_classes")
    count = wanted or (before.count if before else len(names))
    classes, found = counted(count, "classes"), counted(len(names), "classes")
    if len(names) > count:
        if wanted is None and source != resume:
            raise InputError(
                f"{source}: the run there has {classes} ({some_of(before.names)}), but {data_dir} has "
                f"{len(names)} ({some_of(names)}); expected the same --labels, or another --log_dir"
            )
        if wanted is None:
            raise InputError(
                f"{source}: made for {classes}, but {data_dir} has {len(names)}; "
                f"--init_from {source} begins a new run with its weights and adds classes"
            )
        raise InputError(f"--num_classes: found {count}, but {data_dir} has {found}")
    if len(names) < count and wanted is not None:
        logger.warning(f"--num_classes {count}, but {data_dir} has {found}: the others stay untrained")
    elif before is not None:
        logger.log(f"{classes} as in {source}; {data_dir} has {len(names)}")
    elif wanted is None:
        logger.log(
            f"{classes}, counted in {data_dir}; --num_classes {NUM_CLASSES} makes a checkpoint that upstream's "
            "code can load"
        )
    if before is not None and before.names and set(names) <= set(before.names) and len(before.names) <= count:
        seen = {before.names.index(name) for name in names} | set(before.seen or ())
        return Classes(count, before.names, tuple(sorted(seen)))
    own = Classes(count, tuple(names), tuple(range(len(names))))
    if before is not None and (clash := own.clash(before)):
        logger.warning(f"{data_dir}: its classes are numbered anew: {clash} in {source}")
    return own


def run_classes() -> Classes | None:
    """Return the classes of the run in the log's directory; None where no config.json has them."""
    path = os.path.join(logger.get_dir(), "model.pt")
    saved = checkpoint.read_config(path)
    count = (saved or {}).get("num_classes")
    return Classes.from_config(count, saved, path) if isinstance(count, int) else None


def _classes_before(resume: str) -> tuple[Classes | None, str]:
    """Return the classes of the network to resume and their source; None where a new network is made.

    InputError when the checkpoint to resume is an unconditional diffusion model.
    """
    own = run_classes()
    if own is not None and any(Path(logger.get_dir()).glob("model*.pt")):
        return own, logger.get_dir()
    if not resume:
        return None, ""
    shapes = checkpoint.read_shapes(resume)
    count = checkpoint_flags.num_classes(shapes)
    if count is not None:
        return Classes.of_checkpoint(resume, count), resume
    if "time_embed.0.weight" in shapes:
        raise InputError(
            f"--resume_checkpoint {resume}: found a network without labels, expected one trained with --class_cond; "
            f"--init_from {resume} begins a new run with its weights and adds them"
        )
    return None, ""


def _shortened(items: Sequence[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")

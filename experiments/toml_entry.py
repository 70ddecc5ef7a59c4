"""Tables of TOML files, read key by key with checks of their types."""

from __future__ import annotations

import dataclasses
import re
import reprlib
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from guided_diffusion.errors import InputError, first_line
from guided_diffusion.io.reading import open_regular, reading_errors

T = TypeVar("T")
FlagValue = bool | int | float | str
Flags = dict[str, FlagValue]
_KIND_NAMES = {str: "text", int: "a whole number", float: "a number", dict: "a table", list: "a list"}
# Flags that are not only handed to scripts: files are named and disk is estimated by them.
_COUNTS = ("image_size", "in_channels", "num_samples", "iterations", "lr_anneal_steps", "save_interval")
# Flags that name files, which commands give; a script also takes the beginning of a flag for it.
_FILES = (
    "model_path", "classifier_path", "data_dir", "val_data_dir", "log_dir", "resume_checkpoint", "trace",
    "uncond_model_path", "weak_model_path", "guidance_file", "clean_classifier", "decoder",
)  # fmt: skip
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 200


class Entry:
    """One TOML table: keys are taken out with a check of their type, and none may be left over."""

    def __init__(self, file: Path, values: dict[str, Any], prefix: str = ""):
        self.file, self.values, self.prefix = file, dict(values), prefix

    def fail(self, key: str, found: Any, expected: str) -> InputError:
        """An error that names file and key."""
        return InputError(f"{self.file}: {self.prefix}{key}: found {_short.repr(found)}, expected {expected}")

    def take(self, key: str, kind: type, default: Any = dataclasses.MISSING, least: int = 1) -> Any:
        """Take out a value. InputError for one of another type, a whole number below `least`, or none at all."""
        if key not in self.values:
            if default is dataclasses.MISSING:
                raise InputError(f"{self.file}: {self.prefix}{key}: missing, expected {_KIND_NAMES[kind]}")
            return default
        value = self.values.pop(key)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or kind is int and value < least:
            raise self.fail(key, value, _KIND_NAMES[kind] + f" from {least} on" * (kind is int))
        return value

    def inner(self, key: str, default: Any = dataclasses.MISSING) -> Entry:
        return Entry(self.file, self.take(key, dict, default), f"{self.prefix}{key}.")

    def flags(self, *needed: str, key: str = "flags") -> Flags:
        """A script's flags; those that are `needed`, counts or text, have to be there."""
        entry = self.inner(key)
        flags = dict(entry.values)
        for name, value in flags.items():
            is_file = name != "guidance" and any(file.startswith(name) for file in _FILES)
            if is_file or not re.fullmatch(r"[a-z]\w*", name):
                raise entry.fail(name, value, "a flag that names no file")
            if not isinstance(value, FlagValue) or isinstance(value, str) and value.startswith("-"):
                raise entry.fail(name, value, "text that begins with no dash, a number, true or false")
        for name in dict.fromkeys([*needed, *(name for name in _COUNTS if name in flags)]):
            entry.take(name, int if name in _COUNTS else str)
        return flags

    def choice(self, key: str, among: Collection[str], default: Any = dataclasses.MISSING) -> str | None:
        name = self.take(key, str, default)
        if name is not None and name not in among:
            raise self.fail(key, name, f"one of {', '.join(among)}")
        return name

    def finish(self, made: T = None) -> T:
        """Return what was made of the table. InputError for a key that nothing has taken."""
        if self.values:
            raise InputError(f"{self.file}: {self.prefix}{next(iter(self.values))}: no such key")
        return made


def read_entry(path: Path) -> Entry:
    """The whole of a file. InputError, naming it, if it is no TOML or holds numbers that nothing can be done with."""
    try:
        with reading_errors(path), open_regular(path) as file:
            entry = Entry(path, tomllib.load(file))
    except (FileNotFoundError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a recipe in TOML, found otherwise: {first_line(error)}") from None
    waiting = list(entry.values.items())
    for key, value in waiting:  # grows by what is inside
        if isinstance(value, list | dict):
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{key}.{name}", part) for name, part in inner]
        elif isinstance(value, str) and "\0" in value or isinstance(value, int | float) and not abs(value) < 1 << 63:
            raise InputError(f"{path}: {key}: found NUL, nan, inf or more than 64 bits, expected none of these")
    return entry

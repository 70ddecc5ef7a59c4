"""Tables of TOML files, read key by key with checks of their types."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from guided_diffusion.errors import InputError

FlagValue = bool | int | float | str
Flags = dict[str, FlagValue]
KIND_NAMES = {str: "text", int: "a whole number", float: "a number", dict: "a table", list: "a list"}


class Entry:
    """One TOML table: keys are taken out with a check of their type, and none may be left over."""

    def __init__(self, file: Path, values: dict[str, Any], prefix: str = ""):
        self.file, self.values, self.prefix = file, dict(values), prefix

    def fail(self, key: str, found: Any, expected: str) -> InputError:
        return InputError(f"{self.file}: {self.prefix}{key}: found {found!r}, expected {expected}")

    def take(self, key: str, kind: type, default: Any = dataclasses.MISSING) -> Any:
        if key not in self.values:
            if default is dataclasses.MISSING:
                raise InputError(f"{self.file}: {self.prefix}{key}: missing, expected {KIND_NAMES[kind]}")
            return default
        value = self.values.pop(key)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self.fail(key, value, KIND_NAMES[kind])
        return value

    def flags(self, key: str = "flags") -> Flags:
        values = self.take(key, dict)
        for name, value in values.items():
            if not isinstance(value, FlagValue):
                raise self.fail(f"{key}.{name}", value, "text, a number, true or false")
        return values

    def choice(self, key: str, among: Collection[str], default: Any = dataclasses.MISSING) -> str | None:
        name = self.take(key, str, default)
        if name is not None and name not in among:
            raise self.fail(key, name, f"one of {', '.join(among)}")
        return name

    def finish(self) -> None:
        if self.values:
            raise InputError(f"{self.file}: {self.prefix}{next(iter(self.values))}: no such key")


def read_entry(path: Path) -> Entry:
    """The whole of a file. InputError, naming it, if it is no TOML."""
    try:
        return Entry(path, tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: {error}") from None

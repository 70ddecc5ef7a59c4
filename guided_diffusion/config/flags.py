"""Command-line flags from dataclasses: each typed field is a flag, with its help, unit and range.

    @dataclass(frozen=True)
    class SamplingConfig:
        num_samples: int = flag(10000, "images to make", minimum=1)

    parser = Parser("What the program does.", SamplingConfig, ModelConfig)
    parsed = parser.parse()
    sampling = parsed.make(SamplingConfig)
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TextIO, TypeVar

from guided_diffusion import __version__
from guided_diffusion.config import release_flags
from guided_diffusion.distributed.collectives import get_rank
from guided_diffusion.distributed.shutdown import waited_for_rank_0
from guided_diffusion.errors import InputError

Config = TypeVar("Config")

_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_LONGEST = 100_000  # characters
_TRUE, _FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")


def flag(
    default: Any,
    help: str,
    *,
    type: type | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Iterable[str | int] | None = None,
    aliases: Sequence[str] = (),
    architecture: bool = False,
) -> Any:
    """Return a dataclass field that is a flag.

    :param type: of the value; by default the default's type (required where the default is None).
    :param choices: the values allowed besides the default. A registry may grow until the flags are parsed.
    :param aliases: other names of the flag, without dashes.
    :param architecture: the flag describes a checkpoint's network; by default it is read from the config.json there.
    """
    metadata = locals() | {"type": type or default.__class__}
    return dataclasses.field(default=default, metadata=metadata)


def str2bool(v: str | bool) -> bool:
    """Convert yes/true/t/y/1 or no/false/f/n/0, in any case, to bool; argparse.ArgumentTypeError otherwise."""
    if isinstance(v, bool):
        return v
    if v.lower() in _TRUE:
        return True
    if v.lower() in _FALSE:
        return False
    raise argparse.ArgumentTypeError(f"found {v!r}, expected a boolean (True or False)")


def text_for(parse: Callable[[str], Any], expected: str) -> Callable[[str], str]:
    """Return a flag's converter that keeps the text; argparse.ArgumentTypeError where `parse` raises ValueError."""

    def convert(text: str) -> str:
        try:
            parse(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}") from None
        return text

    return convert


def from_values(config: type[Config], values: Mapping[str, Any]) -> Config:
    """Return an instance of a config class with those values that are fields of it, and defaults for the others."""
    names = {field.name for field in dataclasses.fields(config)}
    return config(**{name: value for name, value in values.items() if name in names})


@dataclass(frozen=True)
class ParsedFlags:
    """The values of the flags on the command line, and the defaults of all flags."""

    values: dict[str, Any]
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)

    def make(self, config: type[Config], **overrides: Any) -> Config:
        """Return an instance of a config class: parsed values, else `overrides`, else defaults."""
        return from_values(config, {**overrides, **self.values})

    def resolve(self, *configs: Any) -> dict[str, Any]:
        """Return all values of config classes, or instances of them, as one flat dict, as config.json stores it."""
        merged: dict[str, Any] = {}
        for config in configs:
            merged |= dataclasses.asdict(self.make(config) if isinstance(config, type) else config)
        return merged


class Parser(argparse.ArgumentParser):
    """A parser of the flags of several config classes, which may share flags. Only rank 0 prints --help."""

    def __init__(self, description: str, *configs: type):
        layout = partial(argparse.RawDescriptionHelpFormatter, max_help_position=36, width=110)
        super().__init__(description=description, formatter_class=layout)
        self._defaults_by_name: dict[str, Any] = {}
        for config in configs:
            group = self.add_argument_group((config.__doc__ or config.__name__).splitlines()[0].rstrip("."))
            for field in dataclasses.fields(config):
                self._add(group, field)
        version, text = f"ed-dpm {__version__}", "print the version and exit (no default)"
        self.add_argument("--version", action="version", version=version, help=text)
        release_flags.add_to(self, self._defaults_by_name)

    def _add(self, group, field: dataclasses.Field) -> None:
        if field.name in self._defaults_by_name:
            assert self._defaults_by_name[field.name] == field.default, f"two defaults for --{field.name}"
            return
        self._defaults_by_name[field.name] = field.default
        kind = field.metadata["type"]
        names = [f"--{name}" for name in (field.name, *field.metadata["aliases"])]
        # SUPPRESS: a missing flag leaves no value, so that a checkpoint's config can supply it.
        options = {"default": argparse.SUPPRESS, "help": _help(field), "dest": field.name}
        if kind is bool:
            options.update(type=str2bool, nargs="?", const=True, metavar="BOOL")
        else:
            options.update(type=_checked(field), metavar={int: "N", float: "X"}.get(kind, "TEXT"))
        group.add_argument(*names, **options)

    def parse(self, argv: Sequence[str] | None = None) -> ParsedFlags:
        """Parse the command line. SystemExit 2 with one line on stderr when it is wrong, 0 for --help."""
        return ParsedFlags(vars(self.parse_args(argv)), self._defaults_by_name)

    def _print_message(self, message: str, file: TextIO | None = None) -> None:
        if file is not sys.stdout or get_rank() == 0:
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        """Print one line, from rank 0 only, and exit with status 2."""
        says_it = get_rank() == 0 or waited_for_rank_0()
        self.exit(2, f"error: {InputError(message)} (--help lists the flags)\n" if says_it else None)


def _checked(field: dataclasses.Field):
    """Return the flag's converter, which checks type, range and choices."""
    kind = field.metadata["type"]

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"found {text!r}, expected {_KINDS.get(kind, kind.__name__)}") from None
        if expected := _expected_instead(field, value):
            raise argparse.ArgumentTypeError(f"found {value!r}, expected {expected}")
        return value

    return convert


def _expected_instead(field: dataclasses.Field, value: Any) -> str | None:
    """Return what a flag's value should have been, or None when it is valid."""
    low, high, choices = field.metadata["minimum"], field.metadata["maximum"], _choices(field)
    if choices:
        return None if value in choices else _one_of(choices)
    # Written to refuse nan too, which compares false with everything.
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        return _range(low, high)
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if isinstance(value, int) and abs(value) >= 2**63:  # beyond PyTorch's
        return "a whole number of 63 bits"
    if isinstance(value, str) and len(value) > _LONGEST:
        return f"at most {_LONGEST} characters"
    return None


def _one_of(choices: Iterable[str | int]) -> str:
    return "one of " + ", ".join(str(choice) or '""' for choice in choices)


def _wrong(field: dataclasses.Field, value: Any) -> str | None:
    """Return what a value from a file should have been, by its type too; None when it is valid."""
    kind = field.metadata["type"]
    if not isinstance(kind, type):  # a converter of text
        if type(value) is not str:
            return "text"
        try:
            kind(value)
        except argparse.ArgumentTypeError as error:
            return str(error).partition("expected ")[2]
        return None
    right_type = type(value) is kind or (kind is float and type(value) is int)
    return _expected_instead(field, value) if right_type else _KINDS[kind]


def _choices(field: dataclasses.Field) -> list[str | int]:
    choices = [*(field.metadata["choices"] or ())]
    return choices if not choices or field.default in choices else [field.default, *choices]


def _range(low: float | None, high: float | None) -> str:
    if high is None:
        return f"at least {low}"
    return f"at most {high}" if low is None else f"{low} to {high}"


def _help(field: dataclasses.Field) -> str:
    meta = field.metadata
    notes = []
    if choices := _choices(field):
        notes.append(_one_of(choices))
    elif meta["minimum"] is not None or meta["maximum"] is not None:
        notes.append(_range(meta["minimum"], meta["maximum"]))
    notes.append("no default" if field.default is None else f"default {field.default!r}")
    return f"{meta['help']} ({'; '.join(notes)})".replace("%", "%%")


def flags_from(values: Mapping[str, Any], *configs: type) -> ParsedFlags:
    """Return flags as a file has them, typed as on the command line; their defaults are those of the config classes.

    InputError for a name that is no flag of these classes, a value of another type or out of its range.
    """
    fields = {field.name: field for config in configs for field in dataclasses.fields(config)}
    for name, value in values.items():
        if name not in fields:
            raise InputError(f"{name}: no such flag, expected one of {', '.join(fields)}")
        if expected := _wrong(fields[name], value):
            raise InputError(f"--{name}: found {value!r}, expected {expected}")
    return ParsedFlags(dict(values), {name: field.default for name, field in fields.items()})


def architecture_from(
    parsed: ParsedFlags, config: type[Config], saved: dict[str, Any] | None, checkpoint: str
) -> Config:
    """Return a model's config: parsed flags, else its checkpoint's config.json, else defaults.

    :param saved: the content of config.json, or None where there is none.
    :raises InputError: a flag contradicts config.json (the line names every such flag); config.json holds a
        value that the flag would refuse.
    """
    fields = {field.name: field for field in dataclasses.fields(config) if field.metadata["architecture"]}
    stored = {name: value for name, value in (saved or {}).items() if name in fields}
    for name, value in stored.items():
        if expected := _wrong(fields[name], value):
            raise InputError(f"{checkpoint}: config.json beside it has {name} {value!r}, expected {expected}")
    clashes = [
        f"--{name} {parsed.values[name]} (the checkpoint has {value})"
        for name, value in stored.items()
        if name in parsed.values and parsed.values[name] != value
    ]
    if clashes:
        raise InputError(f"{checkpoint}: config.json beside it contradicts {', '.join(clashes)}")
    return parsed.make(config, **stored)

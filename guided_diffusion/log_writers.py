"""The formats that the logger writes: a text table, JSON lines, CSV, TensorBoard.

A writer given an existing file adds to it, so that a resumed run continues its own record.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from guided_diffusion.errors import InputError, InputValueError
from guided_diffusion.files import write_atomically

_COLUMN = 30  # widest cell of the text table, in characters


class KVWriter:
    """Something that records one set of named values at a time."""

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        raise NotImplementedError(f"{type(self).__name__}.writekvs")


class SeqWriter:
    """Something that records a line of text at a time."""

    def writeseq(self, seq: Iterable[str]) -> None:
        raise NotImplementedError(f"{type(self).__name__}.writeseq")


class HumanOutputFormat(KVWriter, SeqWriter):
    """Plain lines and two-column tables for people, to an open text file or to a file by name."""

    def __init__(self, filename_or_file: str | os.PathLike | TextIO):
        self.own_file = isinstance(filename_or_file, (str, os.PathLike))
        if self.own_file:
            self.file = open(filename_or_file, "a", encoding="utf-8")  # noqa: SIM115
        elif hasattr(filename_or_file, "write"):
            self.file = filename_or_file
        else:
            raise TypeError(f"expected a file name or an open text file, found {filename_or_file!r}")

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        """A table sorted by name, case ignored; cells longer than 30 characters are cut."""
        if not kvs:
            warnings.warn("nothing was logged since the last dump: no table written", stacklevel=2)
            return
        rows = [(_cut(name), _cut(_as_text(value))) for name, value in sorted(kvs.items())]
        rows.sort(key=lambda row: row[0].lower())
        names, values = (max(map(len, column)) for column in zip(*rows, strict=True))
        rule = "-" * len(f"| {'':{names}} | {'':{values}} |")
        table = [rule, *(f"| {name:{names}} | {value:{values}} |" for name, value in rows), rule]
        self._write_line("\n".join(table))

    def writeseq(self, seq: Iterable[str]) -> None:
        """One line, the parts separated by blanks."""
        self._write_line(" ".join(seq))

    def close(self) -> None:
        if self.own_file:
            self.file.close()

    def _write_line(self, text: str) -> None:
        self.file.write(f"{text}\n")
        self.file.flush()


class JSONOutputFormat(KVWriter):
    """One JSON object a line."""

    def __init__(self, filename: str | os.PathLike):
        self.file = open(filename, "a", encoding="utf-8")  # noqa: SIM115

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        plain = {name: _as_number(value) if hasattr(value, "dtype") else value for name, value in kvs.items()}
        self.file.write(json.dumps(plain, default=str) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class CSVOutputFormat(KVWriter):
    """A CSV file whose header grows when new names turn up; cells without a value are empty.

    New names are sorted among themselves and appended. The file is then replaced as a whole, so that a
    crash cannot lose the rows already there.
    """

    def __init__(self, filename: str | os.PathLike):
        self.path = Path(filename)
        self.keys: list[str] = []
        if self.path.exists():
            with open(self.path, newline="", encoding="utf-8") as file:
                self.keys = next(csv.reader(file), [])
        self.file = self._open()

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        if new := sorted(set(kvs) - set(self.keys)):
            self._add_columns(new)
        row = ["" if kvs.get(name) is None else _as_cell(kvs[name]) for name in self.keys]
        csv.writer(self.file, lineterminator="\n").writerow(row)
        self.file.flush()

    def close(self) -> None:
        self.file.close()

    def _open(self) -> TextIO:
        return open(self.path, "a", newline="", encoding="utf-8")

    def _add_columns(self, names: list[str]) -> None:
        self.file.close()
        with open(self.path, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))[1:]
        self.keys += names
        table = [self.keys, *(row + [""] * (len(self.keys) - len(row)) for row in rows)]
        with write_atomically(self.path) as file:
            for row in table:
                csv.writer(_Encoder(file), lineterminator="\n").writerow(row)
        self.file = self._open()


class TensorBoardOutputFormat(KVWriter):
    """Scalars for TensorBoard, one step a dump, beginning with 1. Values that are no numbers are left out."""

    def __init__(self, dir: str | os.PathLike):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError("the log format tensorboard needs the tensorboard package") from error
        self.dir = os.fspath(dir)
        self.step = 1
        self.writer = SummaryWriter(log_dir=self.dir)

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        for name, value in kvs.items():
            if (number := _as_number(value)) is not None:
                self.writer.add_scalar(name, number, self.step)
        self.writer.flush()
        self.step += 1

    def close(self) -> None:
        self.writer.close()


def make_output_format(format: str, ev_dir: str | os.PathLike, log_suffix: str = "") -> KVWriter:
    """The writer called ``format`` for the directory ``ev_dir``, which is made if need be.

    stdout; log (``log.txt``); json (``progress.json``); csv (``progress.csv``); tensorboard (``tb/``).
    ``log_suffix`` goes before a file's extension. Any other name raises ``InputError``, which here is a
    ``ValueError`` too.
    """
    directory = Path(ev_dir)
    directory.mkdir(parents=True, exist_ok=True)
    match format:
        case "stdout":
            return HumanOutputFormat(sys.stdout)
        case "log":
            return HumanOutputFormat(directory / f"log{log_suffix}.txt")
        case "json":
            return JSONOutputFormat(directory / f"progress{log_suffix}.json")
        case "csv":
            return CSVOutputFormat(directory / f"progress{log_suffix}.csv")
        case "tensorboard":
            return TensorBoardOutputFormat(directory / f"tb{log_suffix}")
    raise InputValueError(f"log format: expected stdout, log, json, csv or tensorboard, found {format!r}")


class _Encoder:
    """Lets ``csv.writer`` write to a binary file."""

    def __init__(self, file: Any):
        self.file = file

    def write(self, text: str) -> None:
        self.file.write(text.encode())


def _cut(text: str) -> str:
    return text if len(text) <= _COLUMN else text[: _COLUMN - 3] + "..."


def _as_number(value: Any) -> float | None:
    """A Python, NumPy or torch scalar as a float; None for anything else."""
    if not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # an array or tensor of several elements
        return None


def _as_text(value: Any) -> str:
    number = _as_number(value)
    return str(value) if number is None else f"{number:<8.3g}"


def _as_cell(value: Any) -> str:
    """NumPy prints its scalars as Python does; torch does not."""
    return str(value.item() if type(value).__module__ == "torch" and value.numel() == 1 else value)

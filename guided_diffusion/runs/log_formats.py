"""The formats of the logger: a text table, JSON lines, CSV, TensorBoard.

A writer given an existing file adds to it, so that a resumed run continues its own record.
"""

from __future__ import annotations

import csv
import io
import json
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from guided_diffusion.errors import InputValueError
from guided_diffusion.io.atomic import write_atomically
from guided_diffusion.system.streams import LogFile

_COLUMN = 30  # widest cell of the text table, in characters
_QUARTILES = ("_q0", "_q1", "_q2", "_q3")


class KVWriter:
    """Base class of writers that record one set of named values at a time."""

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        raise NotImplementedError(f"{type(self).__name__}.writekvs")


class SeqWriter:
    """Base class of writers that record a line of text at a time."""

    def writeseq(self, seq: Iterable[str]) -> None:
        raise NotImplementedError(f"{type(self).__name__}.writeseq")


class HumanOutputFormat(KVWriter, SeqWriter):
    """Plain lines and two-column tables for people, to an open text file or to a file by name."""

    def __init__(self, filename_or_file: str | os.PathLike | TextIO):
        self.own_file = isinstance(filename_or_file, (str, os.PathLike))
        if self.own_file:
            self.file = LogFile(filename_or_file)
        elif hasattr(filename_or_file, "write"):
            self.file = filename_or_file
        else:
            raise TypeError(f"expected a file name or an open text file, found {filename_or_file!r}")

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        """Write a table sorted by name, case ignored; cells longer than 30 characters are cut.

        The quartiles NAME_q0 to NAME_q3 of a value NAME, by timestep, are in its row.
        """
        if not kvs:
            warnings.warn("nothing was logged since the last dump: no table written", stacklevel=2)
            return
        own_lines = [name for name in sorted(kvs) if not (name.endswith(_QUARTILES) and name[:-3] in kvs)]
        rows = [(_cut(name), _cut(_as_text(kvs[name])) + _quartiles(name, kvs)) for name in own_lines]
        rows.sort(key=lambda row: row[0].lower())
        names, values = (max(map(len, column)) for column in zip(*rows, strict=True))
        rule = "-" * len(f"| {'':{names}} | {'':{values}} |")
        table = [rule, *(f"| {name:{names}} | {value:{values}} |" for name, value in rows), rule]
        self._write_line("\n".join(table))

    def writeseq(self, seq: Iterable[str]) -> None:
        """Write one line, the parts separated by blanks."""
        self._write_line(" ".join(seq))

    def close(self) -> None:
        if self.own_file:
            self.file.close()

    def _write_line(self, text: str) -> None:
        self.file.write(f"{text}\n")
        if not self.own_file:
            self.file.flush()


class _FileWriter(KVWriter):
    def __init__(self, filename: str | os.PathLike):
        self.file = LogFile(filename)

    def close(self) -> None:
        self.file.close()


class JSONOutputFormat(_FileWriter):
    """One JSON object a line."""

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        plain = {name: _as_number(value) if hasattr(value, "dtype") else value for name, value in kvs.items()}
        self.file.write(json.dumps(plain, default=str) + "\n")


class CSVOutputFormat(_FileWriter):
    """A CSV file whose header grows when new names turn up; cells without a value are empty.

    New names are sorted among themselves and appended. The file is then replaced as a whole, so that a
    crash cannot lose the rows already there.
    """

    def __init__(self, filename: str | os.PathLike):
        super().__init__(filename)
        self.path = self.file.path
        self.keys: list[str] = []
        with self.file.attempt():
            self._add_columns([])

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        """Write one row; without the new names where the file cannot be replaced."""
        if not self.keys or set(kvs) - set(self.keys):
            with self.file.attempt():
                self._add_columns(kvs)
        if self.keys:
            self.file.write(_as_csv([["" if kvs.get(name) is None else _as_cell(kvs[name]) for name in self.keys]]))

    def _add_columns(self, names: Iterable[str]) -> None:
        text = self.path.read_bytes().decode(errors="backslashreplace") if self.path.exists() else ""
        header, *rows = list(csv.reader(io.StringIO(text, newline=""))) or [[]]
        keys = header + sorted(set(names) - set(header))
        if keys != header:
            self.file.close()  # it will be another file
            table = [keys, *(row + [""] * (len(keys) - len(row)) for row in rows)]
            with write_atomically(self.path) as file:
                file.write(_as_csv(table).encode(errors="backslashreplace"))
        self.keys = keys


class TensorBoardOutputFormat(_FileWriter):
    """Scalars for TensorBoard, one step a dump, beginning with 1. Values that are no numbers are left out."""

    def __init__(self, dir: str | os.PathLike):
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._record_writer = Event, RecordWriter
        self.dir = os.fspath(dir)
        self.step = 1
        super().__init__(Path(dir) / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}")
        self._write(file_version="brain.Event:2")

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        numbers = {name: number for name, value in kvs.items() if (number := _as_number(value)) is not None}
        values = [{"tag": name, "simple_value": number} for name, number in numbers.items()]
        self._write(step=self.step, summary={"value": values})
        self.step += 1

    def _write(self, **fields: Any) -> None:
        record = io.BytesIO()
        self._record_writer(record).write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self.file.write(record.getvalue())


def make_output_format(format: str, ev_dir: str | os.PathLike, log_suffix: str = "") -> KVWriter:
    """Return the writer called ``format`` for the directory ``ev_dir``, which is made if need be.

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


def _as_csv(rows: Iterable[Iterable[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _cut(text: str) -> str:
    return text if len(text) <= _COLUMN else text[: _COLUMN - 3] + "..."


def _quartiles(name: str, kvs: Mapping[str, Any]) -> str:
    """Return the text of a value's quartiles, a dash for one without samples; "" for a value without quartiles."""
    if not any(name + quartile in kvs for quartile in _QUARTILES):
        return ""
    values = (_as_text(kvs[name + quartile]).strip() if name + quartile in kvs else "-" for quartile in _QUARTILES)
    return "".join(f"  {quartile[1:]} {_cut(value):7}" for quartile, value in zip(_QUARTILES, values, strict=True))


def _as_number(value: Any) -> float | None:
    """Return a Python, NumPy or torch scalar as a float; None for anything else."""
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
    """Return a value's text, that of a scalar tensor as Python prints numbers."""
    return str(value.item() if type(value).__module__ == "torch" and value.numel() == 1 else value)

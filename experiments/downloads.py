"""Downloads of the published files, and the lock file that records what each of them was.

    for file in chosen(["all"]):
        download(file, "models")

The first download of a file records its address, size and sha256 in `downloads.lock.json` beside it. From then
on only that very content is accepted under its name, whoever serves it.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.published import PUBLISHED, PublishedFile, published
from guided_diffusion.errors import InputError, first_line
from guided_diffusion.io.atomic import write_json
from guided_diffusion.io.download import TIMEOUT_SECONDS, fetch, open_locked
from guided_diffusion.io.reading import hash_file, read_json

LOCK_NAME = "downloads.lock.json"


@dataclass(frozen=True)
class Recorded:
    """The lock file's entry of a file, from its first download: size in bytes, sha256 in hexadecimal."""

    url: str
    size: int
    sha256: str


def listing() -> Iterator[str]:
    """One line a published file: name, size where known, address or what to do instead."""
    rows = [(f.name, f"{f.size:,}" if f.size else "-", f.url or f.instruction) for f in PUBLISHED.values()]
    name_width, size_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    for name, size, source in rows:
        yield f"{name:{name_width}}  {size:>{size_width}}  {source}"


def chosen(words: Sequence[str]) -> list[PublishedFile]:
    """The files called `words`, or every file that has an address for the one word "all".

    What "all" leaves out is said on standard error. InputError for an unknown name and for one without address.
    """
    for word in ("all", "list"):
        if word in words and len(words) > 1:
            raise InputError(f"download: found {word!r} among {len(words)} words, expected it alone")
    if "all" in words:
        for file in PUBLISHED.values():
            if file.url is None:
                print(f"skipped: {file.name}: {file.instruction}", file=sys.stderr)
        return [file for file in PUBLISHED.values() if file.url]
    files = [published(word) for word in dict.fromkeys(words)]
    for file in files:
        if file.url is None:
            raise InputError(f"{file.name}: {file.instruction}")
    return files


def download(
    file: PublishedFile, directory: str | os.PathLike, timeout: tuple[float, float] = TIMEOUT_SECONDS
) -> Path:
    """Download a published file into `directory`, check and record it; return the absolute path.

    `timeout` as `guided_diffusion.io.download.fetch` takes it. InputError where the file cannot be had, is not what
    is published or was recorded, or where the lock file cannot be read or written.
    """
    directory = Path(directory).absolute()
    lock = directory / LOCK_NAME
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory}: cannot be made: {error.strerror}, expected a folder to write to") from error
    seen = read_lock(lock).get(file.name)
    advice = "run again, or take the file from elsewhere"
    if seen:
        _compare(lock, file.name, seen, file.size, file.sha256)
        advice = f"size and sha256 are recorded in {lock}"
    size = seen.size if seen else file.size
    sha256 = seen.sha256 if seen else file.sha256
    path = fetch(file.url, directory / file.name, advice, size=size, sha256=sha256, timeout=timeout)
    if not seen:
        _record(lock, file.name, Recorded(file.url, path.stat().st_size, sha256 or hash_file(path)))
    return path


def read_lock(lock: Path) -> dict[str, Recorded]:
    """The lock file: what was seen of each name. Empty if there is none; InputError if it is damaged."""
    expected = "JSON, name to url, size and sha256"
    try:
        seen = {name: Recorded(**entry) for name, entry in read_json(lock, expected).items()}
        for name, entry in seen.items():
            if not (isinstance(entry.size, int) and re.fullmatch(r"[0-9a-f]{64}", entry.sha256)):
                raise ValueError(f"{name}: size or sha256 is malformed")
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise InputError(f"{lock}: expected {expected}; found otherwise ({first_line(error)})") from error
    return seen


def _record(lock: Path, name: str, new: Recorded) -> None:
    """Add an entry; processes that download other files into the folder may do the same just now."""
    try:
        with open_locked(lock.with_name(f"{lock.name}.part")):
            seen = read_lock(lock)
            if name in seen:
                _compare(lock, name, seen[name], new.size, new.sha256)
                return
            entries = {key: dataclasses.asdict(entry) for key, entry in sorted((seen | {name: new}).items())}
            write_json(lock, entries)
    except OSError as error:
        raise InputError(f"{lock}: cannot be written: {error.strerror}") from error


def _compare(lock: Path, name: str, seen: Recorded, size: int | None, sha256: str | None) -> None:
    """InputError where the lock file contradicts what else is known of a file."""
    for what, found, expected in (("size", seen.size, size), ("sha256", seen.sha256, sha256)):
        if expected is not None and found != expected:
            raise InputError(f"{lock}: {name}: found {what} {found}, expected {expected}")

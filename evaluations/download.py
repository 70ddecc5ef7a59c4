"""Fetching one large file over HTTP: once, resumable, and never half there under its final name."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import requests
from tqdm.auto import tqdm

from guided_diffusion.errors import InputError

ATTEMPTS = 5
PAUSE_SECONDS = 1.0
_TIMEOUT_SECONDS = (10, 60)  # to connect; between two pieces
_PIECE = 1 << 14  # the most that a cut connection loses

log = logging.getLogger(__name__)


class _Cut(Exception):
    """The connection ended early; what has arrived is kept."""


def fetch(url: str, path: str | os.PathLike, advice: str) -> Path:
    """Download ``url`` to ``path`` unless it is there already; return the absolute path.

    The bytes collect in ``path`` + ".part". A cut connection, in this call or an earlier one, is resumed
    where the server can do that and restarted where it cannot. Only a file of the length announced by the
    server gets its final name. Of several processes that ask at once one downloads and the others wait.

    Raises ``InputError`` ending in ``advice`` if the file cannot be had.
    """
    path = Path(path).absolute()
    if path.exists():
        return path
    part = path.with_name(path.name + ".part")
    try:
        with _open_locked(part) as file:
            if not path.exists():  # another process may have finished while we waited
                log.info("downloading %s to %s", url, path)
                _fill(url, file)
                os.replace(part, path)
    except OSError as error:  # includes everything requests raises
        raise InputError(f"{path}: cannot be downloaded from {url}: {_brief(error)}; {advice}") from error
    return path


@contextmanager
def _open_locked(part: Path) -> Iterator[BinaryIO]:
    """Open ``part`` for appending with nobody else writing to it; an empty one is not left behind."""
    while True:
        with open(part, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not (part.exists() and os.path.samestat(os.fstat(file.fileno()), part.stat())):
                continue  # renamed or removed by the process we waited for
            try:
                yield file
            finally:
                if file.seek(0, os.SEEK_END) == 0:
                    part.unlink(missing_ok=True)
            return


def _fill(url: str, file: BinaryIO) -> None:
    """Append to ``file`` until it is complete and on disk."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _request(url, file)
            os.fsync(file.fileno())
            return
        except _Cut as error:
            log.info("connection lost after %d bytes (attempt %d of %d)", file.tell(), attempt, ATTEMPTS)
            last = error
            time.sleep(PAUSE_SECONDS)
    raise OSError(f"connection lost {ATTEMPTS} times ({last})")


def _request(url: str, file: BinaryIO) -> None:
    """One request for what is still missing; raises ``_Cut`` if not all of it arrived."""
    have = file.seek(0, os.SEEK_END)
    headers = {"Accept-Encoding": "identity"}  # lengths and ranges then count bytes of the file itself
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable and have:
            total = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
            if total and int(total[1]) == have:
                return
            file.truncate(0)
            raise _Cut("the partial file did not fit the server's")
        response.raise_for_status()
        total = _announced_length(response, have)
        if response.status_code != requests.codes.partial_content and have:
            file.truncate(0)  # the server sends everything again
            have = 0
        _copy(response, file, have, total)
    if total is not None and (size := file.seek(0, os.SEEK_END)) != total:
        if size > total:
            file.truncate(0)
        raise _Cut(f"{size} of {total} bytes arrived")


def _announced_length(response: requests.Response, have: int) -> int | None:
    """Length of the whole file as the server gives it, or None if it does not."""
    if response.status_code == requests.codes.partial_content:
        answer = response.headers.get("Content-Range", "")
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer)
        if not span or int(span[1]) != have:
            raise OSError(f"asked for bytes {have}-, got Content-Range {answer!r}")
        return int(span[2])
    length = response.headers.get("Content-Length")
    return int(length) if length is not None else None


def _copy(response: requests.Response, file: BinaryIO, have: int, total: int | None) -> None:
    with tqdm(total=total, initial=have, unit="B", unit_scale=True, desc="download") as bar:
        try:
            for piece in response.iter_content(_PIECE):
                file.write(piece)
                bar.update(len(piece))
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            raise _Cut(_brief(error)) from error
        finally:
            file.flush()


def _brief(error: BaseException) -> str:
    """The first line of an error, shortened."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return text if len(text) <= 160 else text[:157] + "..."

"""The download of one large file over HTTP: once, resumable, checked, its final name only when it is whole."""

from __future__ import annotations

import base64
import binascii
import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import requests
from tqdm.auto import tqdm

from guided_diffusion.errors import DamagedError, InputError, brief
from guided_diffusion.io.atomic import write_json
from guided_diffusion.io.reading import hash_file, open_regular, read_json

ATTEMPTS = 5
PAUSE_SECONDS = 1.0  # before the second attempt; twice as long before each further one
TIMEOUT_SECONDS = (10.0, 60.0)  # to connect; between two pieces
MOST_BYTES = 64 << 30  # of a file whose size is not known beforehand
_PIECE = 1 << 14  # the most that a cut connection loses
_HEADERS = {"Accept-Encoding": "identity"}  # lengths, ranges and digests are then those of the file itself

log = logging.getLogger(__name__)


class _Cut(Exception):
    """A transfer that ended early; another request may bring the rest."""


class _Rejected(OSError):
    """A file, or the server's announcement of it, that is not what was expected."""


def fetch(
    url: str,
    path: str | os.PathLike,
    advice: str,
    *,
    size: int | None = None,
    sha256: str | None = None,
    timeout: tuple[float, float] = TIMEOUT_SECONDS,
) -> Path:
    """Download ``url`` to ``path`` unless it is there already; return the absolute path.

    The bytes collect in ``path`` + ".part", and ".part.json" notes of which version of the file they are. A cut or
    stalled connection, in this call or an earlier one, is resumed where the server names versions and still has that
    one, and restarted where not; a 5xx answer is asked again. Of several processes that ask at once one downloads.

    A new file gets its final name only if it is neither empty nor an HTML page, has the announced length, the MD5 of
    the server's Content-MD5 where that is sent, and ``size`` (bytes, else at most ``MOST_BYTES``) and ``sha256``
    (hexadecimal) where given; otherwise it is removed. A file that was there is held to all that needs no server, and
    set aside as ``path`` + ".rejected" if it fails. ``timeout`` is in seconds: to connect, and between two pieces.

    Raises ``InputError`` ending in ``advice`` if the file cannot be had or fails a check.
    """
    path = Path(path).absolute()
    part, note = (path.with_name(path.name + end) for end in (".part", ".part.json"))
    if path.is_dir():
        raise InputError(f"{path}: expected a file, found a directory; {advice}")
    try:
        if not path.exists():
            with open_locked(part) as file:
                if not path.exists():  # another process may have finished while we waited
                    log.info("downloading %s to %s", url, path)
                    try:
                        md5 = _fill(url, file, note, size, timeout)
                        if wrong := _mismatch(part, size, sha256, md5):
                            file.truncate(0)  # resumed, it would fail for ever
                            raise _Rejected(wrong)
                        os.replace(part, path)
                    finally:
                        if path.exists() or not os.fstat(file.fileno()).st_size:
                            note.unlink(missing_ok=True)
                    return path
    except OSError as error:  # includes everything requests raises
        raise InputError(f"{path}: cannot be downloaded from {url}: {brief(error)}; {advice}") from error
    try:
        if wrong := _mismatch(path, size, sha256):
            aside = path.with_name(path.name + ".rejected")
            os.replace(path, aside)
            raise InputError(f"{path}: {wrong}; moved to {aside.name}; {advice}")
    except OSError as error:
        raise InputError(f"{path}: cannot be checked: {brief(error)}; {advice}") from error
    return path


@contextmanager
def open_locked(part: Path) -> Iterator[BinaryIO]:
    """Open ``part`` for appending locked against other processes; remove it at the end if it is empty."""
    while True:
        with open(part, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                current = part.stat()  # not asked for in two steps: another process may remove it in between
            except FileNotFoundError:
                current = None
            if current is None or not os.path.samestat(os.fstat(file.fileno()), current):
                continue  # renamed or removed by the process we waited for
            try:
                yield file
            finally:
                if file.seek(0, os.SEEK_END) == 0:
                    part.unlink(missing_ok=True)
            return


def _fill(url: str, file: BinaryIO, note: Path, size: int | None, timeout: tuple[float, float]) -> str | None:
    """Append to a partial file until it is complete and on disk; return its MD5 in hexadecimal if the server tells."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            md5 = _request(url, file, note, size, timeout)
            os.fsync(file.fileno())
            return md5
        except _Cut as error:
            log.info("stopped after %d bytes (%s, attempt %d of %d)", _length(file), error, attempt, ATTEMPTS)
            last = error
            if attempt < ATTEMPTS:
                time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
    raise OSError(f"failed {ATTEMPTS} times, at last: {last}")


def _request(url: str, file: BinaryIO, note: Path, size: int | None, timeout: tuple[float, float]) -> str | None:
    """Ask once for what is missing in a partial file; return as `_fill`. ``_Cut`` if not all of it arrives."""
    version: dict[str, str] = {}
    with suppress(FileNotFoundError, DamagedError):
        version = {name: str(value) for name, value in read_json(note).items() if value is not None}
    if "validator" not in version:  # these bytes may be the beginning of another file
        file.truncate(0)
    have = _length(file)
    headers = _HEADERS | ({"Range": f"bytes={have}-", "If-Range": version["validator"]} if have else {})
    try:
        response = requests.get(url, headers=headers, stream=True, timeout=timeout)
    except requests.ReadTimeout as error:
        raise _Cut(brief(error)) from error
    with response:
        status, found = response.status_code, _version(response)
        fits = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        fits = fits and found.get("validator") in (None, version.get("validator"))
        if have and status in (requests.codes.partial_content, requests.codes.range_not_satisfiable) and not fits:
            file.truncate(0)
            raise _Cut("the partial file did not fit the server's")
        if status >= 500:
            raise _Cut(f"{status} {response.reason}")
        response.raise_for_status()
        _check_kind(response, have)
        total, most = _announced_length(response), MOST_BYTES if size is None else size
        if total is not None and (total > most or size not in (None, total)):
            raise _Rejected(f"the server announces {total} bytes, expected {'at most ' * (size is None)}{most}")
        if status == requests.codes.ok:
            file.truncate(0)  # the server sends everything, perhaps again
            have, version = 0, found
            write_json(note, version)
        _copy(response, file, have, total, most)
    if total is not None and _length(file) != total:
        raise _Cut(f"{_length(file)} of {total} bytes arrived")
    return version.get("md5")


def _length(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _check_kind(response: requests.Response, have: int) -> None:
    """Raise ``_Rejected`` for an answer that is no file as it is: another status, a page, something packed."""
    status, kind = response.status_code, response.headers.get("Content-Type", "")
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if status != requests.codes.ok and not (have and status == requests.codes.partial_content):
        raise _Rejected(f"found answer {status} {response.reason}, expected 200")
    if encoding not in ("", "identity"):  # small as it comes, it may be of any size when unpacked
        raise _Rejected(f"found Content-Encoding {encoding}, expected the file as it is")
    if kind.lower().startswith("text/html"):
        raise _Rejected(f"found an HTML page (Content-Type {kind}), expected a file")


def _announced_length(response: requests.Response) -> int | None:
    """Return the length of the whole file as the server gives it, None if it does not."""
    whole = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length", "")
    return int(whole) if re.fullmatch(r"[0-9]{1,18}", whole) else None


def _copy(response: requests.Response, file: BinaryIO, have: int, total: int | None, most: int) -> None:
    """Append an answer to the file. ``_Cut`` where the connection ends early, ``_Rejected`` for too many bytes."""
    most = most if total is None else total
    with tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=Path(file.name).stem) as bar:
        try:
            for piece in response.iter_content(_PIECE):
                have += len(piece)
                if have > most:
                    file.truncate(0)
                    raise _Rejected(f"more than {most} bytes arrive, expected no more")
                file.write(piece)
                bar.update(len(piece))
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            raise _Cut(brief(error)) from error
        finally:
            file.flush()


def _version(response: requests.Response) -> dict[str, str]:
    """Return what tells this version of the file from others, where the server says it, and its MD5."""
    etag, found = response.headers.get("ETag", ""), {}
    if validator := etag if etag.startswith('"') else response.headers.get("Last-Modified"):  # a weak ETag is none
        found["validator"] = validator
    with suppress(binascii.Error, ValueError):
        digest = base64.b64decode(response.headers.get("Content-MD5", ""), validate=True)
        if len(digest) == 16:
            found["md5"] = digest.hex()
    return found


def _mismatch(path: Path, size: int | None, sha256: str | None, md5: str | None = None) -> str:
    """Return what is wrong with a file; "" if it is as expected."""
    if size is not None and (found := path.stat().st_size) != size:
        return f"found {found} bytes, expected {size}"
    with open_regular(path) as file:
        begin = file.read(4096)
    if not begin or begin.lstrip(b"\xef\xbb\xbf \t\r\n\f").lower().startswith((b"<!doctype html", b"<html")):
        return f"found {'an HTML page' if begin else 'an empty file'}, expected another file"
    for algorithm, expected in (("md5", md5), ("sha256", sha256)):
        if expected and (digest := hash_file(path, algorithm)) != expected.lower():
            return f"found {algorithm} {digest}, expected {expected}"
    return ""

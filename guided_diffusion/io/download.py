"""Fetching one large file over HTTP: once, resumable, checked, and never half there under its final name."""

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
MOST_BYTES = 64 << 30  # of a file whose size nobody knows beforehand
_PIECE = 1 << 14  # the most that a cut connection loses
_HEADERS = {"Accept-Encoding": "identity"}  # lengths, ranges and digests are then those of the file itself

log = logging.getLogger(__name__)


class _Cut(Exception):
    """Not everything arrived this time, but another request may help; what has arrived is kept."""


class _Rejected(OSError):
    """The file, or what the server announces of it, is not what was expected."""


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
    stalled connection, in this call or an earlier one, is resumed where the server still has that version and
    restarted where not; a 5xx answer is asked again. Of several processes that ask at once one downloads.

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
                        md5 = _Transfer(url, file, note, size, timeout).fill()
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
    """Open ``part`` for appending with nobody else writing to it; an empty one is not left behind."""
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


class _Transfer:
    """The requests that it takes to complete one partial file.

    :param file: open for appending; note: path of what is noted of it; size: in bytes, where known beforehand.
    """

    def __init__(self, url: str, file: BinaryIO, note: Path, size: int | None, timeout: tuple[float, float]):
        self.url, self.file, self.note, self.size, self.timeout = url, file, note, size, timeout
        self.most = MOST_BYTES if size is None else size
        self.version: dict[str, str] = {}
        with suppress(FileNotFoundError, DamagedError):
            self.version = {name: str(value) for name, value in read_json(note).items() if value is not None}

    def fill(self) -> str | None:
        """Append until the file is complete and on disk; return its MD5 in hexadecimal if the server tells."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._request()
                os.fsync(self.file.fileno())
                return self.version.get("md5")
            except _Cut as error:
                log.info("stopped after %d bytes (%s, attempt %d of %d)", self._have(), error, attempt, ATTEMPTS)
                last = error
                if attempt < ATTEMPTS:
                    time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        raise OSError(f"failed {ATTEMPTS} times, at last: {last}")

    def _have(self) -> int:
        return self.file.seek(0, os.SEEK_END)

    def _request(self) -> None:
        """One request for what is still missing; raises ``_Cut`` if not all of it arrived."""
        if not self.version.keys() & {"validator", "total"}:  # nobody knows what these bytes are the beginning of
            self.file.truncate(0)
        have = self._have()
        headers = _HEADERS | ({"Range": f"bytes={have}-"} if have else {})
        if have and "validator" in self.version:
            headers["If-Range"] = self.version["validator"]
        try:
            response = requests.get(self.url, headers=headers, stream=True, timeout=self.timeout)
        except requests.ReadTimeout as error:
            raise _Cut(brief(error)) from error
        with response:
            if response.status_code == requests.codes.requested_range_not_satisfiable and have:
                total = re.fullmatch(r"bytes \*/(\d{1,18})", response.headers.get("Content-Range", ""))
                if total and total[1] == str(have) == self.version.get("total", str(have)):
                    return
                self._restart("the partial file did not fit the server's")
            if response.status_code >= 500:
                raise _Cut(f"{response.status_code} {response.reason}")
            response.raise_for_status()
            self._check_kind(response, have)
            total = self._announced_length(response, have)
            if total is not None and (total > self.most or self.size not in (None, total)):
                expected = f"at most {self.most}" if self.size is None else self.size
                raise _Rejected(f"the server announces {total} bytes, expected {expected}")
            version = _version(response, total)
            if response.status_code == requests.codes.ok:
                self.file.truncate(0)  # the server sends everything, perhaps again
                have = 0
                self.version = version
                write_json(self.note, version)
            elif any(self.version.get(name, value) != value for name, value in version.items()):
                self._restart("the file has changed on the server")
            self._copy(response, have, total)
        if total is not None and (size := self._have()) != total:
            raise _Cut(f"{size} of {total} bytes arrived")

    def _restart(self, why: str) -> None:
        """Leave nothing that the next request could resume."""
        self.file.truncate(0)
        raise _Cut(why)

    def _check_kind(self, response: requests.Response, have: int) -> None:
        """Raise ``_Rejected`` for an answer that is no file as it is: another status, a page, something packed."""
        status, kind = response.status_code, response.headers.get("Content-Type", "")
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if status != requests.codes.ok and not (have and status == requests.codes.partial_content):
            raise _Rejected(f"found answer {status} {response.reason}, expected 200")
        if encoding not in ("", "identity"):  # small as it comes, it may be of any size when unpacked
            raise _Rejected(f"found Content-Encoding {encoding}, expected the file as it is")
        if kind.lower().startswith("text/html"):
            raise _Rejected(f"found an HTML page (Content-Type {kind}), expected a file")

    def _announced_length(self, response: requests.Response, have: int) -> int | None:
        """Length of the whole file as the server gives it, or None if it does not."""
        if response.status_code == requests.codes.partial_content:
            answer = response.headers.get("Content-Range", "")
            span = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18})", answer)
            if not span or int(span[1]) != have:
                self._restart(f"asked for bytes {have}-, got Content-Range {answer!r}")
            return int(span[2])
        length = response.headers.get("Content-Length", "")
        return int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None

    def _copy(self, response: requests.Response, have: int, total: int | None) -> None:
        name, most = Path(self.file.name).stem, self.most if total is None else total
        with tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=name) as bar:
            try:
                for piece in response.iter_content(_PIECE):
                    have += len(piece)
                    if have > most:
                        self.file.truncate(0)
                        raise _Rejected(f"more than {most} bytes arrive, expected no more")
                    self.file.write(piece)
                    bar.update(len(piece))
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                raise _Cut(brief(error)) from error
            finally:
                self.file.flush()


def _version(response: requests.Response, total: int | None) -> dict[str, str]:
    """What tells one version of the file from another, where the server says it; and the MD5 of its whole."""
    etag, whole = response.headers.get("ETag", ""), response.status_code == requests.codes.ok
    validator = etag if etag.startswith('"') else response.headers.get("Last-Modified")  # a weak ETag is none
    found = {"validator": validator, "total": total, "md5": _content_md5(response) if whole else None}
    return {name: str(value) for name, value in found.items() if value is not None}


def _content_md5(response: requests.Response) -> str | None:
    """The Content-MD5 header in hexadecimal; None where it is not sent or is not 16 bytes in base64."""
    try:
        digest = base64.b64decode(response.headers.get("Content-MD5", ""), validate=True)
    except (binascii.Error, ValueError):
        return None
    return digest.hex() if len(digest) == 16 else None


def _mismatch(path: Path, size: int | None, sha256: str | None, md5: str | None = None) -> str:
    """What is wrong with a file; nothing if it is as expected."""
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

"""The image files of a folder, a zip or a tar archive: their names, their order, and what is skipped.

Training, evaluation, references, conversion and super-resolution all list and open images here.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any, BinaryIO

from guided_diffusion.errors import InputError, counted
from guided_diffusion.io.images import NO_IMAGE
from guided_diffusion.io.reading import decoding, exists, open_regular, reason
from guided_diffusion.io.remote import blobfile, file_errors, is_remote, join

SUFFIXES = frozenset(("bmp", "gif", "jpeg", "jpg", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"))
UPSTREAMS = frozenset(("gif", "jpeg", "jpg", "png"))  # all that upstream's own functions look for
EXPECTED = ", ".join(sorted(SUFFIXES))
LABEL_FILE = "dataset.json"  # at the top; EDM's data tools write it
_DAMAGED = "damaged or truncated archive"
_LARGEST = 1 << 28  # bytes of one file in an archive


class ImageFiles:
    """The image files of one place, in order; ``len`` is their number.

    place: folder or archive. title: its name in messages. names: paths inside it, with slashes. skipped: the number of
    files that are no images by suffix, and of folders that are not read (their names end in a slash).
    """

    is_folder = True
    random_access = True  # False where opening a file means reading all before it

    def __init__(self, place: str, title: str, names: Sequence[str], skipped: Counter[str]):
        self.place, self.title, self.names, self.skipped = place, title, list(names), skipped

    def __len__(self) -> int:
        return len(self.names)

    def path(self, name: str) -> str:
        """Return a file's path, with that of the place, for opening it and for messages."""
        return join(self.place, name)

    def open(self, path: str) -> BinaryIO:
        """Open a file by what ``path`` returns; ``InputError`` or ``OSError`` where that fails."""
        return open_image_file(path)

    def stream(self) -> Iterator[tuple[str, BinaryIO]]:
        """Yield each name in order with its open file, which is closed before the next."""
        for name in self.names:
            with decoding(f"{self.title}: {name}", NO_IMAGE):
                file = self.open(self.path(name))
            with file:
                yield name, file

    def read_label_file(self) -> bytes | None:
        """Return the content of EDM's dataset.json at the top; None where there is none."""
        path = self.path(LABEL_FILE)
        if is_remote(path) or not exists(path):
            return None
        with open_regular(path) as file:
            return file.read()

    def describe_skipped(self) -> str:
        """Return a line that counts what was skipped, by suffix; "" for nothing."""
        parts = []
        for things, is_folder in (("files", False), ("folders", True)):
            found = [(kind, count) for kind, count in self.skipped.most_common() if kind.endswith("/") == is_folder]
            if total := sum(count for _, count in found):
                kinds = ", ".join(f"{count} {kind}" for kind, count in found[:6]) + (", ..." if len(found) > 6 else "")
                parts.append(f"{counted(total, things)} skipped: {kinds}")
        return f"{self.title}: {'; '.join(parts)}" if parts else ""

    def describe_subfolders(self) -> str:
        """Return a line that counts the images of each folder where some are in subfolders, else ""."""
        counts = Counter(name.rpartition("/")[0] for name in self.names)
        if not any(counts):
            return ""
        shown = ", ".join(f"{folder or 'itself'} {count}" for folder, count in list(counts.items())[:6])
        folders, more = counted(len(counts), "folders"), ", ..." if len(counts) > 6 else ""
        return f"{self.title}: reading {len(self)} images of {folders} in it: {shown}{more}"


def list_images(place: str, title: str = "", suffixes: Collection[str] = SUFFIXES) -> ImageFiles:
    """List the image files of a folder (searched recursively) or an archive; there may be none.

    A folder is read depth first, files and subfolders in one sorted order; an archive in its own order. Hidden folders,
    __MACOSX and files called ._* are skipped. Links to folders are followed.

    :param title: name of the place in errors; by default its path. suffixes: of images, in lower case.
    :raises InputError: missing, a subfolder that cannot be listed, a broken link, no archive or a damaged one.
    """
    title = title or place
    skipped: Counter[str] = Counter()
    try:
        is_folder = is_remote(place) or stat.S_ISDIR(os.stat(place).st_mode)
    except FileNotFoundError as error:
        if os.path.islink(place):
            raise InputError(_broken(place, title)) from error
        raise InputError(f"{title}: no such folder") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{title}: cannot be listed: {_why(error)}") from error
    if is_folder:
        return ImageFiles(place, title, list(_walk(place, title, suffixes, skipped)), skipped)
    with _listing(title), open_regular(place, title) as file:
        if zipfile.is_zipfile(file):
            return _ZipFiles(place, title, suffixes)
        if _is_tar(place):
            return _TarFiles(place, title, suffixes)
    raise InputError(f"{title}: cannot be listed: found a file, expected a folder, a zip or a tar archive of images")


def open_image_file(path: str) -> BinaryIO:
    """Open one image by its path, local or remote."""
    return blobfile().BlobFile(path, "rb") if is_remote(path) else open_regular(path)


def is_image_archive(path: str) -> bool:
    """Return whether a local file is a tar or a zip archive, even a damaged one, but no npz file."""
    if path.endswith(".npz"):
        return False
    if _is_tar(path):
        return True
    if not zipfile.is_zipfile(path):
        return False
    with decoding(path, _DAMAGED), zipfile.ZipFile(path) as archive:  # it may only begin or end like one
        return not any(name.endswith(".npy") for name in archive.namelist())


def _is_tar(path: str) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except Exception:  # it starts like a compressed archive and is damaged: reading it gives the error
        return True


class _Archive(ImageFiles):
    is_folder = False

    def path(self, name: str) -> str:
        return f"{self.place}/{name}"

    def _name(self, path: str) -> str:
        return path.removeprefix(f"{self.place}/")

    def _choose(self, members: Iterator[tuple[str, int]], suffixes: Collection[str]) -> None:
        """Sort the archive's files, given as (name, size), into images and others."""
        for name, size in members:
            *folders, base = name.split("/")
            hidden = next((f"{folder}/" for folder in folders if _is_hidden_folder(folder)), None)
            kind = hidden or _other_kind(base, suffixes)
            if (kind is None or name == LABEL_FILE) and size > _LARGEST:
                raise InputError(f"{self.title}: {name} claims {size} bytes, expected a file of at most {_LARGEST}")
            if kind is None:
                self.names.append(name)
            elif not kind.endswith("/") and name != LABEL_FILE:
                self.skipped[kind] += 1
            elif kind.endswith("/"):
                self.skipped[kind] = 1


class _ZipFiles(_Archive):
    def __init__(self, place: str, title: str, suffixes: Collection[str]):
        super().__init__(place, title, (), Counter())
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        with decoding(title, _DAMAGED), zipfile.ZipFile(place) as archive:
            members = (member for member in archive.infolist() if not member.is_dir())
            self._choose(((member.filename, member.file_size) for member in members), suffixes)
            self._has_labels = LABEL_FILE in archive.namelist()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def _archive(self) -> zipfile.ZipFile:
        """Return this process's own open archive: processes that share an open file share its position."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), zipfile.ZipFile(self.place)
        return self._opened[1]

    def open(self, path: str) -> BinaryIO:
        with decoding(self.title, _DAMAGED):
            return self._archive().open(self._name(path))

    def read_label_file(self) -> bytes | None:
        with decoding(self.title, _DAMAGED):
            return self._archive().read(LABEL_FILE) if self._has_labels else None


class _TarFiles(_Archive):
    def __init__(self, place: str, title: str, suffixes: Collection[str]):
        super().__init__(place, title, (), Counter())
        self._places: dict[str, tuple[int, int]] = {}  # offset and size of each file's bytes
        self._label_file: bytes | None = None
        self.random_access = False
        with suppress(tarfile.TarError), tarfile.open(place, "r:"):  # not compressed
            self.random_access = True
        with self._members() as members:
            self._choose(self._note(members), suffixes)

    @contextmanager
    def _members(self) -> Iterator[Iterator[tuple[str, tarfile.TarInfo, tarfile.TarFile]]]:
        with decoding(self.title, _DAMAGED), tarfile.open(self.place, "r:*") as archive:
            yield ((member.name.removeprefix("./"), member, archive) for member in archive if member.isfile())

    def _note(self, members: Iterator[tuple[str, tarfile.TarInfo, tarfile.TarFile]]) -> Iterator[tuple[str, int]]:
        for name, member, archive in members:
            self._places[name] = member.offset_data, member.size
            if name == LABEL_FILE and member.size <= _LARGEST:  # larger ones are refused
                self._label_file = archive.extractfile(member).read()
            yield name, member.size

    def open(self, path: str) -> BinaryIO:
        offset, size = self._places[self._name(path)]
        with open_regular(self.place) as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))

    def stream(self) -> Iterator[tuple[str, BinaryIO]]:
        """Yield each name with its open file; a compressed archive is unpacked once, from its beginning."""
        if self.random_access:
            yield from super().stream()
            return
        wanted = set(self.names)
        with self._members() as members:
            for name, member, archive in members:
                if name in wanted:
                    with closing(archive.extractfile(member)) as file:
                        yield name, file

    def read_label_file(self) -> bytes | None:
        return self._label_file


def _walk(place: str, title: str, suffixes: Collection[str], skipped: Counter[str], inside: str = "") -> Iterator[str]:
    """Yield the images below a folder, local or remote, depth first; count what is skipped."""
    folder = join(place, inside) if inside else place
    with _listing(f"{title}: {inside.rstrip('/')}" if inside else title):
        found = sorted(_entries(folder), key=lambda entry: entry[0])
    for name, is_dir, is_link in found:
        kind, path = _other_kind(name, suffixes), join(folder, name)
        with _listing(f"{title}: {inside}{name}"):  # a link to itself
            is_folder = kind is not None and is_dir()
        if is_folder and _is_hidden_folder(name):
            skipped[f"{name}/"] += 1
        elif is_folder:
            target = os.path.realpath(path) if is_link else ""
            if target and os.path.commonpath((os.path.realpath(folder), target)) == target:
                raise InputError(f"{title}: {inside}{name} links to a folder that it is in; remove the link")
            yield from _walk(place, title, suffixes, skipped, f"{inside}{name}/")
        elif is_link and (kind is None or "." not in name) and not os.path.exists(path):
            raise InputError(_broken(path, f"{title}: {inside}{name}"))
        elif kind is None:
            yield inside + name
        elif inside or name != LABEL_FILE or is_remote(place):
            skipped[kind] += 1


def _entries(folder: str) -> list[tuple[str, Callable[[], bool], bool]]:
    """Return (name, function that tells whether it is a folder, whether it is a link) of everything in a folder."""
    if is_remote(folder):
        return [(name, partial(blobfile().isdir, join(folder, name)), False) for name in blobfile().listdir(folder)]
    with os.scandir(folder) as entries:
        return [(entry.name, entry.is_dir, entry.is_symlink()) for entry in entries]


def _is_hidden_folder(name: str) -> bool:
    return name == "__MACOSX" or (name.startswith(".") and name not in (".", ".."))


def _other_kind(name: str, suffixes: Collection[str]) -> str | None:
    """Return the kind under which a file that is no image is counted; None for an image (by its name)."""
    if name.startswith("._"):  # macOS writes these beside files
        return "._*"
    stem, dot, suffix = name.rpartition(".")
    if dot and suffix.lower() in suffixes:
        return None
    return f".{suffix.lower()}" if stem else name


def _broken(path: str, title: str) -> str:
    return f"{title}: a link to {os.readlink(path)}, where there is nothing; expected it mended or removed"


@contextmanager
def _listing(title: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{title}: no such folder") from error
    except file_errors() as error:
        raise InputError(f"{title}: cannot be listed: {_why(error)}") from error


def _why(error: Exception) -> str:
    return reason(error) if isinstance(error, OSError) else str(error)

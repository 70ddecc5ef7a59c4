"""Paths that may be remote addresses such as gs://bucket/name, and the library that opens these."""

from __future__ import annotations

import os
import sys
from types import ModuleType


def is_remote(path: str | os.PathLike) -> bool:
    """Return whether a path is an address such as gs://bucket/name."""
    return "://" in os.fspath(path)


def join(folder: str | os.PathLike, name: str) -> str:
    """Return the path of a file in a folder, local or remote."""
    folder = os.fspath(folder)
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


def beside(path: str | os.PathLike, name: str) -> str:
    """Return the path of a file in the same folder as another, local or remote."""
    path = os.fspath(path)
    return join(path.rpartition("/")[0] if is_remote(path) else os.path.dirname(path), name)


def blobfile() -> ModuleType:
    """Return the library for remote paths, imported only for these: that takes half a second."""
    import blobfile

    return blobfile


def file_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that opening, listing and writing files raise, local or remote."""
    loaded = sys.modules.get("blobfile")
    return (OSError, loaded.Error) if loaded else (OSError,)

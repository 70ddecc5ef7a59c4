"""Digests of files."""

from __future__ import annotations

import hashlib
import os


def hash_file(path: str | os.PathLike, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file; against damage and mix-ups, so MD5 is allowed everywhere."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()

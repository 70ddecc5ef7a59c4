"""What a run directory says about the run in it: flags, hashes of the files it reads, versions."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import logger
from .errors import InputError
from .files import write_json

MANIFEST = "run.json"
_NOTES = ("sha256", "versions", "extras_sha256")  # entries that are not flags


def read_manifest(directory: Path) -> dict[str, Any]:
    """The flags of a directory's run, `sha256` (of its files, by flag), `versions`; empty where there is no run.

    InputError when the file is not a JSON object.
    """
    path = directory / MANIFEST
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
    except ValueError:
        raise InputError(f"{path}: not JSON, expected the flags of the run in this directory") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: found no JSON object, expected the flags of the run in this directory")
    return found


def write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Write run.json, atomically."""
    write_json(directory / MANIFEST, manifest)


def check_manifest(
    directory: Path,
    flags: dict[str, Any],
    changeable: Sequence[str],
    write: bool,
    sha256: Mapping[str, str] | None = None,
    versions: Mapping[str, str] | None = None,
) -> None:
    """Refuse to mix two runs in one directory; `write`: record this run.

    InputError naming each flag that differs from the run found there, but for the `changeable` ones, and each
    file whose contents differ. A flag that one of the two lacks counts as "", the default of flags that came
    after the run. Other versions are no reason to refuse: they are listed and said.

    :param sha256: digests of the files that flags name, by flag.
    """
    found, sha256, versions = read_manifest(directory), dict(sha256 or {}), dict(versions or {})
    clashes = [
        f"--{name} {flags.get(name)} (the run there has {found.get(name)})"
        for name in sorted({*flags, *found} - {*changeable, *_NOTES})
        if found and flags.get(name, "") != found.get(name, "")
    ]
    clashes += [
        f"--{name} {flags[name]} has other contents than when the run there began "
        f"(sha256 {digest[:12]}..., then {found['sha256'][name][:12]}...)"
        for name, digest in sha256.items()
        if found.get("sha256", {}).get(name, digest) != digest
    ]
    if clashes:
        raise InputError(f"{directory}: holds samples of another run: {', '.join(clashes)}; use another --log_dir")
    if not write:
        return
    earlier = found.get("versions", [])
    if versions and earlier and versions not in earlier:
        before = earlier[-1]
        told = [f"{name} {before.get(name)} -> {v}" for name, v in versions.items() if before.get(name) != v]
        logger.log(f"resuming with other versions ({', '.join(told)}): samples may differ by rounding")
    notes = {
        "sha256": found.get("sha256", {}) | sha256,
        "versions": earlier + [versions] * (bool(versions) and versions not in earlier),
    }
    kept = {name: found[name] for name in _NOTES if name in found}
    write_manifest(directory, flags | kept | {name: value for name, value in notes.items() if value})


def versions() -> dict[str, str]:
    """Of what decides about roundings."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__, "device": device}

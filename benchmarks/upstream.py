"""The peer: upstream's own package, imported beside ours under the name `peer_guided_diffusion`.

Two sources can serve as the peer:

* by default `guided-diffusion-sdk==1.0.0` from the package index. Eleven of its modules are upstream's
  files; `gaussian_diffusion`, `nn` and `unet` come from a well-known fork that adds samplers. `is_fork`
  is True for it, and the few deliberate deviations of the fork (see `FORK_ONLY_PARAMETERS` and the
  cases that ask `is_fork`) are left out of the comparison, each with a reason.
* with the environment variable GUIDED_DIFFUSION_PEER, the folder of a checkout of openai/guided-diffusion.

NumPy: upstream's `resample` asks for `np.int`, which NumPy removed in 1.24. Only the peer's `resample`
module gets a stand-in `np` that still has it; NumPy itself is untouched.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = Path(__file__).with_name("upstream-requirements.txt")
INSTALLED = ROOT / ".peer" / "guided-diffusion-sdk-1.0.0"
IMPORT_NAME = "peer_guided_diffusion"
MODULES = (
    "unet", "nn", "gaussian_diffusion", "respace", "losses", "resample", "fp16_util", "script_util",
    "image_datasets", "train_util", "dist_util", "logger",
)  # fmt: skip

# Trailing parameters that the fork added to upstream's sampling loops.
FORK_ONLY_PARAMETERS = {
    "skip_timesteps", "init_image", "randomize_class", "cond_fn_with_grad", "transformation_fn",
    "transformation_percent",
}  # fmt: skip


class PeerUnavailable(Exception):
    """The peer cannot be had here; the message says why."""


@cache
def load_peer() -> SimpleNamespace:
    """The peer's modules as attributes (`peer.unet`, ...), and `is_fork`, `source`.

    Installs the package into `.peer/` on first use. Raises PeerUnavailable.
    """
    package = import_location() / "guided_diffusion"
    if not (package / "__init__.py").is_file():
        raise PeerUnavailable(f"no guided_diffusion package in {package.parent}")
    try:
        with stand_ins():
            modules = import_under_other_name(package)
    except ImportError as error:
        raise PeerUnavailable(f"the peer does not import: {error}") from error
    modules["resample"].np = NumPyWithInt("numpy_with_int")
    is_fork = hasattr(modules["gaussian_diffusion"].GaussianDiffusion, "plms_sample")
    return SimpleNamespace(**modules, is_fork=is_fork, source=package.parent.name)


def import_location() -> Path:
    """The folder that holds the peer's `guided_diffusion`, installed there if need be."""
    checkout = os.environ.get("GUIDED_DIFFUSION_PEER")
    return Path(checkout).resolve() if checkout else install()


def require_peer() -> SimpleNamespace:
    """`load_peer()` for tests: skips, with the reason, where the peer cannot be had."""
    import pytest

    try:
        return load_peer()
    except PeerUnavailable as reason:
        pytest.skip(f"peer unavailable: {reason}")


def install() -> Path:
    """Put the pinned source package under `.peer/`; safe when several processes start at once."""
    if INSTALLED.is_dir():
        return INSTALLED
    INSTALLED.parent.mkdir(exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="installing-", dir=INSTALLED.parent))
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--require-hashes", "--target", str(scratch), "--requirement", str(REQUIREMENTS),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise PeerUnavailable(f"pip could not install it: {last_line}")
        try:
            scratch.rename(INSTALLED)
        except OSError:
            if not INSTALLED.is_dir():  # otherwise another process was first, which is as good
                raise
    except subprocess.TimeoutExpired as error:
        raise PeerUnavailable("pip did not finish within 300 s") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return INSTALLED


def import_under_other_name(package: Path) -> dict[str, ModuleType]:
    """Import the package folder as `peer_guided_diffusion`: its imports are relative, so this is enough."""
    spec = importlib.util.spec_from_file_location(
        IMPORT_NAME, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    root = importlib.util.module_from_spec(spec)
    sys.modules[IMPORT_NAME] = root
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.cuda.amp decorators
        spec.loader.exec_module(root)
        return {name: importlib.import_module(f"{IMPORT_NAME}.{name}") for name in MODULES}


@contextmanager
def stand_ins() -> Iterator[None]:
    """Empty modules for what upstream imports but a benchmark's environment may lack, while it is imported."""
    names = [name for name in ("blobfile", "mpi4py") if importlib.util.find_spec(name) is None]
    for name in names:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].MPI = None
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


class NumPyWithInt(ModuleType):
    """NumPy as seen by the peer's `resample`: the same functions, plus the removed alias `int`."""

    int = int

    def __getattr__(self, name: str):
        return getattr(np, name)

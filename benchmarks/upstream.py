"""Upstream's own package, imported beside ours under the name `upstream_guided_diffusion`.

Two sources can serve as upstream:

* by default `guided-diffusion-sdk==1.0.0` from the package index. Eleven of its modules are upstream's
  files; `gaussian_diffusion`, `nn` and `unet` come from a well-known fork that adds samplers. `is_fork`
  is True for it, and the few deliberate deviations of the fork (see `FORK_ONLY_PARAMETERS` and the
  cases that ask `is_fork`) are left out of the comparison, each with a reason.
* with the environment variable GUIDED_DIFFUSION_PEER, the folder of a checkout of openai/guided-diffusion.
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
from functools import cache, partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

REQUIREMENTS = Path(__file__).with_name("upstream-requirements.txt")
INSTALLED = Path(__file__).resolve().parents[1] / ".peer" / "guided-diffusion-sdk-1.0.0"
IMPORT_NAME = "upstream_guided_diffusion"
MODULES = (
    "unet", "nn", "gaussian_diffusion", "respace", "losses", "resample", "fp16_util", "script_util",
    "image_datasets", "train_util", "dist_util", "logger",
)  # fmt: skip

# Trailing parameters that the fork added to upstream's sampling loops.
FORK_ONLY_PARAMETERS = {
    "skip_timesteps", "init_image", "randomize_class", "cond_fn_with_grad", "transformation_fn",
    "transformation_percent",
}  # fmt: skip


class UpstreamUnavailable(Exception):
    """Upstream cannot be used here; the message says why."""


@cache
def load_upstream() -> SimpleNamespace:
    """Upstream's modules as attributes (`upstream.unet`, ...), and `is_fork`, `source`.

    Installs the package into `.peer/` on first use. Raises UpstreamUnavailable.
    """
    package = import_location() / "guided_diffusion"
    if not (package / "__init__.py").is_file():
        raise UpstreamUnavailable(f"no guided_diffusion package in {package.parent}")
    try:
        modules = import_under_other_name(package)
    except ImportError as error:
        raise UpstreamUnavailable(f"upstream does not import: {error}") from error
    # `resample` asks for np.int, which NumPy removed in 1.24; NumPy itself is untouched.
    modules["resample"].np = numpy_with_int = ModuleType("numpy_with_int")
    numpy_with_int.int, numpy_with_int.__getattr__ = int, partial(getattr, np)
    is_fork = hasattr(modules["gaussian_diffusion"].GaussianDiffusion, "plms_sample")
    return SimpleNamespace(**modules, is_fork=is_fork, source=package.parent.name)


def import_location() -> Path:
    """The folder that holds upstream's `guided_diffusion`, installed there if need be."""
    checkout = os.environ.get("GUIDED_DIFFUSION_PEER")
    return Path(checkout).resolve() if checkout else install()


def require_upstream() -> SimpleNamespace:
    """`load_upstream()` for tests: skips, with the reason, where upstream is unavailable."""
    import pytest

    try:
        return load_upstream()
    except UpstreamUnavailable as reason:
        pytest.skip(f"upstream unavailable: {reason}")


def install() -> Path:
    """Put the pinned source package under `.peer/`; safe when several processes start at once."""
    if INSTALLED.is_dir():
        return INSTALLED
    INSTALLED.parent.mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--require-hashes", "--requirement", str(REQUIREMENTS), "--target",
    ]  # fmt: skip
    scratch = tempfile.mkdtemp(prefix="installing-", dir=INSTALLED.parent)
    try:
        subprocess.run([*command, scratch], capture_output=True, text=True, timeout=300, check=True)
        os.rename(scratch, INSTALLED)
    except subprocess.CalledProcessError as error:
        last_line = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise UpstreamUnavailable(f"pip could not install it: {last_line}") from error
    except subprocess.TimeoutExpired as error:
        raise UpstreamUnavailable("pip did not finish within 300 s") from error
    except OSError:
        if not INSTALLED.is_dir():  # otherwise another process was first, which is as good
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return INSTALLED


def import_under_other_name(package: Path) -> dict[str, ModuleType]:
    """Import the package folder as `upstream_guided_diffusion`: its imports are relative, so this is enough.

    What it imports but a benchmark's environment may lack is an empty module meanwhile.
    """
    missing = [name for name in ("blobfile", "mpi4py") if importlib.util.find_spec(name) is None]
    for name in missing:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].MPI = None
    spec = importlib.util.spec_from_file_location(
        IMPORT_NAME, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    root = importlib.util.module_from_spec(spec)
    sys.modules[IMPORT_NAME] = root
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.cuda.amp decorators
            spec.loader.exec_module(root)
            return {name: importlib.import_module(f"{IMPORT_NAME}.{name}") for name in MODULES}
    finally:
        for name in missing:
            del sys.modules[name]

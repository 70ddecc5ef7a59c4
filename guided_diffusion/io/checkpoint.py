"""Checkpoints: untrusted ones are read safely, weights loaded strictly, files written atomically."""

from __future__ import annotations

import http.client
import io
import logging
import os
import pickle
import re
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from guided_diffusion.errors import InputError, brief
from guided_diffusion.io import checkpoint_flags
from guided_diffusion.io.atomic import write_atomically, write_json
from guided_diffusion.io.reading import open_readable, parse_json, read_json, reason
from guided_diffusion.io.remote import beside, blobfile, file_errors, is_remote, join
from guided_diffusion.system import launch

_PATIENCE = 60.0  # seconds without an answer
CONFIG_NAME = "config.json"
_SAMPLERS = {checkpoint_flags.DIFFUSION_MODEL: "image_sample.py", checkpoint_flags.SUPER_RES: "super_res_sample.py"}
_NUMBERS = frozenset(
    (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    + (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
)
State = dict[str, Tensor]

_SHOWN = 3  # keys of each kind named in an error line
_NESTED = ("ema", "model_ema", "state_dict", "model")  # where other programs keep weights; the average comes first
_PREFIXES = ("module.", "_orig_mod.", "model.")  # of names, by DistributedDataParallel, torch.compile and the like

_OPTIMIZER = re.compile(r"opt(\d{6,})\.pt")


class OtherNetwork(InputError):
    """A checkpoint of another kind of network than expected."""


log = logging.getLogger(__name__)


def load_state_dict(path: str | os.PathLike, **kwargs: Any) -> Any:
    """Return what ``torch.save`` wrote (weights, optimizer state), or the tensors of a ``.safetensors`` file.

    Every rank reads for itself: this is no collective. ``path`` is local, or remote in a form that blobfile knows
    (gs://, az://), or http(s)://. ``kwargs`` such as ``map_location`` go to ``torch.load``. ``weights_only`` is always
    on: a file that carries code is refused without being run.

    Raises ``InputError`` naming the file when it is missing, truncated, of another format or refused.
    """
    path = os.fspath(path)
    kwargs["weights_only"] = True
    with _open_for_reading(path) as file:
        try:
            if path.endswith(".safetensors"):
                return _read_safetensors(file, kwargs.get("map_location"))
            with warnings.catch_warnings():  # torch warns about odd pickles just before it refuses them
                warnings.simplefilter("ignore")
                return torch.load(file, **kwargs)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {reason(error)}") from error
        except Exception as error:  # the decoders raise nearly everything on damaged input
            raise InputError(f"{path}: {_why_unreadable(error, file)}") from error


def read_state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """Return the weights in a ``.pt`` or ``.safetensors`` file: names to tensors (``nn.Parameter`` values are fine).

    Weights under "ema", "model" or "state_dict", and names that all begin with "module.", are unwrapped with a warning.

    Raises ``InputError`` as ``load_state_dict`` does, and when the file holds anything but named tensors.
    """
    state, how = _unwrap(load_state_dict(path, map_location="cpu"), path)
    if how and launch.detect().rank == 0:
        log.warning("warning: %s: %s", path, how)
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{path}: expected a state dict (names to tensors), found a {type(value).__name__} under {key!r}"
            )
        if found := oddity(value):
            raise InputError(f"{path}: {key}: expected a plain tensor of real numbers, found {found}")
    return dict(state)


def read_shapes(path: str | os.PathLike) -> dict[str, torch.Size]:
    """Return the shapes of a checkpoint's weights by name, without their values; InputError as ``load_state_dict``."""
    state, _ = _unwrap(load_state_dict(path, map_location="meta"), path)
    return {key: value.shape for key, value in state.items() if isinstance(value, Tensor) and not value.is_nested}


def _unwrap(state: Any, path: str | os.PathLike) -> tuple[Mapping, str]:
    """Return the mapping with the weights, without prefixes, and what was done for that; "" for a plain state dict."""
    if not isinstance(state, Mapping):
        raise InputError(f"{path}: expected a state dict (names to tensors), found a {type(state).__name__}")
    if "param_groups" in state and "state" in state:
        match = _OPTIMIZER.fullmatch(Path(path).name)
        instead = f", such as model{match[1]}.pt beside it" if match else ""
        raise InputError(f"{path}: found an optimizer's state, expected the weights of a network{instead}")
    done = []
    for key in _NESTED:
        inner = state.get(key)
        if isinstance(inner, Mapping) and inner and all(isinstance(value, Tensor) for value in inner.values()):
            done.append(f"found {', '.join(map(str, state))}; taking the weights under {key!r}")
            state = inner
            break
    while state and (prefix := next((p for p in _PREFIXES if all(str(key).startswith(p) for key in state)), "")):
        done.append(f"leaving out {prefix!r} before every name")
        state = {str(key).removeprefix(prefix): value for key, value in state.items()}
    return state, "; ".join(done)


def load_weights(
    model: nn.Module, path: str | os.PathLike, adapt: Callable[[State, State], State] | None = None
) -> None:
    """Copy a checkpoint's weights into ``model``; InputError as ``read_weights``, with the model unchanged.

    A model on the "meta" device, which has no memory of its own, takes that of the weights.
    """
    found, expected = read_weights(model, path, adapt), model.state_dict()
    found = {key: values.to(expected[key].dtype).contiguous() for key, values in found.items()}
    model.load_state_dict(found, assign=any(values.is_meta for values in expected.values()))


def read_weights(
    model: nn.Module, path: str | os.PathLike, adapt: Callable[[State, State], State] | None = None
) -> State:
    """Return a checkpoint's weights for ``model``; names and shapes must match exactly, and all must be finite.

    adapt: (weights in the file, weights of the model) -> weights to use in place of those in the file.

    Raises ``InputError`` in one line with the first few missing, unexpected and misshapen keys (found and
    expected shape), how many there are and the flags with which they would fit, or the first tensor of integers or
    with inf or nan.
    """
    found, expected = read_state_dict(path), model.state_dict()
    if adapt is not None:
        found = adapt(found, expected)
    problems = _list_keys("missing", [key for key in expected if key not in found])
    problems += _list_keys("unexpected", [key for key in found if key not in expected])
    problems += _list_keys(
        "of the wrong shape",
        [
            f"{key} (found {_shape(found[key])}, expected {_shape(expected[key])})"
            for key in expected
            if key in found and found[key].shape != expected[key].shape
        ],
    )
    if problems:
        shapes = [{key: values.shape for key, values in state.items()} for state in (found, expected)]
        kinds = [checkpoint_flags.kind(of) for of in shapes]
        if None not in kinds and kinds[0] != kinds[1]:
            raise OtherNetwork(f"{path}: found a {kinds[0]}, expected a {kinds[1]}")
        raise InputError(
            f"{path}: does not fit the model built from the flags ({len(found)} keys in the file, "
            f"{len(expected)} in the model): {'; '.join(problems)}{checkpoint_flags.advice(*shapes)}"
        )
    for key, values in found.items():
        if expected[key].is_floating_point() and not values.is_floating_point():
            raise InputError(f"{path}: {key}: found {values.dtype}, expected floating-point numbers")
    check_weights(found, path)
    return found


def save(obj: Any, path: str | os.PathLike) -> None:
    """Write ``obj`` to ``path`` atomically: ``torch.save``, or safetensors when the name ends in that."""
    if os.fspath(path).endswith(".safetensors"):
        import safetensors.torch

        # Clones, because safetensors refuses tensors that share memory; contiguous, because it must be.
        tensors = {key: value.detach().cpu().clone().contiguous() for key, value in obj.items()}
        data = safetensors.torch.save(tensors)
        with write_atomically(path) as file:
            file.write(data)
    else:
        with write_atomically(path) as file:
            try:
                torch.save(obj, file)
            except RuntimeError as error:  # torch reports a full disk as "unexpected pos"
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise


def write_config(directory: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Write ``config`` as ``config.json`` into ``directory``; values JSON does not know become strings."""
    write_json(join(directory, CONFIG_NAME), dict(config), default=str)


def read_config(checkpoint_path: str | os.PathLike) -> dict[str, Any] | None:
    """Return the ``config.json`` beside a checkpoint, or None where there is none.

    Raises ``InputError`` if it is there but cannot be read or is not a JSON object.
    """
    path = beside(checkpoint_path, CONFIG_NAME)
    if is_remote(path):
        found = not _is_web(path) and blobfile().exists(path)
        return parse_json(_open_for_reading(path).read(), path) if found else None
    with suppress(FileNotFoundError, NotADirectoryError):
        return read_json(path)
    return None


def read_network_config(name: str, path: str | os.PathLike, *expected: str) -> dict[str, Any] | None:
    """Return the ``config.json`` beside the checkpoint of a network, or None where there is none.

    :param name: of the checkpoint in an error, perhaps with its flag.
    :param expected: kinds of networks, see ``checkpoint_flags``.
    :raises InputError: there is no such checkpoint. OtherNetwork: ``config.json`` is of another kind.
    """
    path = os.fspath(path)
    with _open_remote(path, name) if is_remote(path) else open_readable(name, path):
        pass  # it is there: said before flags are said not to fit
    saved = read_config(path)
    found = checkpoint_flags.kind_by_config(saved or {})
    if found not in (None, *expected):
        samples = f"; scripts/{_SAMPLERS[found]} samples from it" if {found, *expected} == {*_SAMPLERS} else ""
        raise OtherNetwork(f"{name}: found a {found}, expected a {expected[0]}{samples}")
    if saved is not None and not saved.get("class_cond", True):
        saved = {name: value for name, value in saved.items() if name != "num_classes"}  # it has no classes
    return saved


def _is_web(path: str) -> bool:
    """Return whether a path is an http(s) address other than Azure storage, which blobfile opens."""
    return path.startswith(("http://", "https://")) and ".blob.core.windows.net" not in path


def _open_for_reading(path: str) -> BinaryIO:
    """Open a seekable binary file; ``InputError`` naming the path if that fails."""
    if not path:
        raise InputError("no checkpoint path given: expected a file name, found an empty string")
    if is_remote(path):
        with _open_remote(path) as remote:
            return io.BytesIO(remote.read())
    return open_readable(path, path)


@contextmanager
def _open_remote(path: str, name: str = "") -> Iterator[BinaryIO]:
    try:
        web = _is_web(path)
        with urllib.request.urlopen(path, timeout=_PATIENCE) if web else blobfile().BlobFile(path, "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(f"{name or path}: no such file") from error
    except (*file_errors(), http.client.HTTPException, ValueError) as error:
        raise InputError(f"{name or path}: cannot be fetched: {brief(error)}") from error


def _read_safetensors(file: BinaryIO, map_location: Any) -> dict[str, Tensor]:
    import safetensors.torch

    tensors = safetensors.torch.load(file.read())  # in no particular order
    return {key: value if map_location is None else value.to(map_location) for key, value in sorted(tensors.items())}


def _why_unreadable(error: Exception, file: BinaryIO) -> str:
    """Return a clause that says what is wrong with a file that cannot be decoded."""
    text = str(error)
    if code := re.search(r"GLOBAL (\S+)", text):
        return f"refused: it wants to run or build {code[1].rstrip('.')}; expected nothing but tensors"
    if "map_location" in text:
        return brief(error)
    size = file.seek(0, os.SEEK_END)
    kind = "not a checkpoint, or truncated"
    if isinstance(error, pickle.UnpicklingError):  # torch's own text suggests weights_only=False
        return f"{kind} (expected a .pt or .safetensors file, found {size} bytes of something else)"
    return f"{kind} ({size} bytes; {brief(error)})"


def oddity(value: Tensor) -> str | None:
    """Return what is unusual in a tensor; None for a plain one of real numbers, each with memory of its own."""
    if value.is_meta:
        return "no data"
    if value.is_nested or value.layout is not torch.strided or value.dtype not in _NUMBERS:
        return f"{value.dtype}, {'nested' if value.is_nested else value.layout}"
    held, claimed = value.untyped_storage().nbytes(), value.numel() * value.element_size()
    return f"{claimed} bytes in {held}" if claimed > held else None


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _list_keys(what: str, keys: list[str]) -> list[str]:
    """Return zero or one clauses for an error line."""
    if not keys:
        return []
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return [f"{len(keys)} {what}: {', '.join(keys[:_SHOWN])}{more}"]


def check_weights(state: dict[str, Tensor], path: object) -> None:
    """Raise an InputError that names the first tensor with inf or nan."""
    for name, values in state.items():
        if values.is_floating_point() and values.numel() and not bool(values.abs().amax().isfinite()):
            bad = int((~values.isfinite()).sum())
            raise InputError(f"{path}: {name}: found inf or nan in {bad} of {values.numel()} values, expected none")

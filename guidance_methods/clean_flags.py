"""The scorer of clean images that --clean_classifier and its other flags ask for: the user's own network."""

from __future__ import annotations

import hashlib
import math
import pkgutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guided_diffusion.distributed import collectives
from guided_diffusion.errors import InputError, first_line

from .clean import CleanClassifier, Decoded
from .config import LABELS, LOGITS, PROBABILITY, SCORE, CleanConfig, parse_clean_input


def imported(flag: str, name: str) -> Any:
    """Return what the function "package.module:function" returns. InputError where it cannot be had."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        if name.count(":") != 1:
            raise ValueError("no function's name")
        return pkgutil.resolve_name(name)()
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        found = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"--{flag} {name}: expected package.module:function without arguments; {found}") from error


def clean_network(clean: CleanConfig) -> nn.Module:
    """Return the scorer, frozen, on the CPU, the same on all ranks; InputError where the flags do not make one."""
    network = imported("clean_classifier", clean.clean_classifier)
    if not isinstance(network, nn.Module):
        raise InputError(
            f"--clean_classifier {clean.clean_classifier}: found {type(network).__name__}, expected a Module"
        )
    try:
        softplus = clean.clean_softplus or None
        scorer = CleanClassifier(network, softplus=softplus, **parse_clean_input(clean.clean_input))
    except ValueError as error:
        raise InputError(f"--clean_input, --clean_softplus: {error}") from None
    if clean.decoder:
        decode = imported("decoder", clean.decoder)
        if not callable(decode):
            raise InputError(f"--decoder {clean.decoder}: found {type(decode).__name__}, expected a function")
        scorer = Decoded(scorer, decode)
    own = digest(scorer)
    if collectives.broadcast_object(own) != own:
        raise InputError(
            f"--clean_classifier {clean.clean_classifier}: found weights that differ from those in another process, "
            "expected a function that loads them, or seeds their random numbers"
        )
    return scorer.eval().requires_grad_(False)


def count_outputs(network: nn.Module, clean: CleanConfig, shape: tuple[int, int, int]) -> int:
    """Return how many numbers the scorer returns for an image. InputError where that is not what the flags say."""
    source = f"--clean_classifier {clean.clean_classifier}" + f", --decoder {clean.decoder}" * bool(clean.decoder)
    images = torch.linspace(-1, 1, 2 * math.prod(shape)).reshape(2, *shape)
    try:
        with torch.enable_grad():
            single, output = (_output(network, images[:count].clone().requires_grad_()) for count in (1, 2))
        found, of_one = tuple(output.shape), tuple(single.shape)
    except Exception as error:
        found = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"{source}: fails for images of shape {shape}; {found}; --clean_input says what it wants"
        ) from error
    expected, fits = {
        LOGITS: ("(2, K) with K > 1", len(found) == 2 and found[1] > 1),
        LABELS: ("(2, L)", len(found) == 2),
    }.get(clean.clean_output, ("(2,)", found in ((2,), (2, 1))))
    if not fits or found[0] != 2:
        raise InputError(
            f"--clean_output {clean.clean_output}: found an output of shape {found} for two images, expected {expected}"
        )
    if single.numel() != 1 if clean.clean_output in (SCORE, PROBABILITY) else of_one != (1, found[1]):
        raise InputError(f"{source}: found an output of shape {of_one} for one image, expected {(1, *found[1:])}")
    if not output.requires_grad:
        raise InputError(
            f"{source}: found an output without a gradient, expected one that can be differentiated: no torch.no_grad, "
            "detach or argmax"
        )
    wrong = [value for value in output.detach().flatten().tolist() if not 0 <= value <= 1]
    if clean.clean_output == PROBABILITY and wrong:
        raise InputError(
            f"--clean_output probability: {source} returned {wrong[0]:.4g}, expected 0 to 1; log-ratios are "
            "--clean_output score"
        )
    return found[-1] if len(found) == 2 else 1


def _output(network: nn.Module, images: Tensor) -> Tensor:
    output = network(images, torch.zeros(len(images), dtype=torch.long))
    return getattr(output, "logits", output)


def digest(network: nn.Module) -> str:
    """Return the SHA-256 of a network's weights: names, types, shapes and values."""
    found = hashlib.sha256()
    for name, values in network.state_dict().items():
        if not isinstance(values, Tensor):  # what a module's get_extra_state returns
            continue
        found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        found.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()

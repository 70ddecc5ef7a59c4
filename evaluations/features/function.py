"""Features from any network: a Python function, named as ``package.module:function``."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from evaluations.features.base import Activations, BatchExtractor, run_batches
from guided_diffusion.errors import InputError, first_line

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def names_function(text: str) -> bool:
    """Return whether a flag's value is ``package.module:function`` rather than the path of a file that is there."""
    return bool(_NAME.fullmatch(text)) and not os.path.exists(text)


class FunctionExtractor(BatchExtractor):
    """Features from ``package.module:function``, imported from the working directory or wherever Python looks.

    The function gets images as a torch tensor, uint8 [B, 3, H, W], 0..255, on the CPU; grey ones are repeated. It
    returns features [B, D], or a pair of features and logits [B, K], as tensors or arrays of real numbers. The function
    moves them to a device, scales and normalises them itself. Without logits there is no inception score and no
    accuracy; there are no spatial features, so never an sFID.

    Raises ``InputError`` if it cannot be imported.
    """

    uses_stored_statistics = False
    resize = "by the function, if at all"

    def __init__(self, name: str, batch_size: int = 64):
        super().__init__(batch_size)
        self.name = f"function {name}"
        self._flag = f"--features {name}"
        self._function = self._import(name)

    def compute_activations(self, batches: Iterable[np.ndarray]) -> Activations:
        """Run uint8 images [B, H, W, 1 or 3] through the function."""
        pool, *logits = run_batches(self, batches, "features")
        nothing = np.empty((len(pool), 0), dtype=np.float32)
        return Activations(pool, nothing, logits[0] if logits else nothing)

    @torch.inference_mode()
    def run_batch(self, images_BHWC: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return features and, if the function gives logits, probabilities of one batch."""
        images = torch.from_numpy(np.array(images_BHWC)).permute(0, 3, 1, 2)
        images = images.expand(-1, 3, -1, -1).contiguous()
        try:
            found = self._function(images)
        except InputError:
            raise
        except Exception as error:
            shape = list(images.shape)
            raise InputError(f"{self._flag}: {type(error).__name__} on images {shape}: {first_line(error)}") from error
        outputs = found if isinstance(found, (tuple, list)) else (found,)
        if len(outputs) not in (1, 2):
            raise InputError(f"{self._flag}: returned {len(outputs)} values, expected features, or features and logits")
        features, *logits = (self._rows(output, len(images)) for output in outputs)
        return features, *(torch.from_numpy(rows).softmax(dim=-1).numpy() for rows in logits)

    def _rows(self, output: Any, count: int) -> np.ndarray:
        """Return an output as float32 [B, D]."""
        rows = output.detach().float().cpu().numpy() if isinstance(output, torch.Tensor) else output
        try:
            rows = np.ascontiguousarray(rows, dtype=np.float32)
        except (TypeError, ValueError):
            raise InputError(f"{self._flag}: returned a {type(output).__name__}, expected a tensor [B, D]") from None
        if rows.ndim != 2 or len(rows) != count or not rows.shape[1]:
            raise InputError(f"{self._flag}: returned the shape {list(rows.shape)}, expected [{count}, D]")
        return rows

    def _import(self, name: str) -> Any:
        module, _, attribute = name.partition(":")
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # last, so that a file there does not hide a library
        try:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except Exception as error:  # a module may fail in any way
            raise InputError(f"{self._flag}: {type(error).__name__}: {first_line(error)}") from error
        if not callable(found):
            raise InputError(f"{self._flag}: found a {type(found).__name__}, expected a function")
        return found

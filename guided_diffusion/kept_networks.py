"""Networks that stay in memory from one run of a process to the next, and with them what was compiled for them."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import nn

from . import checkpoint, dist_util
from .frozen import Frozen


class KeptNetworks:
    """Loads networks for evaluation; one of a kind that was here before only takes the new weights.

    Compiling takes a minute or more, and its result belongs to a network in memory, whatever its weights are.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, Frozen] = {}

    def load(
        self,
        kind: Hashable,
        build: Callable[[], nn.Module],
        path: str,
        dtype: torch.dtype | None,
        compile: bool = False,
    ) -> Frozen:
        """A network with a checkpoint's weights on this rank's device, see `Frozen`.

        What was returned for the same kind, dtype and `compile` before is the same object, with other weights now.

        :param kind: all that `build` depends on. InputError for a checkpoint that does not fit.
        """
        key = (kind, dtype, compile)
        frozen = self._kept.pop(key, None)  # one whose weights cannot be loaded does not come back
        if frozen is None:
            with torch.device("meta"):  # memory is that of the file's weights, should they fit
                network = build()
            checkpoint.load_weights(network, path)
            frozen = Frozen(network.to(dist_util.dev()), dtype, compile)
        else:
            checkpoint.load_weights(frozen.network.network, path)
        self._kept[key] = frozen
        return frozen

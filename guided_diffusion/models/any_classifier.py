"""Networks of other libraries as classifier(x_t, t) -> logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from guided_diffusion.runs import logger


class AnyClassifier:
    """Any network as classifier(x_t [B, ...], t [B]) -> logits [B, K].

    x_t is the sampler's: images in [-1, 1], scaled and with the process's noise at t. A network that was trained on
    another range (0 to 1, or ImageNet's means and deviations) must be wrapped in that conversion, which is not checked.

    The network may return its logits as such, or as `logits` in a mapping or an object, as Hugging Face's do. One that
    takes nothing but images is called without t. The first call warns of what would spoil guidance unnoticed: no
    timestep, probabilities in place of logits, a network in training mode whose batch norms or dropout act.
    """

    def __init__(self, network: Callable[..., Any]):
        self.network = network
        self._takes_t = _takes_two(network)
        self._warned = False

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return logits [B, K]. TypeError unless they are that, with gradients that reach x."""
        if not self._warned:
            self._warn_of_network()
        output = self.network(x, t) if self._takes_t else self.network(x)
        logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
            found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(output).__name__
            raise TypeError(f"classifier: found an output of {found}, expected logits [{len(x)}, classes]")
        if x.requires_grad and not logits.requires_grad:
            raise TypeError("classifier: its logits carry no gradient; is it run under torch.no_grad, or detached?")
        if not self._warned:
            self._warned = True
            if not logits.is_meta and _looks_like_probabilities(logits):
                logger.warning(
                    "classifier: every row of its output is in 0..1 and sums to 1, as probabilities do; taken for the "
                    "logits that are expected, guidance is far too weak: return what goes into the softmax"
                )
        return logits

    def _warn_of_network(self) -> None:
        if not self._takes_t:
            logger.warning("classifier: takes no timestep, so it classifies noised images as if they were clean")
        if isinstance(self.network, nn.Module) and any(map(_acts_in_training, self.network.modules())):
            logger.warning(
                "classifier: in training mode, so its batch norms move and its dropout draws with every call of "
                "guidance; call classifier.eval() first"
            )


def _looks_like_probabilities(logits: Tensor) -> bool:
    """Whether every row is in 0..1 and sums to 1 up to rounding."""
    rows = logits.detach().float()
    return bool((rows >= 0).all() & ((rows.sum(dim=1) - 1).abs() < 0.01).all())


def _acts_in_training(module: nn.Module) -> bool:
    """Whether a module is in training mode and does something else there than in evaluation mode."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.training and module.p > 0
    return module.training and isinstance(module, nn.modules.batchnorm._BatchNorm)


def _takes_two(network: Callable[..., Any]) -> bool:
    try:
        inspect.signature(network.forward if isinstance(network, nn.Module) else network).bind("x", "t")
    except ValueError:  # it has no signature, as some builtins
        return True
    except TypeError:
        return False
    return True

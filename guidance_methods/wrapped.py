"""A guidance around another one: what samplers and callbacks ask of it is passed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ed_dpm_patches.scale_stats import ScaleReport
from guided_diffusion.diffusion.process import wanted


class Wrapped:
    """The base of guidances that change what another one returns; `__call__` is theirs.

    :param guidance: guidance(x_t [B, ...], t [B], **kwargs) -> [B, ...]: a `ClassifierGuidance`, a `Wrapped`, any
        function.

    wants_x0: whether it is called with x_0=..., the model's predicted x_0, shaped like x_t; wants_variance: with
    variance=..., of p(x_{t-1} | x_t). logits: of the last call, None if there are none. scale: the factor [B] in its
    last result, None if it was not evaluated; there is no such attribute where the guidance has none. peaks: what the
    nonfinite detector looks at, {} if there is nothing. report: what the scale did (`ScaleReport`).
    """

    def __init__(self, guidance: Callable[..., Tensor]):
        self.guidance = guidance

    @property
    def wants_x0(self) -> bool:
        return getattr(self.guidance, "wants_x0", False)

    @property
    def wants_variance(self) -> bool:
        return getattr(self.guidance, "wants_variance", False)

    @property
    def logits(self) -> Tensor | None:
        return getattr(self.guidance, "logits", None)

    @property
    def scale(self) -> Tensor | None:
        return self.guidance.scale

    @property
    def peaks(self) -> Mapping[str, Tensor]:
        return getattr(self.guidance, "peaks", {})

    @property
    def report(self) -> ScaleReport:
        return self.guidance.report

    def reset(self) -> None:
        """Forget the batch: the next call is the first of another one."""
        reset(self.guidance)


def ask(guidance: Callable[..., Tensor], x: Tensor, t: Tensor, kwargs: dict[str, object]) -> Tensor:
    """Call a guidance with those of x_0 and variance alone that it wants, and with all other arguments."""
    return guidance(x, t, **wanted(guidance, kwargs))


def reset(guidance: Callable[..., Tensor]) -> None:
    """Let a guidance forget the batch, where it remembers anything."""
    if hasattr(guidance, "reset"):
        guidance.reset()

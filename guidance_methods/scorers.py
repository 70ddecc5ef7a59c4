"""Guidance by scorers that are no classifiers: anything differentiable that says how good an image is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ed_dpm_patches.guidance import one_per_sample
from guided_diffusion.diffusion.nonfinite import peak
from guided_diffusion.diffusion.process import per_sample


class ScoreGuidance:
    """scale times the gradient of a log-score for its image, as a cond_fn(x_t, t, **kwargs).

    :param scorer: scorer(x [B, ...], t [B], **kwargs) -> log-scores [B], differentiable in x: a similarity, minus a
        regressor's squared error, a discriminator (`discriminator_score`), labels of which several can hold
        (`multi_label_score`). TypeError at the call if it returns anything else.
    :param scale: a number, or a function of t [B] -> [B].
    :param takes: names of the sampler's arguments that the scorer wants, such as ("y",); others are left out.
    :param interval: (lowest, highest) t, ends included, at which there is guidance; outside it the scorer is not called
        (to know that, the host waits for t). None: everywhere. ValueError for ends the wrong way round.

    Plain float32 autograd: a score in half precision may vanish where `ClassifierGuidance` would keep it.
    """

    def __init__(
        self,
        scorer: Callable[..., Tensor],
        scale: float | Callable[[Tensor], Tensor] = 1.0,
        takes: tuple[str, ...] = (),
        interval: tuple[float, float] | None = None,
    ):
        if interval is not None and not interval[0] <= interval[1]:
            raise ValueError(f"interval: found {tuple(interval)}, expected (lowest, highest)")
        self.scorer, self.gamma, self.takes, self.interval = scorer, scale, takes, interval
        self.scale: Tensor | None = None  # [B], float64, of the last call; None where the scorer was not called
        self.peaks: dict[str, Tensor] = {}  # the largest magnitudes [B], for the nonfinite detector

    def __call__(self, x: Tensor, t: Any, **kwargs: object) -> Tensor:
        """Return the guidance, shaped and typed like x."""
        t_B, wanted = one_per_sample(t, x), {name: kwargs[name] for name in self.takes if name in kwargs}
        lowest, highest = self.interval or (-math.inf, math.inf)
        active_B = (t_B >= lowest) & (t_B <= highest)
        if self.interval is not None and not bool(active_B.any()):
            self.scale, self.peaks = None, {}
            return torch.zeros_like(x)
        with torch.inference_mode(False), torch.enable_grad():
            x_in = (x.clone() if x.is_inference() else x.detach()).requires_grad_(True)
            score_B = self.scorer(x_in, t_B, **wanted)
            if not isinstance(score_B, Tensor) or score_B.shape != (len(x),) or not score_B.requires_grad:
                shape = tuple(score_B.shape) if isinstance(score_B, Tensor) else type(score_B).__name__
                raise TypeError(f"scorer: found {shape}, expected differentiable log-scores of shape ({len(x)},)")
            (gradient,) = torch.autograd.grad(score_B.sum(), x_in)
        self.peaks = {"scorer's score": peak(score_B.detach()[:, None]), "guidance gradient": peak(gradient)}
        scale = self.gamma(t_B) if callable(self.gamma) else self.gamma
        scale_B = torch.as_tensor(scale, dtype=torch.float64, device=x.device).expand(len(x))
        self.scale = torch.where(active_B, scale_B, 0.0)
        return (gradient * per_sample(self.scale, x).to(gradient.dtype)).to(x.dtype)


def discriminator_score(network: Callable[..., Tensor], logit: bool = False) -> Callable[..., Tensor]:
    """Return the scorer log d / (1 - d) [B] of a discriminator d(x, t) in (0, 1), [B] or [B, 1].

    The log-ratio of the densities of real and of generated images (Kim et al. 2023, discriminator guidance).

    :param logit: the network returns log d / (1 - d) itself: exact where d rounds to 0 or 1.
    """

    def score(x: Tensor, t: Tensor) -> Tensor:
        output_B = network(x, t).flatten()
        return output_B if logit else output_B.log() - torch.log1p(-output_B)

    return score


def multi_label_score(network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the scorer sum_l log p(y_l) [B] of independent labels, for logits network(x, t) [B, L].

    Called with y [B, L]: 1 the label holds, 0 it does not, anything else, such as -1, it has no say. p(y_l) is
    sigmoid(z_l) or sigmoid(-z_l) (derived here). ValueError for a y of another shape. Use takes=("y",).
    """

    def score(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        logits_BL = network(x, t)
        if y.shape != logits_BL.shape:
            raise ValueError(f"y: found shape {tuple(y.shape)}, expected {tuple(logits_BL.shape)}, a label a column")
        signs_BL = torch.where(y == 1, 1.0, -1.0).to(logits_BL.dtype)
        return torch.where((y == 0) | (y == 1), F.logsigmoid(signs_BL * logits_BL), 0.0).sum(dim=1)

    return score

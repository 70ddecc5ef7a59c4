"""Work of a run: FLOPs an image, counted.

    flops(spec, spec.runs["ddim25"])

The sampler, guidance, pair and feature cache that the run's flags ask for go through all steps, with stand-ins for the
networks, which count calls and backward passes by what they cost the real networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ed_dpm_patches.config import GuidanceConfig, parse_interval
from ed_dpm_patches.scale_stats import ScaleReport
from experiments.spec import Run, Spec
from guidance_methods.config import (
    SAMPLING_CONFIGS,
    SECOND_MODELS,
    CleanConfig,
    MethodsConfig,
    PairConfig,
    guidance_rule,
)
from guidance_methods.pairs import Pair, without_labels
from guidance_methods.terms import Term
from guidance_methods.wrapped import reset
from guided_diffusion.config.class_labels import Classes
from guided_diffusion.config.configs import CacheConfig, ClassifierConfig, DiffusionConfig, ModelConfig, SamplingConfig
from guided_diffusion.config.create import build_classifier, build_diffusion, build_model
from guided_diffusion.config.flags import ParsedFlags, flags_from, from_values
from guided_diffusion.diffusion.process import DiffusionProcess
from guided_diffusion.diffusion.solvers import sampling_loop
from guided_diffusion.sampling import setup

Make = Callable[[Callable[[], nn.Module], str], nn.Module]


def count_flops(work: Callable[[], object]) -> int:
    """Multiplications and additions of a call, backward included.

    Those of fused attention on a CPU, which PyTorch's counter does not know, are left out; see `unfused`.
    """
    counter = FlopCounterMode(display=False)
    # Counts per module need hooks that autograd.grad does not allow: everything belongs to one module.
    counter.mod_tracker = nullcontext()
    counter.mod_tracker.parents = {"Global"}
    with counter:
        work()
    return counter.get_total_flops()


def unfused() -> Any:
    """A block in which attention is two matrix products, which are counted."""
    return sdpa_kernel(SDPBackend.MATH)


class Metered(nn.Module):
    """A network that is counted, not computed: it returns zeros, and its backward pass returns zeros.

    :param network: evaluated once, on the CPU, for every kind of call.

    flops: of all calls and backward passes so far.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.flops = 0
        self._costs: dict[tuple, tuple[list[torch.Size], int, int]] = {}

    def forward(self, x: Tensor, t: Tensor, **kwargs: Any) -> Any:
        """Return zeros like the network's output, or outputs, from x_t [B, ...] at t [B]."""
        kind = (len(x), *((name, None if isinstance(value, Tensor) else value) for name, value in kwargs.items()))
        if kind not in self._costs:
            self._costs[kind] = self._measure(x, t, kwargs)
        zeros = _Zeros.apply(x, self, *self._costs[kind])
        return zeros if len(zeros) > 1 else zeros[0]

    def _measure(self, x: Tensor, t: Tensor, kwargs: Mapping[str, Any]) -> tuple[list[torch.Size], int, int]:
        """Shapes of the outputs, FLOPs of a call, FLOPs of the first output's gradient in x_t."""
        outputs = []
        with unfused(), torch.enable_grad():
            x = torch.zeros_like(x, requires_grad=True)
            forward = count_flops(lambda: outputs.append(self.network(x, t, **kwargs)))
            found = outputs[0] if isinstance(outputs[0], tuple) else (outputs[0],)
            backward = count_flops(lambda: torch.autograd.grad(found[0].sum(), x))
        return [output.shape for output in found], forward, backward


class _Zeros(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, meter: Metered, shapes: list[torch.Size], forward: int, backward: int):
        meter.flops += forward
        ctx.meter, ctx.backward_flops, ctx.shape = meter, backward, x.shape
        return tuple(x.new_zeros(shape) for shape in shapes)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        ctx.meter.flops += ctx.backward_flops
        return gradients[0].new_zeros(ctx.shape), None, None, None, None


def flops(spec: Spec, run: Run) -> int:
    """FLOPs of an image of a run, those of the networks; InputError for flags that no sampling script has.

    The networks are those of the flags, with no checkpoint read. Not counted: the arithmetic of the sampler itself.
    """
    meters: list[Metered] = []

    def metered(build: Callable[[], nn.Module], name: str) -> Metered:
        meters.append(Metered(build()))
        return meters[-1]

    height, width, channels = spec.image_shape(run)
    sampling_of(spec, run, metered)(torch.randn(1, channels, height, width), torch.zeros(1, dtype=torch.long))
    return sum(meter.flops for meter in meters)


def sampling_of(spec: Spec, run: Run, make: Make) -> Callable[[Tensor, Tensor], Tensor]:
    """A run's sampler, guidance, pair and feature cache as one function: (x_T [B, C, H, W], y [B]) -> x_0.

    :param make: (how to build a network, its name in the spec) -> the network to evaluate.
    :raises InputError: flags that no sampling script has.
    """
    own = spec.network_flags(run) | run.flags
    own["timestep_respacing"] = str(own["timestep_respacing"])  # a sweep has numbers
    parsed = flags_from(own, *SAMPLING_CONFIGS)
    sampling = parsed.make(SamplingConfig)
    diffusion = build_diffusion(parsed.make(DiffusionConfig))
    model = _diffusion_model(own, run.model, parsed, diffusion, make)
    for flag, name in run.others.items():
        if flag in SECOND_MODELS:
            pair = parsed.make(PairConfig)
            weak = _diffusion_model(spec.networks[name].flags, name, parsed, diffusion, make)
            interval = parse_interval(pair.pair_interval) if pair.pair_interval else None
            model = Pair(model, weak, getattr(pair, SECOND_MODELS[flag]), interval)
    guidance = None
    if run.classifier and parsed.make(GuidanceConfig).classifier_scale > 0:
        term = _term(parsed)
        classifier = make(partial(build_classifier, term.classifier), run.classifier)
        guidance = term.around(classifier, diffusion, model, sampling.clip_denoised, ScaleReport())

    def sample(noise: Tensor, y: Tensor) -> Tensor:
        reset(guidance)
        reset(model)
        return sampling_loop(diffusion, sampling.sampler, sampling.use_ddim)(
            model, noise.shape, noise=noise, device=noise.device, **sampling.refining, cond_fn=guidance,
            model_kwargs={"y": y},
        )  # fmt: skip

    return sample


def _diffusion_model(
    own: Mapping[str, Any], name: str, parsed: ParsedFlags, diffusion: DiffusionProcess, make: Make
) -> Callable[..., Tensor]:
    """A model by its flags, in the feature cache that the run's flags ask for."""
    config = from_values(ModelConfig, own)
    model = make(partial(build_model, config, from_values(DiffusionConfig, own)), name)
    model = setup.with_cache(model, parsed.make(CacheConfig), diffusion.num_timesteps)
    return model if config.class_cond else without_labels(model)


def _term(parsed: ParsedFlags) -> Term:
    """The classifier's guidance by its flags."""
    guide, methods, classifier = (parsed.make(c) for c in (GuidanceConfig, MethodsConfig, ClassifierConfig))
    rule = guidance_rule(parsed, guide, methods, parsed.make(DiffusionConfig).diffusion_steps, classifier.num_classes)
    classes = Classes(classifier.num_classes)
    return Term(parsed, guide, methods, parsed.make(CleanConfig), classifier, None, classes, rule)

"""Mixed precision by autocast: float32 weights, half-precision arithmetic in the networks' blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from guided_diffusion.errors import InputError
from guided_diffusion.models import fp16
from guided_diffusion.runs import logger

AMP_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": None}

# What a CPU has that computes in a dtype, in the terms of `torch.cpu.get_capabilities`; others emulate it.
_UNITS = {"fp16": ("avx512_fp16", "amx_fp16"), "bf16": ("avx512_bf16", "amx_bf16")}

# A diffusion model's input is of order 1. One that left this range is lost, but clamping it keeps float16
# convolutions finite, so that the loss stays confined to its own sample.
_LARGEST_HALF_INPUT = 1e3


def fastest_amp(device: torch.device) -> str:
    """The name in `AMP_DTYPES` of a device's fastest arithmetic: fp16; on a CPU bf16, or fp32 without units for it."""
    if device.type != "cpu":
        return "fp16"
    return "bf16" if _computes_in("bf16") else "fp32"


def amp_dtype(enabled: bool, name: str, what: str, device: torch.device) -> torch.dtype | None:
    """The dtype that --use_fp16 (or --classifier_use_fp16) and --amp_dtype ask for; None: float32.

    Where it is on, a line says what is computed in it on a CPU, and a warning that this takes longer than float32.
    """
    if not enabled:
        return None
    if device.type == "cpu":
        if name in _UNITS and _capabilities() and not _computes_in(name):
            logger.warning(
                f"--amp_dtype {name}: {what}: this CPU has none of {', '.join(_UNITS[name])} and takes about 10 times "
                "as long as for float32; --amp_dtype auto takes the fastest"
            )
        else:
            logger.log(f"--amp_dtype {name}: {what}: computed in {str(AMP_DTYPES[name] or torch.float32)[6:]}")
    return AMP_DTYPES[name]


def _capabilities() -> dict[str, bool]:
    """What this CPU has; {} in PyTorch of before 2.11, which does not tell."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def _computes_in(name: str) -> bool:
    return any(_capabilities().get(unit, False) for unit in _UNITS[name])


class LowPrecision(nn.Module):
    """A network run under autocast, with float32 in and out; dtype None: without autocast.

    In evaluation mode the output is contiguous: torch.randn_like draws other numbers, for the same seed, on any other
    layout.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None):
        super().__init__()
        self.network, self.compute_dtype = network, dtype

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor | tuple[Tensor, Tensor]:
        """Return the network's output for x_t [B, ...]; deep features, which may come with it, are left as they are."""
        if self.compute_dtype is None:
            out = self.network(x, *args, **kwargs)
        else:
            if self.compute_dtype is torch.float16:
                x = x.clamp(-_LARGEST_HALF_INPUT, _LARGEST_HALF_INPUT)
            with torch.autocast(x.device.type, self.compute_dtype):
                out = self.network(x, *args, **kwargs)
        out, *features = out if isinstance(out, tuple) else (out,)
        out = out if self.compute_dtype is None else out.float()
        out = out if self.training else out.contiguous()
        return (out, *features) if features else out


class OptimizerStepper:
    """Backward pass and optimizer step; float16 gets dynamic loss scaling with a floor.

    Names are those of upstream's `MixedPrecisionTrainer`; the network's float32 parameters are the master parameters.

    :param model: a network with float32 parameters that the optimizer updates.
    :param dtype: of the autocast that computed the loss (None: float32).
    :param scale_growth: growth of log2(scale) a good step; the scale doubles every 1 / scale_growth steps.
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype | None,
        device: torch.device,
        scale_growth: float = 1e-3,
        initial_lg_loss_scale: float = fp16.INITIAL_LOG_LOSS_SCALE,
    ):
        self.model, self.use_fp16 = model, dtype is not None
        self.model_params = self.master_params = list(model.parameters())
        self.scaler = torch.amp.GradScaler(
            device.type,
            init_scale=2.0**initial_lg_loss_scale,
            growth_interval=max(1, round(1 / scale_growth)) if scale_growth > 0 else 2**31 - 1,
            enabled=dtype is torch.float16,
        )

    def zero_grad(self) -> None:
        """Clear the gradients."""
        fp16.zero_master_grads(self.master_params)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of the (scaled) loss."""
        self.scaler.scale(loss).backward()

    def optimize(self, opt: torch.optim.Optimizer) -> bool:
        """Take one step and log grad_norm and param_norm; False when float16 overflowed and it was skipped.

        InputError when training has diverged: gradients that are not finite although nothing can overflow,
        or a loss scale that fell below 1.
        """
        scaler = self.scaler
        if scaler.is_enabled():
            scaler.unscale_(opt)
            logger.logkv_mean("lg_loss_scale", self.lg_loss_scale)
        grad_norm = fp16.global_norm([p.grad for p in self.master_params if p.grad is not None])
        finite = math.isfinite(grad_norm)
        if not finite and not scaler.is_enabled():
            raise InputError(f"training diverged: gradient norm {grad_norm}; expected a finite one (lower --lr?)")
        if finite:
            logger.logkv_mean("grad_norm", grad_norm)
            logger.logkv_mean("param_norm", fp16.global_norm([p.detach() for p in self.master_params]))
        scaler.step(opt)
        scaler.update()
        if scaler.is_enabled() and scaler.get_scale() < 1.0:
            raise InputError(
                f"training diverged: gradients overflow even at a loss scale of {scaler.get_scale():g}; "
                "expected at least 1 (lower --lr, or use --amp_dtype bf16)"
            )
        return finite

    @property
    def lg_loss_scale(self) -> float:
        """log2 of the loss scale; 0 where there is none."""
        return math.log2(self.scaler.get_scale())

    def master_params_to_state_dict(self, master_params: Sequence[Tensor]) -> dict[str, Tensor]:
        """The network's state dict with these values: its own parameters, or averages of them."""
        return fp16.master_params_to_state_dict(self.model, None, master_params, use_fp16=False)

    def state_dict_to_master_params(self, state_dict: dict[str, Tensor]) -> list[Tensor]:
        """The inverse of `master_params_to_state_dict`."""
        return fp16.state_dict_to_master_params(self.model, state_dict, use_fp16=False)

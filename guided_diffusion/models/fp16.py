"""Upstream's half-precision training: float16 weights in the network, float32 master copies for the optimizer.

Our scripts use autocast instead (`mixed_precision`); this module serves code written for upstream.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from guided_diffusion.runs import logger

INITIAL_LOG_LOSS_SCALE = 20.0

NamedParams = list[tuple[str, nn.Parameter]]
GroupsAndShapes = list[tuple[NamedParams, int | tuple[int, ...]]]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def convert_module_to_f16(l: nn.Module) -> None:  # noqa: E741 (upstream's argument name)
    """Turn a convolution's weights into float16, in place; other modules are not changed."""
    _cast_convolution(l, torch.float16)


def convert_module_to_f32(l: nn.Module) -> None:  # noqa: E741
    """Turn a convolution's weights into float32, in place; other modules are not changed."""
    _cast_convolution(l, torch.float32)


def _cast_convolution(module: nn.Module, dtype: torch.dtype) -> None:
    if isinstance(module, _CONVOLUTIONS):
        for parameter in (module.weight, module.bias):
            if parameter is not None:
                parameter.data = parameter.data.to(dtype)


def get_param_groups_and_shapes(named_model_params: Iterable[tuple[str, nn.Parameter]]) -> GroupsAndShapes:
    """Two groups: vectors and scalars, stored as one flat vector; the rest, stored as one [1, n] matrix."""
    named = list(named_model_params)
    vectors = [(name, p) for name, p in named if p.ndim <= 1]
    matrices = [(name, p) for name, p in named if p.ndim > 1]
    return [(vectors, -1), (matrices, (1, -1))]


def _flat(tensors: Sequence[Tensor], shape: int | tuple[int, ...]) -> Tensor:
    return _flatten_dense_tensors(tensors).view(shape)


def make_master_params(param_groups_and_shapes: GroupsAndShapes) -> list[nn.Parameter]:
    """One float32 leaf per group, holding all of the group's values."""
    return [
        nn.Parameter(_flat([p.detach().float() for _, p in group], shape)) for group, shape in param_groups_and_shapes
    ]


def model_grads_to_master_grads(
    param_groups_and_shapes: GroupsAndShapes, master_params: Sequence[nn.Parameter]
) -> None:
    """Copy the network's gradients (zeros where there are none) into the master copies."""
    for master, (group, shape) in zip(master_params, param_groups_and_shapes, strict=True):
        master.grad = _flat([param_grad_or_zeros(p).float() for _, p in group], shape)


@torch.no_grad()
def master_params_to_model_params(
    param_groups_and_shapes: GroupsAndShapes, master_params: Sequence[nn.Parameter]
) -> None:
    """Copy the master values into the network, in its precision."""
    for master, (group, _) in zip(master_params, param_groups_and_shapes, strict=True):
        for (_, parameter), value in zip(group, unflatten_master_params(group, master.view(-1)), strict=True):
            parameter.copy_(value)


def unflatten_master_params(param_group: NamedParams, master_param: Tensor) -> tuple[Tensor, ...]:
    """The group's values with their own shapes."""
    return _unflatten_dense_tensors(master_param, [p for _, p in param_group])


def master_params_to_state_dict(
    model: nn.Module,
    param_groups_and_shapes: GroupsAndShapes | None,
    master_params: Sequence[Tensor],
    use_fp16: bool,
) -> dict[str, Tensor]:
    """The model's state dict with the float32 values of `master_params` (the model's own or averages)."""
    state = model.state_dict()
    if use_fp16:
        for master, (group, _) in zip(master_params, param_groups_and_shapes, strict=True):
            values = unflatten_master_params(group, master.view(-1))
            state.update((name, value) for (name, _), value in zip(group, values, strict=True))
        return state
    names = [name for name, _ in model.named_parameters()]
    state.update(zip(names, master_params, strict=True))
    return state


def state_dict_to_master_params(model: nn.Module, state_dict: dict[str, Tensor], use_fp16: bool) -> list[Tensor]:
    """The inverse of `master_params_to_state_dict`."""
    named = [(name, state_dict[name]) for name, _ in model.named_parameters()]
    if use_fp16:
        return make_master_params(get_param_groups_and_shapes(named))
    return [value for _, value in named]


def flat_optimizer_state(opt: torch.optim.Optimizer) -> dict[str, Any]:
    """The state dict of an optimizer on a float32 network, laid out as upstream's in half precision.

    There the optimizer has two flat tensors (see `make_master_params`), so its file has two entries. On the CPU; a
    parameter that never had a gradient has zeros.
    """
    state = opt.state_dict()
    groups = _optimizer_groups(opt)
    first = next(iter(opt.state.values()), {})
    flat: dict[int, dict[str, Any]] = {}
    for number, (group, shape) in enumerate(groups if first else []):
        entries = [(p, opt.state.get(p, {})) for _, p in group]
        flat[number] = {
            name: _flat([entry.get(name, torch.zeros_like(p)).cpu() for p, entry in entries], shape)
            if isinstance(value, Tensor) and value.ndim
            else value
            for name, value in first.items()
        }
    return {"state": flat, "param_groups": [state["param_groups"][0] | {"params": list(range(len(groups)))}]}


def unflatten_optimizer_state(opt: torch.optim.Optimizer, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The inverse of `flat_optimizer_state`; a state with one entry a parameter is returned as it is."""
    groups = _optimizer_groups(opt)
    sizes = [sum(p.numel() for _, p in group) for group, _ in groups]
    (settings, *others), entries = state["param_groups"], state["state"]
    fits = all(
        value.numel() == sizes[number]
        for number, entry in entries.items()
        for value in entry.values()
        if number < len(sizes) and isinstance(value, Tensor) and value.ndim
    )
    if others or len(settings["params"]) != len(groups) or not fits:
        return state
    position = {p: number for number, p in enumerate(opt.param_groups[0]["params"])}
    single: dict[int, dict[str, Any]] = {number: {} for number in position.values()} if entries else {}
    for number, entry in entries.items():
        for name, value in entry.items():
            for (_, p), part in zip(groups[number][0], _parts_of(value, groups[number][0]), strict=True):
                single[position[p]][name] = part
    return {"state": single, "param_groups": [settings | {"params": list(position.values())}]}


def _optimizer_groups(opt: torch.optim.Optimizer) -> GroupsAndShapes:
    """The groups of `get_param_groups_and_shapes`, without names and without an empty one."""
    groups = get_param_groups_and_shapes(("", p) for p in opt.param_groups[0]["params"])
    return [(group, shape) for group, shape in groups if group]


def _parts_of(value: Any, group: NamedParams) -> list[Any]:
    """Each parameter's share of an entry's value, with memory of its own; scalars are everyone's."""
    if not isinstance(value, Tensor):
        return [value] * len(group)
    if value.ndim == 0:
        return [value.clone() for _ in group]
    parts = unflatten_master_params(group, value.view(-1))
    return [torch.empty_like(p, device="cpu").copy_(part) for (_, p), part in zip(group, parts, strict=True)]


def zero_master_grads(master_params: Iterable[nn.Parameter]) -> None:
    """Drop the master copies' gradients."""
    for parameter in master_params:
        parameter.grad = None


def zero_grad(model_params: Iterable[nn.Parameter]) -> None:
    """Set existing gradients to zero, keeping their memory."""
    for parameter in model_params:
        if parameter.grad is not None:
            parameter.grad.detach_().zero_()


def param_grad_or_zeros(param: nn.Parameter) -> Tensor:
    """The gradient, or zeros where none was computed."""
    return torch.zeros_like(param) if param.grad is None else param.grad.detach()


def check_overflow(value: float) -> bool:
    """Whether a number is infinite or not a number."""
    return not math.isfinite(value)


class MixedPrecisionTrainer:
    """Backward and optimizer step with dynamic loss scaling, for a model with upstream's convert_to_fp16().

    `lg_loss_scale` is log2 of the scale: it grows by `fp16_scale_growth` after a good step; after a step
    whose gradient norm is not finite it falls by 1 and the step is skipped. With use_fp16 False
    everything is plain float32.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        use_fp16: bool = False,
        fp16_scale_growth: float = 1e-3,
        initial_lg_loss_scale: float = INITIAL_LOG_LOSS_SCALE,
    ):
        self.model = model
        self.use_fp16 = use_fp16
        self.fp16_scale_growth = fp16_scale_growth
        self.lg_loss_scale = initial_lg_loss_scale
        self.model_params = list(model.parameters())
        self.param_groups_and_shapes: GroupsAndShapes | None = None
        self.master_params = self.model_params
        if use_fp16:
            self.param_groups_and_shapes = get_param_groups_and_shapes(model.named_parameters())
            self.master_params = make_master_params(self.param_groups_and_shapes)
            model.convert_to_fp16()

    def zero_grad(self) -> None:
        """Clear the network's gradients."""
        zero_grad(self.model_params)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of the (scaled) loss."""
        (loss * 2**self.lg_loss_scale if self.use_fp16 else loss).backward()

    def optimize(self, opt: torch.optim.Optimizer) -> bool:
        """Take one step; False when it was skipped because of overflow. Logs grad_norm and param_norm."""
        if self.use_fp16:
            logger.logkv_mean("lg_loss_scale", self.lg_loss_scale)
            model_grads_to_master_grads(self.param_groups_and_shapes, self.master_params)
        grad_norm = global_norm([p.grad for p in self.master_params if p.grad is not None])
        param_norm = global_norm([p.detach() for p in self.master_params])
        scale = 2**self.lg_loss_scale if self.use_fp16 else 1
        if self.use_fp16 and check_overflow(grad_norm):
            self.lg_loss_scale -= 1
            logger.log(f"gradients overflowed: step skipped, lg_loss_scale is now {self.lg_loss_scale}")
            zero_master_grads(self.master_params)
            return False
        logger.logkv_mean("grad_norm", grad_norm / scale)
        logger.logkv_mean("param_norm", param_norm)
        if self.use_fp16:
            for master in self.master_params:
                master.grad.mul_(1.0 / scale)
        opt.step()
        if self.use_fp16:
            zero_master_grads(self.master_params)
            master_params_to_model_params(self.param_groups_and_shapes, self.master_params)
            self.lg_loss_scale += self.fp16_scale_growth
        return True

    def master_params_to_state_dict(self, master_params: Sequence[Tensor]) -> dict[str, Tensor]:
        """See the function of the same name."""
        return master_params_to_state_dict(self.model, self.param_groups_and_shapes, master_params, self.use_fp16)

    def state_dict_to_master_params(self, state_dict: dict[str, Tensor]) -> list[Tensor]:
        """See the function of the same name."""
        return state_dict_to_master_params(self.model, state_dict, self.use_fp16)


def global_norm(tensors: Sequence[Tensor]) -> float:
    """L2 norm of all values together, from float32 norms summed in float64 (one device synchronisation)."""
    if not tensors:
        return 0.0
    norms = torch._foreach_norm([x.float() for x in tensors])
    return float(torch.stack(norms).double().square().sum().sqrt())

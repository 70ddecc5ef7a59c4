"""The training loop of diffusion models, and functions that the classifier's loop shares."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from guided_diffusion.diffusion.nonfinite import check_loss
from guided_diffusion.distributed import collectives
from guided_diffusion.errors import InputError
from guided_diffusion.io import checkpoint
from guided_diffusion.io.reading import decoding, exists
from guided_diffusion.io.remote import beside, blobfile, is_remote
from guided_diffusion.models.compiling import TOLERANCE, TOLERANCE_AUTOCAST, CompiledForTraining
from guided_diffusion.models.fp16 import INITIAL_LOG_LOSS_SCALE, flat_optimizer_state, unflatten_optimizer_state
from guided_diffusion.models.layers import update_ema
from guided_diffusion.models.mixed_precision import LowPrecision, OptimizerStepper, amp_dtype
from guided_diffusion.runs import logger
from guided_diffusion.training.resume import TrainingRun
from guided_diffusion.training.timestep_samplers import LossAwareSampler, ScheduleSampler, UniformSampler


class TrainLoop:
    """Train a diffusion model with AdamW, averaging its weights.

    Writes model%06d.pt, ema_{rate}_%06d.pt and opt%06d.pt into the logger's directory every `save_interval`
    steps, and at the end. As with upstream, the number is that of the step just trained, so model000000.pt has seen
    one step; at the end it is the number of steps. SIGUSR1 writes a checkpoint after the current step; SIGTERM and
    SIGINT too, and end the program then.

    Upstream's attributes and methods exist for subclasses, those with an underscore too; `mp_trainer` is an
    `OptimizerStepper`.

    :param data: endless iterator of (images [B, C, H, W] in [-1, 1], dict of conditioning tensors).
    :param batch_size: per process; `microbatch`: images per forward and backward pass (-1: all). The gradients of
        microbatches add up without division, as upstream's do.
    :param ema_rate: one rate, or several as "0.99,0.9999".
    :param resume_checkpoint: path of a model%06d.pt; its average and optimizer files are found beside it.
    :param use_fp16: mixed precision in `amp_name`, one of `AMP_DTYPES`.
    :param lr_anneal_steps: steps over which the learning rate falls linearly to 0, then training ends; 0: constant.
    :param iterations: total number of steps (0: no limit).
    :param compile: train the network compiled.
    :param run: the run to resume, instead of `resume_checkpoint`; with its seed every step's draws depend only on
        seed, rank and step. None: as upstream does.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        diffusion,
        data: Iterator,
        batch_size: int,
        microbatch: int,
        lr: float,
        ema_rate: float | str,
        log_interval: int,
        save_interval: int,
        resume_checkpoint: str,
        use_fp16: bool = False,
        fp16_scale_growth: float = 1e-3,
        schedule_sampler=None,
        weight_decay: float = 0.0,
        lr_anneal_steps: int = 0,
        amp_name: str = "fp16",
        iterations: int = 0,
        compile: bool = False,
        run: TrainingRun | None = None,
    ):
        self.model, self.diffusion, self.data = model, diffusion, data
        self.batch_size = batch_size
        self.microbatch = microbatch if microbatch > 0 else batch_size
        self.lr, self.lr_anneal_steps, self.weight_decay = lr, lr_anneal_steps, weight_decay
        self.ema_rate = [float(rate) for rate in str(ema_rate).split(",")]
        self.log_interval, self.save_interval = log_interval, save_interval
        self.schedule_sampler = schedule_sampler or UniformSampler(diffusion)
        self.last_step = min((n for n in (lr_anneal_steps, iterations) if n), default=None)
        self.global_batch = batch_size * collectives.get_world_size()
        dtype = amp_dtype(use_fp16, amp_name, "training", collectives.dev())
        self.use_fp16, self.fp16_scale_growth = dtype is not None, fp16_scale_growth
        self.sync_cuda = torch.cuda.is_available()
        self.run = run or TrainingRun.from_checkpoint(find_resume_checkpoint() or resume_checkpoint)
        self.resume_checkpoint, self.resume_step = self.run.model_path, self.run.began
        self.step = self.run.first_step - self.run.began
        self._load_and_sync_parameters()

        if use_fp16:
            model.dtype = torch.float32  # autocast casts; weights and activations between blocks are float32
        self.mp_trainer = OptimizerStepper(
            model, dtype, collectives.dev(), fp16_scale_growth, INITIAL_LOG_LOSS_SCALE
        )
        self.opt = AdamW(self.mp_trainer.master_params, lr=lr, weight_decay=weight_decay)
        if self.run.state is not None or self.run.number > 0:  # upstream reads neither of these for step 0
            self._load_optimizer_state()
            self.ema_params = [self._load_ema_parameters(rate) for rate in self.ema_rate]
        else:
            self.ema_params = [copy.deepcopy(self.mp_trainer.master_params) for _ in self.ema_rate]
        restore(self.run, self.mp_trainer, self.schedule_sampler)
        self.ddp_model = trainable(model, dtype, compile)
        self.use_ddp = isinstance(self.ddp_model, DistributedDataParallel)

    def _load_and_sync_parameters(self) -> None:
        self.run.load_weights(self.model)
        collectives.sync_params(self.model.parameters())

    def _load_ema_parameters(self, rate: float) -> list[Tensor]:
        run = self.run
        path = find_ema_checkpoint(run.model_path, run.number, rate)
        if path is None and run.state is not None:
            raise InputError(f"{run.model_path}: no ema_{rate}_{run.number:06d}.pt beside it")
        if path is None:
            return copy.deepcopy(self.mp_trainer.master_params)
        logger.log(f"loading average from {path}")
        params = self.mp_trainer.state_dict_to_master_params(checkpoint.read_weights(self.model, path))
        average = [nn.Parameter(p.detach().to(collectives.dev())) for p in params]
        collectives.sync_params(average)
        return average

    def _load_optimizer_state(self) -> None:
        load_optimizer(self.opt, self.run.model_path, self.run.number, required=self.run.state is not None)

    def run_loop(self) -> None:
        """Train until the last step, or without end where there is none, saving on the way and at the end."""
        if self.last_step is None:
            logger.log("no --lr_anneal_steps and no --iterations: training continues until it is stopped")
        with self.run.upkeep(self.last_step) as after_step:
            while self.last_step is None or self.step + self.resume_step < self.last_step:
                batch, cond = next(self.data)
                self.run.seed_step(self.step + self.resume_step)
                self.run_step(batch, cond)
                due = self.step % self.save_interval == 0
                after_step(logs=self.step % self.log_interval == 0, save=self.save, due=due)
                if due and os.environ.get("DIFFUSION_TRAINING_TEST") and self.step > 0:
                    return
                self.step += 1
            if (self.step - 1) % self.save_interval != 0:
                self.save(at_end=True)

    def run_step(self, batch: Tensor, cond: dict[str, Tensor]) -> None:
        """Make one optimizer step on a batch of this process."""
        self.forward_backward(batch, cond)
        if self.mp_trainer.optimize(self.opt):
            self._update_ema()
        self._anneal_lr()
        self.log_step()

    def forward_backward(self, batch: Tensor, cond: dict[str, Tensor]) -> None:
        """Accumulate the gradients of a batch, microbatch by microbatch."""
        self.mp_trainer.zero_grad()
        device = collectives.dev()
        for part in microbatches(self.ddp_model, batch.shape[0], self.microbatch):
            images = batch[part].to(device)
            model_kwargs = {name: value[part].to(device) for name, value in cond.items()}
            t, weights = self.schedule_sampler.sample(images.shape[0], device)
            losses = self.diffusion.training_losses(self.ddp_model, images, t, model_kwargs=model_kwargs)
            if isinstance(self.schedule_sampler, LossAwareSampler):
                self.schedule_sampler.update_with_local_losses(t, losses["loss"].detach())
            self.mp_trainer.backward((losses["loss"] * weights).mean())
            # Not earlier: reading values waits for the device, which is busy with the backward pass by now.
            if not self.mp_trainer.scaler.is_enabled():
                check_loss(losses["loss"], t, self.step + self.resume_step)
            log_loss_dict(self.diffusion, t, {name: values * weights for name, values in losses.items()})

    def _update_ema(self) -> None:
        for rate, average in zip(self.ema_rate, self.ema_params, strict=True):
            update_ema(average, self.mp_trainer.master_params, rate=rate)

    def _anneal_lr(self) -> None:
        if self.lr_anneal_steps:
            set_lr(self.opt, self.lr * (1 - (self.step + self.resume_step) / self.lr_anneal_steps))

    def log_step(self) -> None:
        """Log the step's number and the samples seen by all processes."""
        logger.logkv("step", self.step + self.resume_step)
        logger.logkv("samples", (self.step + self.resume_step + 1) * self.global_batch)

    def save(self, at_end: bool = False) -> str:
        """Write weights, averages and optimizer state, each atomically, from rank 0; all ranks wait.

        :param at_end: all steps before `step` are done, but not `step` itself.
        :return: the path of the weights.
        """
        step = self.step + self.resume_step
        trainer = self.mp_trainer
        objects = {f"model{step:06d}.pt": trainer.master_params_to_state_dict(trainer.master_params)}
        for rate, average in zip(self.ema_rate, self.ema_params, strict=True):
            objects[f"ema_{rate}_{step:06d}.pt"] = trainer.master_params_to_state_dict(average)
        steps_done = step if at_end else step + 1
        return save_checkpoint(self.run, step, steps_done, objects, self.opt, trainer, self.schedule_sampler)


def load_optimizer(opt: torch.optim.Optimizer, model_path: str, step: int, required: bool) -> None:
    """Restore the optimizer from opt%06d.pt beside a model file, on every rank, written in either precision.

    InputError when it is required and missing, or belongs to another model.
    """
    path = beside(model_path, f"opt{step:06d}.pt")
    if not required and not (blobfile().exists if is_remote(path) else exists)(path):
        logger.warning(f"no optimizer state at {path}: starting with a fresh optimizer")
        return
    if not is_remote(path) and not exists(path):
        raise InputError(
            f"{path}: no such file, which --resume_checkpoint needs for the optimizer's state; "
            f"--init_from {model_path} begins a new run with the weights alone"
        )
    # On the CPU: the moments follow their parameters to the device; AdamW reads its step counts at every step.
    state = checkpoint.load_state_dict(path, map_location="cpu")
    with decoding(path, "does not fit this model's parameters"):
        opt.load_state_dict(copy.copy(unflatten_optimizer_state(opt, state)))
        for parameter, kept in opt.state.items():
            for name, value in kept.items():
                if checkpoint.oddity(value) or value.shape not in ((), parameter.shape):
                    raise ValueError(f"found {name} of {list(value.shape)} for one of {list(parameter.shape)}")


def save_checkpoint(
    run: TrainingRun,
    number: int,
    steps_done: int,
    objects: dict[str, Any],
    opt: torch.optim.Optimizer,
    stepper: OptimizerStepper,
    schedule_sampler,
) -> str:
    """Write weights (`objects`, by file name), optimizer state and what `restore` reads; see `TrainingRun.save`.

    opt%06d.pt has upstream's layout: after training in half precision, two flat entries. Only rank 0 makes that.
    """
    flat = stepper.use_fp16 and len(opt.param_groups) == 1 and collectives.get_rank() == 0
    objects |= {f"opt{number:06d}.pt": flat_optimizer_state(opt) if flat else opt.state_dict()}
    sampler = schedule_sampler.state_dict() if isinstance(schedule_sampler, ScheduleSampler) else {}
    state = {"scaler": stepper.scaler.state_dict(), "schedule_sampler": sampler}
    return run.save(get_blob_logdir(), number, steps_done, objects, state)


def trainable(model: nn.Module, dtype: torch.dtype | None, compile: bool) -> nn.Module:
    """Return the network that a loop calls: in mixed precision, compiled if wanted, and synchronising gradients.

    The latter with several processes, on CPUs as on GPUs.
    """
    network = LowPrecision(model, dtype)
    if compile:
        tolerance = TOLERANCE if dtype is None else TOLERANCE_AUTOCAST
        network = CompiledForTraining(network, type(model).__name__, tolerance)
    if collectives.get_world_size() == 1 or not dist.is_initialized():
        return network
    device = collectives.dev()
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, bucket_cap_mb=128)


def microbatches(network: nn.Module, count: int, size: int) -> Iterator[slice]:
    """Yield the parts of a batch of `count` images; a distributed network synchronises its gradients in the last."""
    for start in range(0, count, size):
        waits = start + size < count and isinstance(network, DistributedDataParallel)
        with network.no_sync() if waits else nullcontext():
            yield slice(start, start + size)


def set_lr(opt: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in opt.param_groups:
        group["lr"] = lr


def restore(run: TrainingRun, stepper: OptimizerStepper, schedule_sampler) -> None:
    """Restore the loss scale and the schedule sampler of a run that was interrupted."""
    if run.state is not None:
        stepper.scaler.load_state_dict(run.state["scaler"])
        schedule_sampler.load_state_dict(run.state["schedule_sampler"])


def get_blob_logdir() -> str:
    """Return the directory of checkpoints: the logger's."""
    return logger.get_dir()


def find_resume_checkpoint() -> str | None:
    """Return the checkpoint to resume: a hook for schedulers. None: --resume_checkpoint decides."""
    return None


def find_ema_checkpoint(main_checkpoint: str | None, step: int, rate: float) -> str | None:
    """Return the path of a step's averaged weights beside its model file, or None."""
    if not main_checkpoint:
        return None
    path = beside(main_checkpoint, f"ema_{rate}_{step:06d}.pt")
    return path if (blobfile().exists if is_remote(path) else exists)(path) else None


def log_loss_dict(diffusion, ts: Tensor, losses: dict[str, Tensor]) -> None:
    """Log means of per-sample values [B], over all and per quartile of the noise level: name, name_q0..q3."""
    quartiles = [int(4 * t / diffusion.num_timesteps) for t in ts.tolist()]
    # One transfer for all of them.
    for name, values in zip(losses, torch.stack([*losses.values()]).detach().cpu(), strict=True):
        logger.logkv_mean(name, values.mean().item())
        found: dict[int, list[float]] = {}
        for quartile, value in zip(quartiles, values.tolist(), strict=True):
            found.setdefault(quartile, []).append(value)
        for quartile, several in found.items():
            logger.logkv_mean(f"{name}_q{quartile}", *several)

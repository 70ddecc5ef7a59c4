"""The training loop of the noise-aware classifier (Alg. 2 of the paper, with any loss on the logits)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from . import dist_util, logger
from .amp import LowPrecision, OptimizerStepper
from .configs import ClassifierTrainConfig
from .nn import to_fast_layout
from .progress import progress_bar
from .resample import create_named_schedule_sampler
from .train_util import (
    distribute,
    load_for_resuming,
    load_optimizer,
    log_loss_dict,
    save_in_logdir,
    set_lr,
    without_sync,
)

LossTerms = Callable[[Tensor, Tensor], dict[str, Tensor]]


def cross_entropy_terms(logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The plain classifier's loss per sample [B], for logits [B, K] and labels y [B]."""
    return {"loss": F.cross_entropy(logits.float(), y, reduction="none")}


class ClassifierTrainLoop:
    """Train classifier(x_t, t) -> logits on noised images.

    :param data, val_data: endless iterators of (images [B, C, H, W] in [-1, 1], {"y": labels [B]}).
    :param diffusion: adds the noise; timesteps are those of the process as given (no respacing).
    :param loss_terms: (logits, y) -> dict of [B] values; "loss" is minimised, all are logged.
    :param dtype: of autocast; None: float32.

    Writes model%06d.pt and opt%06d.pt every save_interval steps and at the end (the number is that of the
    last step trained).
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        diffusion,
        data: Iterator,
        val_data: Iterator | None,
        config: ClassifierTrainConfig,
        loss_terms: LossTerms = cross_entropy_terms,
        dtype: torch.dtype | None = None,
    ):
        model = to_fast_layout(model)  # checkpoints do not depend on it
        self.model, self.diffusion, self.config, self.loss_terms = model, diffusion, config, loss_terms
        self.data, self.val_data = data, val_data
        self.device = dist_util.dev()
        self.schedule_sampler = create_named_schedule_sampler(config.schedule_sampler, diffusion)
        self.resume_step = load_for_resuming(model, config.resume_checkpoint) if config.resume_checkpoint else 0
        dist_util.sync_params(model.parameters())
        params = list(model.parameters())
        self.stepper = OptimizerStepper(params, dtype, self.device, initial_lg_loss_scale=16.0)
        self.opt = AdamW(params, lr=config.lr, weight_decay=config.weight_decay)
        if config.resume_checkpoint:
            load_optimizer(self.opt, config.resume_checkpoint, self.resume_step, required=True)
        self.network = distribute(LowPrecision(model, dtype))

    def run_loop(self) -> None:
        """Train until `iterations`, logging, validating and saving on the way."""
        config = self.config
        global_batch = config.batch_size * dist_util.get_world_size()
        step = self.resume_step
        with progress_bar(config.iterations, "step", initial=step) as bar:
            for step in range(self.resume_step, config.iterations):
                logger.logkv("step", step)
                logger.logkv("samples", (step + 1) * global_batch)
                if config.anneal_lr:
                    set_lr(self.opt, config.lr * (1 - step / config.iterations))
                self._train_step()
                done = step - self.resume_step
                if self.val_data is not None and done % config.eval_interval == 0:
                    self._validate()
                if done % config.log_interval == 0:
                    logger.dumpkvs()
                if done and step % config.save_interval == 0:
                    self._save(step)
                bar.update()
        self._save(step)

    def _train_step(self) -> None:
        images, y, t = self._noised_batch(self.data)
        micro = self.config.microbatch if self.config.microbatch > 0 else len(images)
        starts = range(0, len(images), micro)
        self.stepper.zero_grad()
        for start in starts:
            part = slice(start, start + micro)
            with nullcontext() if start == starts[-1] else without_sync(self.network):
                loss_B = self._logged_loss(images[part], y[part], t[part], "train")
                self.stepper.backward(loss_B.mean() * len(loss_B) / len(images))
        self.stepper.optimize(self.opt)

    @torch.no_grad()
    def _validate(self) -> None:
        self.model.eval()
        images, y, t = self._noised_batch(self.val_data)
        self._logged_loss(images, y, t, "val")
        self.model.train()

    def _noised_batch(self, data: Iterator) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, labels and timesteps on the device; clean images with t = 0 unless `noised`."""
        images, extra = next(data)
        images, y = images.to(self.device), extra["y"].to(self.device)
        if not self.config.noised:
            return images, y, torch.zeros(len(images), dtype=torch.long, device=self.device)
        t, _ = self.schedule_sampler.sample(len(images), self.device)
        return self.diffusion.q_sample(images, t), y, t

    def _logged_loss(self, x_t: Tensor, y: Tensor, t: Tensor, prefix: str) -> Tensor:
        # Validation runs on one rank's network alone: a distributed forward would wait for gradients.
        network = self.network if torch.is_grad_enabled() else getattr(self.network, "module", self.network)
        logits = network(x_t, t)
        terms = self.loss_terms(logits, y)
        logged = {name: values.detach() for name, values in terms.items()}
        logged |= {f"acc@{k}": top_k_hits(logits.detach(), y, k) for k in (1, 5)}
        log_loss_dict(self.diffusion, t, {f"{prefix}_{name}": values for name, values in logged.items()})
        return terms["loss"]

    def _save(self, step: int) -> None:
        if dist_util.get_rank() == 0:
            save_in_logdir(f"model{step:06d}.pt", self.model.state_dict())
            save_in_logdir(f"opt{step:06d}.pt", self.opt.state_dict())
        dist_util.barrier()


def top_k_hits(logits: Tensor, y: Tensor, k: int) -> Tensor:
    """1.0 where the label is among the k largest of logits [B, K] (or of all K when there are fewer), else 0.0."""
    top_BK = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (top_BK == y[:, None]).any(dim=1).float()

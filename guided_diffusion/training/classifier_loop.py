"""The training loop of the noise-aware classifier (Alg. 2 of the paper, with any loss on the logits)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from guided_diffusion.config.configs import ClassifierTrainConfig
from guided_diffusion.data.seeding import Purpose
from guided_diffusion.diffusion.nonfinite import check_loss
from guided_diffusion.distributed import collectives
from guided_diffusion.models.attention import fuse_attention
from guided_diffusion.models.layers import to_fast_layout
from guided_diffusion.models.mixed_precision import OptimizerStepper
from guided_diffusion.runs import logger
from guided_diffusion.training import diffusion_loop
from guided_diffusion.training.resume import TrainingRun
from guided_diffusion.training.timestep_samplers import create_named_schedule_sampler


class ClassifierTrainLoop:
    """Train classifier(x_t, t) -> logits on noised images.

    :param data, val_data: endless iterators of (images [B, C, H, W] in [-1, 1], {"y": labels [B]}).
    :param diffusion: adds the noise, at the process's own timesteps (no respacing).
    :param loss_terms: (logits, y) -> dict of [B] values; "loss" is minimised, all are logged.
    :param dtype: of autocast; None: float32.
    :param run: the run to resume, instead of the config's resume_checkpoint; with its seed every step's draws depend
        only on seed, rank and step. None: as upstream does.

    Writes model%06d.pt and opt%06d.pt every save_interval steps and at the end (the number is that of the last step
    trained). SIGUSR1 asks for a checkpoint after the current step; SIGTERM and SIGINT too, and end the program then.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        diffusion,
        data: Iterator,
        val_data: Iterator | None,
        config: ClassifierTrainConfig,
        loss_terms: Callable[[Tensor, Tensor], dict[str, Tensor]],
        dtype: torch.dtype | None = None,
        run: TrainingRun | None = None,
    ):
        model = to_fast_layout(fuse_attention(model))  # checkpoints do not depend on it
        self.model, self.diffusion, self.config, self.loss_terms = model, diffusion, config, loss_terms
        self.data, self.val_data = data, val_data
        self.device = collectives.dev()
        self.schedule_sampler = create_named_schedule_sampler(config.schedule_sampler, diffusion)
        self.run = run or TrainingRun.from_checkpoint(config.resume_checkpoint)
        self.run.load_weights(model)
        collectives.sync_params(model.parameters())
        self.stepper = OptimizerStepper(model, dtype, self.device, initial_lg_loss_scale=16.0)
        self.opt = AdamW(self.stepper.master_params, lr=config.lr, weight_decay=config.weight_decay)
        if self.run.model_path:
            diffusion_loop.load_optimizer(self.opt, self.run.model_path, self.run.number, required=True)
        diffusion_loop.restore(self.run, self.stepper, self.schedule_sampler)
        self.network = diffusion_loop.trainable(model, dtype, config.compile)

    def run_loop(self) -> None:
        """Train until `iterations`, logging, validating and saving on the way."""
        config, run = self.config, self.run
        global_batch = config.batch_size * collectives.get_world_size()
        with run.upkeep(config.iterations) as after_step:
            for step in range(run.first_step, config.iterations):
                logger.logkv("step", step)
                logger.logkv("samples", (step + 1) * global_batch)
                if config.anneal_lr:
                    diffusion_loop.set_lr(self.opt, config.lr * (1 - step / config.iterations))
                self._train_step(step)
                done = step - run.began
                if self.val_data is not None and done % config.eval_interval == 0:
                    self._validate(step)
                due = step == config.iterations - 1 or (done > 0 and step % config.save_interval == 0)
                after_step(logs=done % config.log_interval == 0, save=partial(self._save, step), due=due)

    def _train_step(self, step: int) -> None:
        images, y, t = self._noised_batch(self.data, step, Purpose.STEP)
        micro = self.config.microbatch if self.config.microbatch > 0 else len(images)
        self.stepper.zero_grad()
        for part in diffusion_loop.microbatches(self.network, len(images), micro):
            terms = self._terms(images[part], y[part], t[part])
            loss_B = terms["loss"]
            self.stepper.backward(loss_B.mean() * len(loss_B) / len(images))
            # Not earlier: reading values waits for the device, which is busy with the backward pass by now.
            if not self.stepper.scaler.is_enabled():
                check_loss(loss_B, t[part], step)
            self._log(terms, t[part], "train")
        self.stepper.optimize(self.opt)

    @torch.no_grad()
    def _validate(self, step: int) -> None:
        self.model.eval()
        images, y, t = self._noised_batch(self.val_data, step, Purpose.VALIDATION_STEP)
        self._log(self._terms(images, y, t), t, "val")
        self.model.train()

    def _noised_batch(self, data: Iterator, step: int, purpose: Purpose) -> tuple[Tensor, Tensor, Tensor]:
        """Return x_t, labels and timesteps on the device; clean images with t = 0 unless `noised`. Seeds the step."""
        images, extra = next(data)
        self.run.seed_step(step, purpose)
        images, y = images.to(self.device), extra["y"].to(self.device)
        if not self.config.noised:
            return images, y, torch.zeros(len(images), dtype=torch.long, device=self.device)
        t, _ = self.schedule_sampler.sample(len(images), self.device)
        return self.diffusion.q_sample(images, t), y, t

    def _terms(self, x_t: Tensor, y: Tensor, t: Tensor) -> dict[str, Tensor]:
        """Return loss terms and top-1 accuracy, of more than 5 classes also top-5, each [B]."""
        # Validation uses the inner network: a distributed forward would wait for gradients.
        network = self.network if torch.is_grad_enabled() else getattr(self.network, "module", self.network)
        logits = network(x_t, t)
        ranks = (1, 5) if logits.shape[1] > 5 else (1,)
        return self.loss_terms(logits, y) | {f"acc@{k}": top_k_hits(logits.detach(), y, k) for k in ranks}

    def _log(self, terms: dict[str, Tensor], t: Tensor, prefix: str) -> None:
        diffusion_loop.log_loss_dict(self.diffusion, t, {f"{prefix}_{name}": values for name, values in terms.items()})

    def _save(self, step: int) -> str:
        weights = self.stepper.master_params_to_state_dict(self.stepper.master_params)
        objects = {f"model{step:06d}.pt": weights}
        return diffusion_loop.save_checkpoint(
            self.run, step, step + 1, objects, self.opt, self.stepper, self.schedule_sampler
        )


def top_k_hits(logits: Tensor, y: Tensor, k: int) -> Tensor:
    """Return 1.0 where the label is among the k (at most K) largest of logits [B, K], else 0.0."""
    top_BK = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (top_BK == y[:, None]).any(dim=1).float()

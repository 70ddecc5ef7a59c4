"""The training loop of the noise-aware classifier (Alg. 2 of the paper, with any loss on the logits)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from guided_diffusion.config.configs import ClassifierTrainConfig
from guided_diffusion.data.seeding import Purpose
from guided_diffusion.diffusion.nonfinite import check_loss
from guided_diffusion.distributed import collectives
from guided_diffusion.models.attention import fuse_attention
from guided_diffusion.models.layers import to_fast_layout
from guided_diffusion.models.mixed_precision import LowPrecision, OptimizerStepper
from guided_diffusion.runs import logger
from guided_diffusion.training import diffusion_loop
from guided_diffusion.training.resume import TrainingRun
from guided_diffusion.training.timestep_samplers import create_named_schedule_sampler
from guided_diffusion.training.validation_log import Statistic, ValidationLog, calibration_error


class Noised(NamedTuple):
    """A batch of noised images: x_t [B, C, H, W], labels and timesteps [B], the noise in x_t (0 in clean images)."""

    x_t: Tensor
    y: Tensor
    t: Tensor
    noise: Tensor

    def part(self, part: slice) -> Noised:
        """Return some of the batch."""
        return Noised(*(values[part] for values in self))


def evaluate_plainly(network: nn.Module, batch: Noised) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits [B, K], and no further terms of the loss."""
    return network(batch.x_t, batch.t), {}


# Whether more is better, of the values that validation logs; "ce" where the loss has that part.
HIGHER_IS_BETTER = {"loss": False, "ce": False, "ece": False, "acc@1": True, "acc@5": True}


class ClassifierTrainLoop:
    """Train classifier(x_t, t) -> logits on noised images.

    :param data, val_data: endless iterators of (images [B, C, H, W] in [-1, 1], {"y": labels [B]}).
    :param diffusion: adds the noise, at the process's own timesteps (no respacing).
    :param loss_terms: (logits, y) -> dict of [B] values; "loss" is minimised, all are logged.
    :param evaluate: (network, batch) -> logits [B, K] and a dict of [B] values to log, of which "loss", if there, is
        added to the loss: terms that need more than the logits.
    :param statistics: of validation, beside the calibration error "ece": functions of the terms, see `ValidationLog`.
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
        evaluate: Callable[[nn.Module, Noised], tuple[Tensor, dict[str, Tensor]]] = evaluate_plainly,
        statistics: Mapping[str, Statistic] = MappingProxyType({}),
        dtype: torch.dtype | None = None,
        run: TrainingRun | None = None,
    ):
        model = to_fast_layout(fuse_attention(model))  # checkpoints do not depend on it
        self.model, self.diffusion, self.config, self.loss_terms = model, diffusion, config, loss_terms
        self.evaluate, self.data, self.val_data = evaluate, data, val_data
        self.validation_log = ValidationLog({"ece": calibration_error, **statistics}, diffusion.num_timesteps)
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
        # Validation: a distributed forward would wait for gradients.
        self.inner_network = LowPrecision(model, dtype)

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
                logs = done % config.log_interval == 0
                if logs:
                    self.validation_log.log()
                due = step == config.iterations - 1 or (done > 0 and step % config.save_interval == 0)
                after_step(logs=logs, save=partial(self._save, step), due=due)

    def _train_step(self, step: int) -> None:
        batch = self._noised_batch(self.data, step, Purpose.STEP)
        count = len(batch.y)
        micro = self.config.microbatch if self.config.microbatch > 0 else count
        self.stepper.zero_grad()
        for part in diffusion_loop.microbatches(self.network, count, micro):
            _, terms = self._terms(self.network, batch.part(part))
            loss_B = terms["loss"]
            self.stepper.backward(loss_B.mean() * len(loss_B) / count)
            # Not earlier: reading values waits for the device, which is busy with the backward pass by now.
            if not self.stepper.scaler.is_enabled():
                check_loss(loss_B, batch.t[part], step)
            self._log(terms, batch.t[part], "train")
        self.stepper.optimize(self.opt)

    @torch.no_grad()
    def _validate(self, step: int) -> None:
        self.model.eval()
        batch = self._noised_batch(self.val_data, step, Purpose.VALIDATION_STEP)
        logits, terms = self._terms(self.inner_network, batch)
        self._log(terms, batch.t, "val")
        self.validation_log.add(batch.t, terms | {"confidence": logits.softmax(dim=1).amax(dim=1)})
        self.model.train()

    def _noised_batch(self, data: Iterator, step: int, purpose: Purpose) -> Noised:
        """Return a batch on the device; clean images with t = 0 unless `noised`. Seeds the step."""
        images, extra = next(data)
        self.run.seed_step(step, purpose)
        images, y = images.to(self.device), extra["y"].to(self.device)
        if not self.config.noised:
            t = torch.zeros(len(images), dtype=torch.long, device=self.device)
            return Noised(images, y, t, torch.zeros_like(images))
        t, _ = self.schedule_sampler.sample(len(images), self.device)
        noise = torch.randn_like(images)
        return Noised(self.diffusion.q_sample(images, t, noise), y, t, noise)

    def _terms(self, network: nn.Module, batch: Noised) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits; loss terms and top-1 accuracy, of more than 5 classes also top-5, each [B]."""
        logits, more = self.evaluate(network, batch)
        terms = self.loss_terms(logits, batch.y)
        if "loss" in more:
            terms["loss"] = terms["loss"] + more.pop("loss")
        ranks = (1, 5) if logits.shape[1] > 5 else (1,)
        return logits, terms | more | {f"acc@{k}": top_k_hits(logits.detach(), batch.y, k) for k in ranks}

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

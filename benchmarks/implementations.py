"""What is measured of an implementation, ours or upstream's: the same networks, weights and inputs for both.

Upstream is used as its users use it: its script's cond_fn, its half precision (`use_fp16`), its trainer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.builders import Config, Setting, build_network, build_upstream_network, randomize
from ed_dpm_patches import ClassifierGuidance, ConstantRule, ect_terms
from guided_diffusion.config import create
from guided_diffusion.models.attention import fuse_attention
from guided_diffusion.models.inference import Frozen
from guided_diffusion.models.layers import to_fast_layout
from guided_diffusion.models.mixed_precision import LowPrecision, OptimizerStepper

Parts = dict[str, Callable[[], Tensor]]  # name -> the work, which returns what it computed


def half_dtype(device: torch.device) -> torch.dtype:
    """What `--half` measures on a device."""
    return torch.bfloat16 if device.type == "cpu" else torch.float16


def upstream_guidance(classifier: nn.Module, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """The gradient of log p(y | x_t), as upstream's script takes it."""
    with torch.enable_grad():
        x_in = x.detach().requires_grad_(True)
        log_p = F.log_softmax(classifier(x_in, t), dim=-1)[range(len(x)), y]
        return torch.autograd.grad(log_p.sum(), x_in)[0]


class Implementation:
    """The networks of one implementation with random weights, and one batch of inputs, both the same for all.

    :param half: float16: ours under autocast, upstream by its `use_fp16`. On a CPU, which mostly computes in no
        float16, bfloat16 for ours, and upstream, which has none, stays in float32.
    :param upstream: upstream's modules (`load_upstream()`) to measure these; None: ours.
    :param compile: compile our networks for sampling.
    """

    def __init__(
        self,
        setting: Setting,
        device: torch.device,
        half: bool = False,
        upstream: SimpleNamespace | None = None,
        compile: bool = False,
    ):
        self.half, self.upstream, self.compile = half and device.type != "cpu", upstream, compile
        self.dtype = half_dtype(device) if half else None
        size, count = setting.model.image_size, setting.batch_size
        with torch.device(device):
            self.model = self._network(setting.model, seed=0)
            self.classifier = self._network(setting.classifier, seed=1)
            torch.manual_seed(2)
            self.x_t, self.noise = torch.randn(2, count, 3, size, size)
            self.t = torch.full((count,), 12)  # index in a process of 25 steps
            self.y = torch.arange(count) % setting.classifier.num_classes
        self.labels = {"y": self.y} if setting.model.class_cond else {}

    def _network(self, config: Config, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        ours = randomize(build_network(config))
        if self.upstream is None:
            return ours
        return build_upstream_network(config, self.upstream, ours.state_dict(), self.half)

    def sampling(self) -> Parts:
        """Parts of a guided DDIM step, and the whole.

        The guidance is the classifier forward and backward and the arithmetic around it; the classifier forward keeps
        the graph for the gradient, from which a backward pass would start.
        """
        model, classifier = self.model.eval(), self.classifier.eval()
        if self.upstream:
            source, guidance = self.upstream.script_util, partial(upstream_guidance, classifier)
        else:
            source = create
            model, classifier = (Frozen(network, self.dtype, self.compile) for network in (model, classifier))
            guidance = ClassifierGuidance(classifier, ConstantRule(1.0))
        process = source.create_gaussian_diffusion(learn_sigma=True, timestep_respacing="ddim25")

        def predict(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return model(x, t, **self.labels)

        def step(model_fn: Callable, cond_fn: Callable) -> Callable[[], Tensor]:
            @torch.no_grad()
            def call() -> Tensor:
                kwargs = {"cond_fn": cond_fn, "model_kwargs": {"y": self.y}}
                return process.ddim_sample(model_fn, self.x_t, self.t, **kwargs)["sample"]

            return call

        return {
            "UNet": torch.no_grad()(lambda: predict(self.x_t, self.t * 40)),
            "classifier forward": lambda: classifier(self.x_t.detach().requires_grad_(True), self.t * 40).detach(),
            "guidance": lambda: guidance(self.x_t, self.t * 40, y=self.y),
            "sampler without networks": step(lambda x, *_, **__: torch.cat([x, x], dim=1), lambda x, *_, **__: x),
            "guided step": step(predict, guidance),
        }

    def training(self) -> Parts:
        """One optimizer step of the classifier on noised images; returns the loss."""
        network = self.classifier
        if not self.upstream:  # as ClassifierTrainLoop does
            network = LowPrecision(to_fast_layout(fuse_attention(network)), self.dtype)

        def loss() -> Tensor:
            logits = network(self.x_t, self.t * 40)
            if self.upstream:
                return F.cross_entropy(logits, self.y)
            return ect_terms(logits, self.y, weight=0.0)["loss"].mean()

        return {"classifier training step": self._step(self.classifier, loss)}

    def diffusion_training(self) -> Parts:
        """One optimizer step of the UNet on the published processes' loss; returns the loss."""
        source = self.upstream.script_util if self.upstream else create
        network = self.model if self.upstream else LowPrecision(self.model, self.dtype)  # as TrainLoop does
        process = source.create_gaussian_diffusion(learn_sigma=True, rescale_learned_sigmas=True)

        def loss() -> Tensor:
            x_start = self.x_t.clamp(-1, 1)
            return process.training_losses(network, x_start, self.t * 40, self.labels, self.noise)["loss"].mean()

        return {"diffusion training step": self._step(self.model, loss)}

    def _step(self, network: nn.Module, compute_loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """An optimizer step by our stepper or by upstream's trainer."""
        network.train()
        if self.upstream:
            trainer = self.upstream.fp16_util.MixedPrecisionTrainer(
                model=network, use_fp16=self.half, initial_lg_loss_scale=16.0
            )
        else:
            trainer = OptimizerStepper(network, self.dtype, self.x_t.device, initial_lg_loss_scale=16.0)
        opt = torch.optim.AdamW(trainer.master_params, lr=1e-6)

        def step() -> Tensor:
            trainer.zero_grad()
            loss = compute_loss()
            trainer.backward(loss)
            trainer.optimize(opt)
            return loss.detach()

        return step

"""What is measured: the same networks, weights and inputs for both sides.

The peer is used as its users use it: upstream's cond_fn, its half mode (`use_fp16`), its trainer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ed_dpm_patches import ClassifierGuidance, ConstantRule, ect_terms
from guided_diffusion.config import create
from guided_diffusion.config.builders import CHANNEL_MULT
from guided_diffusion.models import unet
from guided_diffusion.models.attention import fuse_attention
from guided_diffusion.models.inference import Frozen
from guided_diffusion.models.layers import to_fast_layout
from guided_diffusion.models.mixed_precision import LowPrecision, OptimizerStepper

CLASSES = 1000
SHARED = {"use_scale_shift_norm": True, "resblock_updown": True}


@dataclass(frozen=True)
class Setting:
    """Sizes of the networks (arguments of create_model and EncoderUNetModel) and of the batch."""

    side: int
    batch_size: int
    model: dict = field(default_factory=dict)
    classifier: dict = field(default_factory=dict)


def small(side: int, batch_size: int) -> Setting:
    """For CPUs: 64 channels, 2 blocks, attention at 16 and 8 pixels, in both networks."""
    levels = (1, 2, 2, 2)
    rates = tuple(side // pixels for pixels in (16, 8))
    model = {"num_channels": 64, "channel_mult": "1,2,2,2", "attention_resolutions": "16,8", "num_head_channels": 32}
    classifier = {"model_channels": 64, "channel_mult": levels, "attention_resolutions": rates, "num_head_channels": 32}
    return Setting(side, batch_size, {"num_res_blocks": 2, **model}, {"num_res_blocks": 2, **classifier})


def published(side: int, batch_size: int, depth: int = 2, **model) -> Setting:
    """The ImageNet models at their full size."""
    classifier = {
        "model_channels": 128, "num_res_blocks": depth, "channel_mult": CHANNEL_MULT[side], "num_head_channels": 64,
        "attention_resolutions": tuple(side // pixels for pixels in (32, 16, 8)),
    }  # fmt: skip
    base = {"num_channels": 256, "num_res_blocks": 2, "attention_resolutions": "32,16,8", "class_cond": True}
    return Setting(side, batch_size, base | model, classifier)


SETTINGS = {"32x32": small(32, 16), "64x64": small(64, 8)}
for _batch in (1, 8, 32, 64):
    SETTINGS |= {
        f"published-64-b{_batch}": published(
            64, _batch, depth=4, num_channels=192, num_res_blocks=3, num_head_channels=64,
            use_new_attention_order=True,
        ),
        f"published-128-b{_batch}": published(128, _batch, num_heads=4),
        f"published-256-b{_batch}": published(256, _batch, num_head_channels=64),
        f"published-256-uncond-b{_batch}": published(256, _batch, num_head_channels=64, class_cond=False),
    }  # fmt: skip


def our_network(build: Callable, side: int, arguments: dict) -> tuple[nn.Module, dict]:
    """A network of ours with random weights, and the arguments that a peer's twin is built from."""
    arguments = {"image_size": side, **SHARED, **arguments}
    if "num_channels" in arguments:
        arguments["learn_sigma"] = True
    network = build(**arguments)
    randomize(network)
    return network, arguments


@torch.no_grad()
def randomize(network: nn.Module) -> None:
    """Move all weights a little: zero-initialised layers would hide differences."""
    for parameter in network.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))


def classifier_arguments(setting: Setting) -> dict:
    """Of EncoderUNetModel."""
    return {"in_channels": 3, "out_channels": CLASSES, "pool": "attention", **setting.classifier}


class Pair:
    """Both sides' networks with the same random weights, and one batch of inputs on the device.

    Without a peer its networks, and its half of every part, are None.
    """

    def __init__(
        self, setting: Setting, peer: SimpleNamespace | None, device: torch.device, half: bool, compile: bool = False
    ):
        self.setting, self.peer, self.device, self.half, self.compile = setting, peer, device, half, compile
        self.dtype = torch.float16 if half else None
        torch.manual_seed(0)
        self.models = self._both(create.create_model, peer and peer.script_util.create_model, setting.model)
        torch.manual_seed(1)  # anew: building the peer's networks, if there are any, draws numbers too
        build = peer and peer.unet.EncoderUNetModel
        self.classifiers = self._both(unet.EncoderUNetModel, build, classifier_arguments(setting))
        torch.manual_seed(2)
        shape = (setting.batch_size, 3, setting.side, setting.side)
        self.x_t = torch.randn(shape, device=device)
        self.t = torch.full((setting.batch_size,), 12, device=device)  # index in a process of 25 steps
        self.y = torch.arange(setting.batch_size, device=device) % CLASSES

    def _both(self, build: Callable, build_peer: Callable, arguments: dict) -> tuple[nn.Module, nn.Module]:
        ours, arguments = our_network(build, self.setting.side, arguments)
        if build_peer is None:
            return ours.to(self.device), None
        theirs = build_peer(**arguments, use_fp16=self.half)
        theirs.load_state_dict(ours.state_dict())
        ours, theirs = ours.to(self.device), theirs.to(self.device)
        if self.half:
            theirs.convert_to_fp16()
        return ours, theirs

    def sampling(self) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
        """Parts of a guided DDIM step and the whole: name -> (ours, theirs), each returning what it computed.

        The guidance is the classifier forward and backward and the arithmetic around it.
        """
        (model, peer_model), (classifier, peer_classifier) = self.models, self.classifiers
        for network in filter(None, (peer_model, peer_classifier)):
            network.eval()
        model, classifier = (Frozen(network, self.dtype, self.compile) for network in (model, classifier))
        guidance = ClassifierGuidance(classifier, ConstantRule(1.0))

        def peer_guidance(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            with torch.enable_grad():
                x_in = x.detach().requires_grad_(True)
                log_p = F.log_softmax(peer_classifier(x_in, t), dim=-1)[range(len(x)), y]
                return torch.autograd.grad(log_p.sum(), x_in)[0]

        processes = [
            source.create_gaussian_diffusion(learn_sigma=True, timestep_respacing="ddim25")
            for source in (create, self.peer.script_util if self.peer else create)
        ]

        def unet_call(network: nn.Module) -> Callable[[], Tensor]:
            labels = {"y": self.y} if self.setting.model.get("class_cond") else {}
            return torch.no_grad()(lambda: network(self.x_t, self.t * 40, **labels))

        def step(process, network: nn.Module, cond_fn: Callable) -> Callable[[], Tensor]:
            wants_labels = self.setting.model.get("class_cond", False)

            def model_fn(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
                return network(x, t, y) if wants_labels else network(x, t)

            @torch.no_grad()
            def call() -> Tensor:
                out = process.ddim_sample(model_fn, self.x_t, self.t, cond_fn=cond_fn, model_kwargs={"y": self.y})
                return out["sample"]

            return call

        def forward(network: nn.Module) -> Callable[[], Tensor]:
            """With the graph for the gradient, which is what a backward pass would start from."""
            return lambda: network(self.x_t.detach().requires_grad_(True), self.t * 40).detach()

        def free_model(x: Tensor, *_: Tensor) -> Tensor:
            return torch.cat([x, x], dim=1)

        def free_guidance(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return x

        parts = {
            "UNet": (unet_call(model), unet_call(peer_model)),
            "classifier forward": (forward(classifier), forward(peer_classifier)),
            "guidance": (
                lambda: guidance(self.x_t, self.t * 40, y=self.y),
                lambda: peer_guidance(self.x_t, self.t * 40, self.y),
            ),
            "sampler without networks": tuple(step(process, free_model, free_guidance) for process in processes),
            "guided step": (step(processes[0], model, guidance), step(processes[1], peer_model, peer_guidance)),
        }
        return parts if self.peer else {name: (ours, None) for name, (ours, _) in parts.items()}

    def training(self) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
        """One optimizer step of the classifier on noised images; returns the loss."""
        ours, theirs = self.classifiers
        network = LowPrecision(to_fast_layout(fuse_attention(ours)), self.dtype)  # as ClassifierTrainLoop does

        def our_loss() -> Tensor:
            return ect_terms(network(self.x_t, self.t * 40), self.y, weight=0.0)["loss"].mean()

        def peer_loss() -> Tensor:
            return F.cross_entropy(theirs(self.x_t, self.t * 40), self.y)

        return {"classifier training step": (self._our_step(ours, our_loss), self._peer_step(theirs, peer_loss))}

    def diffusion_training(self) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
        """One optimizer step of the UNet on the published processes' loss; returns the loss."""
        ours, theirs = self.models
        labels = {"y": self.y} if self.setting.model.get("class_cond") else {}
        noise = torch.randn_like(self.x_t)

        def loss(network: nn.Module, source) -> Callable[[], Tensor]:
            process = source.create_gaussian_diffusion(learn_sigma=True, rescale_learned_sigmas=True)

            def call() -> Tensor:
                x_start = self.x_t.clamp(-1, 1)
                return process.training_losses(network, x_start, self.t * 40, labels, noise)["loss"].mean()

            return call

        network = LowPrecision(ours, self.dtype)  # as TrainLoop does
        peer_step = self._peer_step(theirs, loss(theirs, self.peer.script_util)) if self.peer else None
        return {"diffusion training step": (self._our_step(ours, loss(network, create)), peer_step)}

    def _our_step(self, network: nn.Module, compute_loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        network.train()
        stepper = OptimizerStepper(network, self.dtype, self.device, initial_lg_loss_scale=16.0)
        return _step(stepper, compute_loss)

    def _peer_step(self, network: nn.Module | None, compute_loss: Callable[[], Tensor]) -> Callable | None:
        if network is None:
            return None
        network.train()
        trainer = self.peer.fp16_util.MixedPrecisionTrainer(
            model=network, use_fp16=self.half, initial_lg_loss_scale=16.0
        )
        return _step(trainer, compute_loss)


def _step(trainer, compute_loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """An optimizer step by our stepper or by the peer's trainer."""
    opt = torch.optim.AdamW(trainer.master_params, lr=1e-6)

    def step() -> Tensor:
        trainer.zero_grad()
        loss = compute_loss()
        trainer.backward(loss)
        trainer.optimize(opt)
        return loss.detach()

    return step

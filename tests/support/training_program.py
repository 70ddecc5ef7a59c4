"""python training_program.py RESULT: train both kinds of network in any number of processes.

The classifier also by denoising likelihood score matching, at once and in microbatches of one image.

First one step on this rank's share of four fixed images, with fixed timesteps and noise; rank 0 keeps its
gradients in RESULT. Then three steps on data that differ from rank to rank; every rank prints whether its
weights are those of rank 0.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from guidance_methods.dlsm import DenoisingLikelihood
from guided_diffusion import dist_util, logger
from guided_diffusion.config.configs import ClassifierTrainConfig
from guided_diffusion.script_util import create_classifier, create_gaussian_diffusion, create_model
from guided_diffusion.train_util import TrainLoop
from guided_diffusion.training.classifier_loop import ClassifierTrainLoop, evaluate_plainly

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))
LABELS = torch.tensor([0, 1, 2, 3])
TIMESTEPS = torch.tensor([2, 7, 13, 19])


class FixedDiffusion:
    """The process, with noise that is a function of the image."""

    def __init__(self):
        self.process = create_gaussian_diffusion(steps=20, noise_schedule="cosine")
        self.num_timesteps = self.process.num_timesteps

    @staticmethod
    def noise(images):
        return torch.sin(1000 * images)

    def q_sample(self, images, t, noise):
        return self.process.q_sample(images, t, noise.copy_(self.noise(images)))

    def training_losses(self, model, images, t, model_kwargs=None):
        return self.process.training_losses(model, images, t, model_kwargs, noise=self.noise(images))


class FixedSampler:
    """Always this rank's share of TIMESTEPS."""

    def sample(self, batch_size, device):
        return share(TIMESTEPS).to(device), torch.ones(batch_size, device=device)


def share(values):
    return values.chunk(dist_util.get_world_size())[dist_util.get_rank()]


def fixed_data():
    while True:
        yield share(IMAGES), {"y": share(LABELS)}


def random_data():
    generator = torch.Generator().manual_seed(dist_util.get_rank())
    while True:
        yield torch.randn(2, 3, 8, 8, generator=generator), {"y": torch.randint(4, (2,), generator=generator)}


def train(kind: str, data, iterations: int, fixed: bool) -> torch.nn.Module:
    torch.manual_seed(100 + dist_util.get_rank())  # ranks start apart; the loop must bring them together
    diffusion = FixedDiffusion() if fixed else FixedDiffusion().process
    if kind != "diffusion":
        model = create_classifier(8, False, 32, 1, "4", True, True, "attention", num_classes=4,
                                  classifier_num_head_channels=32).to(dist_util.dev())  # fmt: skip
        microbatch = 1 if kind == "dlsm in microbatches" else -1
        config = ClassifierTrainConfig(iterations=iterations, batch_size=2, microbatch=microbatch)
        loop = ClassifierTrainLoop(
            model=model, diffusion=diffusion, data=data, val_data=None, config=config,
            loss_terms=lambda logits, y: {"loss": cross_entropy(logits.float(), y, reduction="none")},
            evaluate=evaluate_plainly if kind == "classifier" else denoising(),
        )  # fmt: skip
    else:
        model = create_model(8, 32, 1, class_cond=True, attention_resolutions="4", num_classes=4).to(dist_util.dev())
        loop = TrainLoop(
            model=model, diffusion=diffusion, data=data, batch_size=len(share(IMAGES)), microbatch=-1, lr=1e-3,
            ema_rate="0.9", log_interval=10, save_interval=10, resume_checkpoint="", iterations=iterations,
        )  # fmt: skip
    if fixed:
        loop.schedule_sampler = FixedSampler()
    loop.run_loop()
    return model


def denoising() -> DenoisingLikelihood:
    torch.manual_seed(1)
    unconditional = create_model(8, 32, 1, attention_resolutions="4").to(dist_util.dev())
    return DenoisingLikelihood(unconditional, FixedDiffusion().process, weight=100.0)


def main() -> None:
    dist_util.setup_dist()
    result = Path(sys.argv[1])
    logger.configure(dir=str(result.with_suffix(".logs")), format_strs=[])
    gradients = {}
    for kind in ("classifier", "dlsm", "dlsm in microbatches", "diffusion"):
        model = train(kind, fixed_data(), iterations=1, fixed=True)
        gradients[kind] = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
        weights = torch.cat([p.detach().flatten() for p in train(kind, random_data(), 3, False).parameters()])
        reference = weights.clone()
        dist.broadcast(reference, src=0)
        print(f"{kind} rank {dist_util.get_rank()} same: {torch.equal(weights, reference)}", flush=True)
    if dist_util.get_rank() == 0:
        torch.save(gradients, result)


if __name__ == "__main__":
    dist_util.run_main(main)

"""Train a diffusion model on a folder of images.

    mpiexec -n 8 python scripts/image_train.py --data_dir images/ --image_size 64 --learn_sigma \\
        --batch_size 32 --lr_anneal_steps 300000

The same command with the same --log_dir resumes from the newest checkpoint there.
"""

from __future__ import annotations

from guided_diffusion.config.configs import DataConfig, DiffusionConfig, ModelConfig, RunConfig, TrainConfig
from guided_diffusion.config.create import build_model
from guided_diffusion.config.flags import Parser
from guided_diffusion.distributed import shutdown
from guided_diffusion.training.setup import train_diffusion_model


def main() -> None:
    parsed = Parser(__doc__, DataConfig, TrainConfig, ModelConfig, DiffusionConfig, RunConfig).parse()
    config = parsed.make(ModelConfig)
    train_diffusion_model(parsed, config, config.image_size, build_model)


if __name__ == "__main__":
    shutdown.run_main(main)

"""Train the small unconditional diffusion model that experiments/digits/model/ ships, on the digits' train part.

    python experiments/digits/train_model.py    # 8 minutes of a free core; run again, it resumes

The averaged weights end as float16 in experiments/digits/model/uncond.safetensors with their config.json.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from experiments.digits.data import write_parts
from guided_diffusion.config.configs import DiffusionConfig, ModelConfig
from guided_diffusion.config.flags import ParsedFlags
from guided_diffusion.io import checkpoint

ROOT = Path(__file__).resolve().parents[2]

# The published recipe (learned variance, linear schedule, MSE + variational bound) at the digits' size.
FLAGS = (
    "--image_size 8 --in_channels 1 --random_flip False --num_channels 32 --num_res_blocks 1 "
    "--num_head_channels 32 --attention_resolutions 4 --dropout 0.1 --learn_sigma True --diffusion_steps 1000 "
    "--noise_schedule linear --batch_size 64 --lr 1e-3 --ema_rate 0.999 "
    "--log_interval 100 --save_interval 500 --keep 2"
)


def main() -> None:
    """Train, then store the averaged weights as float16, with the flags that build the model and its process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000, help="training steps (default 5000)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "demo_model", help="training's folder")
    parser.add_argument("--model_dir", type=Path, default=Path(__file__).with_name("model"), help="for the model")
    args = parser.parse_args()
    data, log_dir = args.work.absolute() / "data", args.work.absolute() / "training"
    write_parts(data)
    command = [sys.executable, "scripts/image_train.py", "--data_dir", str(data / "train"), "--log_dir", str(log_dir)]
    command += shlex.split(FLAGS) + ["--lr_anneal_steps", str(args.steps)]
    print(shlex.join(command), flush=True)
    subprocess.run(command, cwd=ROOT, env={"OMP_NUM_THREADS": "1", **os.environ}, check=True)
    average, model = sorted(log_dir.glob("ema_*.pt"))[-1], args.model_dir / "uncond.safetensors"
    checkpoint.save({name: tensor.half() for name, tensor in checkpoint.read_state_dict(average).items()}, model)
    flags = ParsedFlags(checkpoint.read_config(average))
    checkpoint.write_config(model.parent, flags.resolve(ModelConfig, DiffusionConfig))
    print(f"{model.absolute()}: {model.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

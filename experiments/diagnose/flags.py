"""The flags of `ed-dpm diagnose`."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.diagnose.diagnosis import DEFAULT_RULES
from guided_diffusion.config.configs import ClassifierConfig, DiffusionConfig, ModelConfig, ReadingConfig, RunConfig
from guided_diffusion.config.flags import ParsedFlags, Parser, flag
from guided_diffusion.data import image_labels
from guided_diffusion.errors import InputError


@dataclass(frozen=True)
class DiagnoseConfig:
    """Diagnosis."""

    model_path: str = flag("", "checkpoint of the diffusion model, unconditional, or its training's folder")
    cond_model_path: str = flag("", "class-conditional one, whose difference to it the gradient is compared with")
    data_dir: str = flag("", "held-out images: a folder, a zip or tar archive, or an npz with arr_0 and labels arr_1")
    labels: str = flag("auto", image_labels.HELP)
    out: str = flag("", "folder of all files (--log_dir is the same)")
    num_images: int = flag(1024, "images to measure, chosen at random; more than there are: all", minimum=4)
    levels: int = flag(20, "noise levels, evenly spaced", minimum=1)
    rules: str = flag(DEFAULT_RULES, "guidance rules to compare, each with one scale over all t")
    batch_size: int = flag(16, "images per batch in each process", minimum=1)
    replicates: int = flag(1000, "bootstrap draws of the images", minimum=2)


def parse(description: str) -> ParsedFlags:
    """Parse the command line; `classifier_path` is a list of words [NAME=]FILE. InputError where one is missing."""
    parser = Parser(
        description, DiagnoseConfig, ReadingConfig, ModelConfig, ClassifierConfig, DiffusionConfig, RunConfig
    )
    parser.add_argument(
        "--classifier_path", nargs="+", action="extend", metavar="[NAME=]FILE", default=[],
        help="checkpoints of one or more noise-aware classifiers, or their trainings' folders (no default)",
    )  # fmt: skip
    parsed = parser.parse()
    if not parsed.values["classifier_path"]:
        raise InputError("--classifier_path: missing, expected one or more checkpoints")
    if not (parsed.values.get("out") or parsed.values.get("log_dir")):
        raise InputError("--out: missing, expected a folder for all files")
    if parsed.values.get("timestep_respacing"):
        raise InputError("--timestep_respacing: found in a diagnosis, expected none: --levels chooses the timesteps")
    return parsed

"""A small experiment spec, and a script's command read back by its own parser."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from experiments.cifar10 import __main__ as ablation
from guided_diffusion.config.flags import Parser
from tests.support.helpers import ROOT


@cache
def script_parser(name: str) -> Parser:
    """The parser that a script builds."""

    class Found(Exception):
        pass

    class Finder(Parser):
        def parse(self, argv=None):
            raise Found(self)

    module = importlib.import_module(f"scripts.{name}")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Found) as found:
        patch.setattr(module, "Parser", Finder)
        module.main()
    parser = found.value.args[0]
    parser.__class__ = Parser
    return parser


def parse_command(command: Sequence[str], processes: int) -> tuple[str, dict, dict]:
    """Parse a printed command by its script's parser: script, flags as given, flags with the defaults."""
    launcher = ["mpiexec", "-n", str(processes), "python"] if processes > 1 else ["python"]
    program, arguments = command[len(launcher)], command[len(launcher) + 1 :]
    assert list(command[: len(launcher)]) == launcher and (ROOT / program).is_file()
    parser = script_parser(Path(program).stem)
    names = [word[2:] for word in arguments[::2]]
    defaults = parser._defaults_by_name
    # The parser takes any unique beginning of a flag; a recipe has to spell it out.
    assert set(names) <= set(defaults) and len(set(names)) == len(names)
    given = parser.parse(arguments).values
    return Path(program).stem, given, defaults | given


UNET_SPEC = """checkpoint = "uncond"
parameters = 0
[flags]
image_size = 8
num_channels = 32
num_res_blocks = 1
channel_mult = "1,2"
attention_resolutions = "4"
num_head_channels = 32
learn_sigma = true
noise_schedule = "cosine"
[training]
batch_size = 16
script = "image_train"
[training.flags]
lr_anneal_steps = 6
lr = 1e-3
ema_rate = "0.5"
"""

CLASSIFIER_SPEC = """checkpoint = "{name}"
parameters = 0
[flags]
image_size = 8
num_classes = 4
classifier_width = 32
classifier_depth = 1
classifier_channel_mult = "1,2"
classifier_attention_resolutions = "4"
classifier_num_head_channels = 32
"""

TRAINING_SPEC = """[training]
batch_size = 16
part = "{part}"
[training.flags]
iterations = 20
noised = {noised}
lr = 1e-3
random_crop = false
eval_interval = 10
"""

DERIVED_SPEC = """[derived]
program = "experiments/cifar10/calibrate.py"
network = "plain"
part = "evaluator"
"""

SPEC = """title = "A trial"
base = "base"
data = "experiments/cifar10/data.py --size 8"
features = "features"
seeds = [1, 2]
[parts.halves]
program = "experiments/cifar10/subclasses.py --clusters 2"
network = "features"
part = "train"
[replace]
num_samples = 48
batch_size = 12
timestep_respacing = { ddim25 = "ddim5" }
"""

SWEEPS = {
    "uncond-plain-constant": [0.5, 8.0],
    "uncond-plain-entropy": [1.0, 2.0],
    "uncond-calibrated-constant": [2.0, 4.0],
    "uncond-subclasses-constant": [1.0, 2.0],
}

KEYS = {
    "constant": "uncond-plain-constant",
    "entropy": "uncond-plain-entropy",
    "calibrated": "uncond-calibrated-constant",
    "subclasses": "uncond-subclasses-constant",
}

ROW_SPEC = """[[rows]]
key = "{key}"
method = "{key}"
sweep = "{sweep}"
"""

TABLE_SPEC = 'title = "Four rows"\n' + "".join(ROW_SPEC.format(key=key, sweep=sweep) for key, sweep in KEYS.items())

def write_spec(folder: Path) -> Path:
    """The full protocol's runs, cut down, with networks that fit into a test."""
    texts = {
        "book.toml": SPEC,
        "networks/uncond.toml": UNET_SPEC,
        "networks/plain.toml": CLASSIFIER_SPEC.format(name="plain") + TRAINING_SPEC.format(part="train", noised="true"),
        "networks/features.toml": CLASSIFIER_SPEC.format(name="features")
        + TRAINING_SPEC.format(part="evaluator", noised="false"),
        "networks/subclasses.toml": CLASSIFIER_SPEC.format(name="subclasses").replace("classes = 4", "classes = 8")
        + TRAINING_SPEC.format(part="halves", noised="true"),
        "networks/calibrated.toml": CLASSIFIER_SPEC.format(name="calibrated") + DERIVED_SPEC,
        "tables/rules.toml": TABLE_SPEC,
    }
    for name, values in SWEEPS.items():
        recipe = (ablation.RECIPES / "full" / "runs" / f"{name}.toml").read_text()
        texts[f"base/runs/{name}.toml"] = recipe[: recipe.index("values = ")] + f"values = {values}\n"
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder

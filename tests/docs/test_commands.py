"""Every command in the documentation runs: at its real size where that is small, else with smaller values.

Only values that say how large or where (sizes, counts, paths) are exchanged; every flag stays as written. The
checkpoints are random networks built from the command's own flags. What is documented with a launcher runs in
two processes; the launchers themselves are tested in scripts/test_scripts.py.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluations.convert import npz_to_folder
from guided_diffusion.config.configs import ClassifierConfig, DiffusionConfig, ModelConfig, SuperResConfig
from guided_diffusion.config.flags import ParsedFlags, Parser
from guided_diffusion.io import checkpoint
from guided_diffusion.script_util import build_classifier, build_model, build_super_res_model
from tests.support.documents import documented_commands
from tests.support.helpers import ROOT, make_images

SMALLER = {
    "image_size": "8", "large_size": "16", "small_size": "8", "num_channels": "32", "num_head_channels": "32",
    "attention_resolutions": "4", "classifier_attention_resolutions": "4", "num_samples": "4", "batch_size": "2",
    "iterations": "2", "lr_anneal_steps": "2", "timestep_respacing": "ddim5",
}  # fmt: skip
# What a command leaves at a default that is too large for a test.
ADDED = {
    "classifier": {"image_size": "8", "classifier_width": "32", "classifier_num_head_channels": "32"},
    "model": {"image_size": "8", "num_channels": "32", "attention_resolutions": "4"},
    "super_res": {"large_size": "16", "small_size": "8", "num_channels": "32", "attention_resolutions": "4"},
}
NETWORKS = {
    "classifier_train": ["classifier"], "classifier_sample": ["model", "classifier"], "image_train": ["model"],
    "image_sample": ["model"], "image_nll": ["model"], "super_res_train": ["super_res"],
    "super_res_sample": ["super_res"],
}  # fmt: skip


PROGRAMS = [(where, c) for where, c in documented_commands() if re.search(r"\w+\.py\b", c)]


def test_there_are_commands_to_test():
    wheres = {where for where, _ in documented_commands()}
    assert {"README.md", "evaluations/README.md", "classifier_sample.py"} <= wheres
    assert len(PROGRAMS) >= 12


@pytest.mark.parametrize("command", sorted({c for _, c in documented_commands() if c.startswith("make ")}))
def test_make_targets_exist(command):
    subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize(("where", "command"), PROGRAMS, ids=[f"{w}:{i}" for i, (w, _) in enumerate(PROGRAMS)])
def test_documented_command_runs(where, command, run, tmp_path):
    words = shlex.split(command)
    program = next(i for i, word in enumerate(words) if word.endswith(".py"))
    name = Path(words[program]).stem
    if not (ROOT / words[program]).is_file():
        pytest.fail(f"{where}: no such program: {words[program]}")
    if name == "evaluator":
        arguments = evaluator_arguments(words[program + 1 :], tmp_path)
    elif name in ("make_reference", "convert"):
        arguments = image_file_arguments(name, words[program + 1 :], tmp_path)
    elif name == "train_model":
        arguments = ["--steps", "2", "--work", str(tmp_path), "--model_dir", str(tmp_path / "model")]
    elif name == "calibrate":  # as it stands, but for where the result goes
        arguments = [str(ROOT / word) if word.startswith("results/") else word for word in words[program + 1 : -1]]
        arguments.append(str(tmp_path / "model.safetensors"))
    elif name in NETWORKS:
        arguments = script_arguments(name, words[program + 1 :], tmp_path)
    else:
        pytest.fail(f"{where}: nothing here knows how to test {words[program]}")
    several = words[0] in ("mpiexec", "srun", "torchrun")
    run(ROOT / words[program], arguments, launcher="fork2" if several else "fork", timeout=240)


def read_flags(words: list[str]) -> dict[str, str]:
    """The flags of a command as written; a flag without a value is a boolean."""
    flags: dict[str, str] = {}
    for i, word in enumerate(words):
        if word.startswith("--"):
            following = words[i + 1] if i + 1 < len(words) else "--"
            flags[word[2:]] = "True" if following.startswith("--") else following
    return flags


def script_arguments(name: str, words: list[str], folder: Path) -> list[str]:
    flags = {flag: SMALLER.get(flag, value) for flag, value in read_flags(words).items()}
    for network in NETWORKS[name]:
        flags = ADDED[network] | flags
    data = make_images(folder / "images", classes=3, size=16)
    for flag in ("data_dir", "val_data_dir"):
        if flag in flags:
            flags[flag] = str(data)
    if "log_dir" in flags:
        flags["log_dir"] = str(folder / "out")
    if name == "classifier_train":
        flags |= {"iterations": "2"}
    if "model_path" in flags and name == "classifier_train":
        flags = ADDED["model"] | flags
        flags["model_path"] = str(write_random_checkpoint("model", flags, folder / "model.pt"))
    if name.endswith("train"):
        return [word for flag, value in flags.items() for word in (f"--{flag}", value)]

    flags |= {"diffusion_steps": "20"}
    if name != "classifier_sample" or "num_samples" not in flags:
        flags = {"num_samples": "4", "batch_size": "2"} | flags
    for flag, network in zip(("model_path", "classifier_path"), NETWORKS[name], strict=False):
        assert flag in flags, f"{name} is documented without --{flag}"
        flags[flag] = str(write_random_checkpoint(network, flags, folder / f"{network}.pt"))
    if "base_samples" in flags:
        flags["base_samples"] = str(write_images(folder / "base.npz", side=8))
    return [word for flag, value in flags.items() for word in (f"--{flag}", value)]


def write_random_checkpoint(kind: str, flags: dict[str, str], path: Path) -> Path:
    """A network with the command's architecture, and no config.json: the flags alone must describe it."""
    classes = {"model": ModelConfig, "classifier": ClassifierConfig, "super_res": SuperResConfig}
    parser = Parser("", *classes.values(), DiffusionConfig)
    known = {option for action in parser._actions for option in action.option_strings}
    words = [word for flag, value in flags.items() if f"--{flag}" in known for word in (f"--{flag}", value)]
    given = parser.parse(words)
    config, diffusion = given.make(classes[kind]), given.make(DiffusionConfig)
    if kind == "classifier":
        network = build_classifier(config)
    else:
        network = (build_model if kind == "model" else build_super_res_model)(config, diffusion)
    checkpoint.save(network.state_dict(), path)
    return path


def write_images(path: Path, side: int, count: int = 6) -> Path:
    images = np.random.default_rng(len(path.name)).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    np.savez(path, images, np.arange(count) % 3)
    return path


def evaluator_arguments(words: list[str], folder: Path) -> list[str]:
    """Tiny files; without a network and its graph file, a random classifier stands in for Inception."""
    flags = ADDED["classifier"] | {"num_classes": "3"}
    features = write_random_checkpoint("classifier", flags, folder / "features.pt")
    small = ClassifierConfig(image_size=8, classifier_width=32, classifier_num_head_channels=32, num_classes=3)
    checkpoint.write_config(folder, dataclasses.asdict(small))
    positional = [str(write_images(folder / f"{name}.npz", side=8)) for name in ("reference", "samples")]
    rest = {flag: value for flag, value in read_flags(words).items() if flag != "inception"}
    rest |= {"features": str(features)}
    rest |= {flag: value for flag, value in {"num_samples": "5", "resize": "8"}.items() if flag in rest}
    if "paired" in rest:
        rest["paired"] = str(write_images(folder / "other.npz", side=8))
    rest |= {flag: str(folder / flag) for flag in ("cache", "json") if flag in rest}
    switches = [f"--{flag}" for flag, value in rest.items() if value == "True"]
    return [*positional, *switches, *(w for f, value in rest.items() if value != "True" for w in (f"--{f}", value))]


def image_file_arguments(name: str, words: list[str], folder: Path) -> list[str]:
    """Of the programs that turn folders into files, or files into folders."""
    if name == "make_reference":
        network = evaluator_arguments([], folder)[2:]
        images = make_images(folder / "images", classes=3, size=16)
        return [str(images), str(folder / "reference.npz"), "--image_size", "8", *network]
    source = write_images(folder / "samples.npz", side=8)
    if words[0].endswith(".npz"):
        return [str(source), str(folder / "pictures")]
    npz_to_folder(source, folder / "pictures")
    return [str(folder / "pictures"), str(folder / "again.npz")]


@pytest.mark.slow
def test_the_readme_describes_the_published_model():
    """The flags as written, at full size (on the meta device): the parameter count of the published file."""
    (command,) = (c for where, c in PROGRAMS if where == "README.md" and "classifier_sample.py" in c)
    words = [w for flag, value in read_flags(shlex.split(command)).items() for w in (f"--{flag}", value)]
    given = ParsedFlags(vars(Parser("", ModelConfig, DiffusionConfig).parse_known_args(words)[0]))
    with torch.device("meta"):
        network = build_model(given.make(ModelConfig), given.make(DiffusionConfig))
    assert sum(p.numel() for p in network.parameters()) == 552_814_086


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_readmes_install_line_is_enough_for_its_commands():
    """The extras that its commands import from: mpiexec, TensorFlow, figures, digits."""
    (line,) = re.findall(r'`pip install -e "\.\[(.*?)\]"`', (ROOT / "README.md").read_text())
    assert set(line.split(",")) >= {"mpi", "inception", "figures", "demo"}


def test_license_and_version(monkeypatch):
    import setuptools

    import guided_diffusion

    found: dict = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: found.update(options))
    exec(compile((ROOT / "setup.py").read_text(), ROOT / "setup.py", "exec"), {"__file__": str(ROOT / "setup.py")})
    assert found["license"] == "MIT" and "MIT License" in (ROOT / "LICENSE").read_text()
    assert found["version"] == guided_diffusion.__version__
    assert f"## {found['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert {"figures", "demo", "mpi", "inception"} <= set(found["extras_require"])

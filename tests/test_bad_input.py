"""Malformed input: one clear line, a non-zero status on every rank, soon, and nothing overwritten."""

from __future__ import annotations

import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import CLASSIFIER, DIFFUSION, MODEL, UNET, make_checkpoint, make_images, tree

SOON = 60  # seconds; a hang would last for ever, a busy machine needs some of them

DRAW = {"num_samples": 4, "batch_size": 2, "timestep_respacing": "4", "log_dir": "out"}
TRAIN = {"data_dir": "{images}", "iterations": 2, "batch_size": 2, "log_dir": "out", **DIFFUSION}
BASE = {
    "classifier_sample": {"model_path": "{model}", "classifier_path": "{classifier}", **DRAW},
    "image_sample": {"model_path": "{model}", **DRAW},
    "super_res_sample": {"model_path": "{super_res}", "base_samples": "{base_samples}", **DRAW},
    "classifier_train": TRAIN | CLASSIFIER,
    "image_train": TRAIN | MODEL,
    "super_res_train": TRAIN | UNET | {"large_size": 8, "small_size": 4},
    "image_nll": {"model_path": "{model}", "data_dir": "{images}", "num_samples": 2, "log_dir": "out"},
}


@dataclass(frozen=True)
class Case:
    """A script's base command with some flags replaced, and what its one line must say."""

    name: str
    script: str
    flags: dict
    says: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.script}: {self.name}"


def cases(script: str, *rows: tuple) -> list[Case]:
    return [Case(name, script, flags, says) for name, flags, *says in rows]


CHECKPOINTS = cases(
    "classifier_sample",
    ("no model", {"model_path": ""}, "--model_path", "missing"),
    ("no classifier", {"classifier_path": ""}, "--classifier_path", "missing"),
    ("missing checkpoint", {"model_path": "{nowhere}/model.pt"}, "nowhere/model.pt: no such file"),
    ("missing classifier", {"classifier_path": "{nowhere}/model.pt"}, "nowhere/model.pt: no such file"),
    ("folder", {"model_path": "{images}"}, "--model_path", "images: no such file"),
    ("truncated checkpoint", {"model_path": "{truncated}"}, "truncated"),
    ("truncated safetensors", {"model_path": "{truncated_safetensors}"}, "model.safetensors", "truncated"),
    ("text file", {"model_path": "{text}"}, "model.pt", "not a checkpoint"),
    ("list of tensors", {"model_path": "{list}"}, "expected a state dict"),
    ("wrong key", {"model_path": "{wrong_key}"}, "1 missing: out.2.bias", "1 unexpected: out.2.bios"),
    ("wrong shape", {"classifier_path": "{wrong_shape}"}, "of the wrong shape", "found", "expected"),
    ("malicious pickle", {"model_path": "{malicious}"}, "refused"),
    ("other architecture", {"model_path": "{bare}", **MODEL, "num_channels": 64}, "does not fit"),
    ("config.json is no JSON", {"model_path": "{no_json}"}, "config.json", "expected JSON"),
    ("config.json is a list", {"model_path": "{json_list}"}, "config.json", "JSON object"),
    ("config.json with a text for a number", {"model_path": "{odd_json}"}, "config.json", "image_size", "'8'"),
    ("contradiction", {"num_channels": 64, "num_heads": 2}, "--num_channels 64", "--num_heads 2", "config.json"),
    ("image sizes differ", {"classifier_path": "{classifier16}"}, "--image_size", "8", "16"),
    ("channels differ", {"classifier_path": "{grey_classifier}"}, "--in_channels", "3", "1"),
    ("classes differ", {"model_path": "{five_classes}"}, "--num_classes", "5", "4"),
)

FLAGS = cases(
    "classifier_sample",
    ("class that is not there", {"classes": "99"}, "--classes", "found 99", "0 to 3"),
    ("class that is no number", {"classes": "dog"}, "--classes", "'dog'"),
    ("no samples", {"num_samples": 0}, "--num_samples", "found 0", "at least 1"),
    ("no batch", {"batch_size": 0}, "--batch_size", "found 0"),
    ("unknown respacing", {"timestep_respacing": "often"}, "timestep_respacing", "'often'"),
    ("no such stride", {"timestep_respacing": "ddim60"}, "timestep_respacing", "ddim60"),
    ("ddim without number", {"timestep_respacing": "ddim"}, "timestep_respacing", "ddim"),
    ("more steps than there are", {"timestep_respacing": "21"}, "timestep_respacing", "21", "20"),
    ("no steps", {"timestep_respacing": "0"}, "--timestep_respacing", "at least one"),
    ("negative steps", {"timestep_respacing": "-3"}, "timestep_respacing", "-3"),
    ("unknown schedule", {"noise_schedule": "quadratic"}, "--noise_schedule", "'quadratic'", "linear, cosine"),
    ("unknown pool", {"classifier_pool": "max"}, "--classifier_pool", "'max'", "attention"),
    ("negative scale", {"classifier_scale": -1}, "--classifier_scale", "at least 0"),
    ("infinite scale", {"classifier_scale": "inf"}, "--classifier_scale", "inf"),
    ("scale nan", {"classifier_scale": "nan"}, "--classifier_scale", "nan"),
    ("cap 0", {"eds_cap": 0}, "--eds_cap", "found 0"),
    ("cap nan", {"eds_cap": "nan"}, "--eds_cap", "found nan"),
    ("no boolean", {"eds": "maybe"}, "--eds", "'maybe'", "boolean"),
    ("2 is no boolean", {"use_ddim": 2}, "--use_ddim", "'2'", "boolean"),
    ("unknown flag", {"class_scale": 2}, "--class_scale"),
    ("negative seed", {"seed": -1}, "--seed", "found -1"),
    ("log_dir is a file", {"log_dir": "{text}"}, "log directory", "model.pt"),
    ("log_dir below a file", {"log_dir": "{text}/sub"}, "log directory", "model.pt"),
    ("trace below a file", {"trace": "{text}/trace.npz"}, "--trace", "model.pt"),
    ("trace is a folder", {"trace": "{images}"}, "--trace", "images"),
) + cases(
    "image_sample",
    ("no model", {"model_path": ""}, "--model_path", "missing"),
    ("classes of a model without", {"classes": "1"}, "--classes"),
    ("word for a number", {"num_samples": "many"}, "--num_samples", "'many'", "whole number"),
)  # fmt: skip

BASE_SAMPLES = cases(
    "super_res_sample",
    ("none", {"base_samples": ""}, "--base_samples", "npz"),
    ("missing", {"base_samples": "{nowhere}/base.npz"}, "--base_samples", "nowhere/base.npz"),
    ("no arr_0", {"base_samples": "{no_arr_0}"}, "--base_samples", "arr_0"),
    ("object array", {"base_samples": "{objects}"}, "--base_samples", "objects.npz"),
    ("truncated", {"base_samples": "{truncated_npz}"}, "--base_samples", "truncated.npz"),
    ("npy", {"base_samples": "{npy}"}, "--base_samples", "base.npy"),
    ("text", {"base_samples": "{text}"}, "--base_samples", "model.pt"),
    ("other size", {"base_samples": "{large}"}, "--base_samples", "[2, 8, 8, 3]", "[N, 4, 4, 3]"),
    ("float", {"base_samples": "{floats}"}, "--base_samples", "float64", "uint8"),
    ("no images", {"base_samples": "{none}"}, "--base_samples", "[0, 4, 4, 3]"),
    ("no labels", {"base_samples": "{base_samples}", "model_path": "{super_res_classes}"}, "--base_samples", "arr_1"),
    ("unknown label", {"base_samples": "{label_9}", "model_path": "{super_res_classes}"}, "label", "9", "0 to 3"),
    ("few labels", {"base_samples": "{one_label}", "model_path": "{super_res_classes}"}, "--base_samples", "arr_1"),
)

TRAINING = (
    cases(
        "classifier_train",
        ("no data", {"data_dir": ""}, "data_dir", "empty string"),
        ("missing folder", {"data_dir": "{nowhere}"}, "data_dir", "nowhere"),
        ("folder without images", {"data_dir": "{empty}"}, "data_dir", "empty", "found none"),
        ("file for a folder", {"data_dir": "{text}"}, "data_dir", "model.pt"),
        ("corrupt image", {"data_dir": "{corrupt}", "batch_size": 7}, "c1_", "cannot be read as an image"),
        ("fewer images than a batch", {"batch_size": 100}, "data_dir", "24 images", "batch of 100"),
        ("too few classes", {"num_classes": 3}, "--num_classes", "found 3", "4 classes"),
        ("another class to validate", {"val_data_dir": "{five}"}, "c4", "classes"),
        ("negative weight", {"ect_weight": -0.1}, "--ect_weight", "found -0.1", "at least 0"),
        ("rate nan", {"lr": "nan"}, "--lr", "found nan"),
        ("respacing", {"timestep_respacing": "10"}, "--timestep_respacing"),
        ("heads do not divide", {"classifier_num_head_channels": 24}, "--classifier_num_head_channels"),
        ("width of 48", {"classifier_width": 48}, "--classifier_width"),
        ("image_size without levels", {"image_size": 9}, "--image_size", "found 9"),
        ("image_size not divisible", {"image_size": 9, "classifier_channel_mult": "1,2"}, "--image_size", "of 2"),
        ("attention at letters", {"classifier_attention_resolutions": "a"}, "--classifier_attention_resolutions"),
        ("multiples of letters", {"classifier_channel_mult": "a"}, "--classifier_channel_mult", "'a'"),
        ("2 channels", {"in_channels": 2}, "--in_channels", "found 2", "1, 3"),
        ("no checkpoint to resume", {"resume_checkpoint": "{nowhere}/model000002.pt"}, "model000002.pt: no such file"),
        ("no optimizer to resume", {"resume_checkpoint": "{classifier}"}, "opt000000.pt"),
        ("diverging", {"lr": 1e30, "iterations": 5, "weight_decay": 1}, "diverged", "--lr"),
    )
    + cases(
        "image_train",
        ("no data", {"data_dir": ""}, "data_dir", "empty string"),
        ("corrupt image", {"data_dir": "{corrupt}", "batch_size": 7}, "c1_", "cannot be read as an image"),
        ("unknown sampler", {"schedule_sampler": "best"}, "--schedule_sampler", "'best'", "uniform"),
        ("average in letters", {"ema_rate": "slow"}, "--ema_rate", "'slow'"),
        ("average above 1", {"ema_rate": "0.9,1.5"}, "--ema_rate", "1.5"),
        ("no dropout of 2", {"dropout": 2}, "--dropout", "found 2"),
        ("never save", {"save_interval": 0}, "--save_interval", "found 0"),
        ("too few steps for linear", {"diffusion_steps": 9, "noise_schedule": "linear"}, "diffusion_steps", "9"),
        ("heads do not divide", {"num_heads": 5}, "--num_heads"),
        ("head channels do not divide", {"num_head_channels": 24}, "--num_head_channels"),
        ("heads of no channels", {"num_head_channels": 0}, "--num_head_channels"),
        ("image_size not divisible", {"image_size": 9, "channel_mult": "1,2"}, "--image_size", "multiple of 2"),
        ("microbatch 0", {"microbatch": -2}, "--microbatch", "found -2"),
        ("wrong checkpoint to resume", {"resume_checkpoint": "{classifier}"}, "does not fit"),
    )
    + cases(
        "super_res_train",
        ("missing folder", {"data_dir": "{nowhere}"}, "data_dir", "nowhere"),
        ("small above large", {"small_size": 16}, "--small_size", "16"),
    )
    + cases(
        "image_nll",
        ("no model", {"model_path": ""}, "--model_path", "missing"),
        ("no data", {"data_dir": ""}, "data_dir", "empty string"),
        ("corrupt image", {"data_dir": "{corrupt}", "num_samples": 20}, "c1_", "cannot be read as an image"),
    )
)

ALL = CHECKPOINTS + FLAGS + BASE_SAMPLES + TRAINING


def pick(*names: str) -> list[Case]:
    found = [case for case in ALL if str(case) in names]
    assert len(found) == len(names), "a name is misspelt"
    return found


ON_TWO_RANKS = pick(
    "classifier_sample: truncated checkpoint",
    "classifier_sample: wrong shape",
    "classifier_sample: malicious pickle",
    "classifier_sample: config.json is no JSON",
    "classifier_sample: contradiction",
    "classifier_sample: image sizes differ",
    "classifier_sample: class that is not there",
    "classifier_sample: no such stride",
    "classifier_sample: no boolean",
    "classifier_sample: unknown flag",
    "classifier_sample: log_dir below a file",
    "classifier_sample: trace below a file",
    "super_res_sample: no arr_0",
    "super_res_sample: object array",
    "super_res_sample: unknown label",
    "classifier_train: no data",
    "classifier_train: corrupt image",
    "classifier_train: too few classes",
    "classifier_train: heads do not divide",
    "classifier_train: no optimizer to resume",
    "classifier_train: diverging",
    "image_train: wrong checkpoint to resume",
    "image_nll: corrupt image",
)

THROUGH_MPIEXEC = pick(
    "classifier_sample: missing checkpoint",
    "classifier_sample: malicious pickle",
    "classifier_sample: unknown flag",
    "super_res_sample: no arr_0",
    "classifier_train: corrupt image",
)


class Malicious:
    """Unpickling it would create a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def files(tmp_path_factory, images, checkpoints) -> dict[str, str]:
    """Every file and folder that the cases name."""
    folder = tmp_path_factory.mktemp("bad")
    config = (checkpoints["model"].parent / "config.json").read_text()
    state = torch.load(checkpoints["model"], weights_only=True)
    whole = checkpoints["model"].read_bytes()

    def beside_config(name: str, data: bytes = b"", text: str = config, file: str = "model.pt") -> Path:
        path = folder / name / file
        path.parent.mkdir()
        path.write_bytes(data)
        (path.parent / "config.json").write_text(text)
        return path

    found = dict(checkpoints) | {
        "images": images,
        "nowhere": folder / "nowhere",
        "truncated": beside_config("truncated", whole[: len(whole) // 2]),
        "truncated_safetensors": beside_config("short", b"\x00" * 40, file="model.safetensors"),
        "text": beside_config("text", b"these are no weights\n"),
        "no_json": beside_config("no_json", whole, "{not json"),
        "json_list": beside_config("json_list", whole, "[1, 2]"),
        "odd_json": beside_config("odd_json", whole, config.replace('"image_size": 8', '"image_size": "8"')),
        "bare": make_checkpoint(folder / "bare", "model", config_json=False),
        "classifier16": make_checkpoint(folder / "classifier16", "classifier", image_size=16),
        "grey_classifier": make_checkpoint(folder / "grey_classifier", "classifier", in_channels=1),
        "five_classes": make_checkpoint(folder / "five_classes", "model", class_cond=True, num_classes=5),
        "super_res_classes": make_checkpoint(folder / "super_res_classes", "super_res", class_cond=True),
        "wrong_shape": make_checkpoint(folder / "wrong_shape", "classifier", classifier_width=64),
        "empty": folder / "empty",
        "corrupt": make_images(folder / "corrupt", classes=2, per_class=12),
        "five": make_images(folder / "five", classes=5),
    }
    shutil.copy(checkpoints["classifier"].parent / "config.json", found["wrong_shape"].parent)
    renamed = {("out.2.bios" if key == "out.2.bias" else key): value for key, value in state.items()}
    for name, content in {"wrong_key": renamed, "list": list(state.values())}.items():
        found[name] = beside_config(name)
        torch.save(content, found[name])
    found["malicious"] = beside_config("malicious")
    torch.save(state | {"extra": Malicious(folder / "executed")}, found["malicious"])
    found["empty"].mkdir()
    for path in found["corrupt"].glob("c1_*.png"):
        path.write_bytes(path.read_bytes()[:60])

    pictures = np.zeros((2, 4, 4, 3), np.uint8)
    arrays = {
        "base_samples": {"arr_0": pictures},
        "no_arr_0": {"images": pictures},
        "large": {"arr_0": np.zeros((2, 8, 8, 3), np.uint8)},
        "floats": {"arr_0": pictures.astype(float)},
        "none": {"arr_0": pictures[:0]},
        "label_9": {"arr_0": pictures, "arr_1": np.array([0, 9])},
        "one_label": {"arr_0": pictures, "arr_1": np.array([0])},
        "objects": {"arr_0": np.array([Malicious(folder / "executed")] * 2, dtype=object)},
    }
    for name, content in arrays.items():
        found[name] = folder / f"{name}.npz"
        np.savez(found[name], **content)
    found["truncated_npz"] = folder / "truncated.npz"
    found["truncated_npz"].write_bytes(found["base_samples"].read_bytes()[:150])
    found["npy"] = folder / "base.npy"
    np.save(found["npy"], pictures)
    return {name: str(path) for name, path in found.items()}


@pytest.fixture
def fails(run, files, tmp_path):
    """Runs a case in a folder that holds results already; returns how it ended."""

    def check(case: Case, launcher: str):
        out = tmp_path / "out"
        out.mkdir()
        for name in ("samples_4x8x8x3.npz", "model000000.pt", "opt000000.pt", "vb_terms.npz", "config.json"):
            (out / name).write_bytes(b"precious")
        flags = {name: str(value).format_map(files) for name, value in (BASE[case.script] | case.flags).items()}
        ended = run(case.script, flags, launcher=launcher, fails=True, timeout=SOON)

        assert len(ended.error_lines) >= 1, ended
        for line in ended.error_lines:
            assert all(fragment in line for fragment in case.says), line
        in_training = "diverged" in case.says or "c1_" in case.says  # these fail in the midst of it
        # With no launcher to end it, a rank may notice that its peer has gone, and say so. That is all it may say.
        lost_peer = launcher == "fork2" and in_training and "onnection" in ended.stderr
        assert "Traceback" not in ended.stderr or (lost_peer and "InputError" not in ended.stderr), ended.stderr
        assert all(status in (1, 2) for status in ended.statuses) or launcher == "mpiexec"
        kept = {name: data for name, data in tree(out).items() if not name.startswith(("log", "progress"))}
        if in_training:
            kept["config.json"] = b"precious"  # written when training begins
        kept.pop("run.json", None)
        assert len(kept) == 5 and set(kept.values()) == {b"precious"}, sorted(kept)
        assert not (Path(files["nowhere"]).parent / "executed").exists(), "a pickle was executed"
        return ended

    return check


def test_the_marker_of_the_malicious_files_works(tmp_path):
    pickle.loads(pickle.dumps(Malicious(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("case", ALL, ids=str)
def test_alone(fails, case):
    ended = fails(case, "fork")
    assert len(ended.error_lines) == 1, ended.stderr
    assert ended.statuses == [2]


@pytest.mark.parametrize("case", ON_TWO_RANKS, ids=str)
def test_every_rank_ends(fails, case):
    fails(case, "fork2")


@pytest.mark.parametrize("case", THROUGH_MPIEXEC, ids=str)
def test_through_mpiexec(fails, case):
    fails(case, "mpiexec")


@pytest.mark.parametrize("launcher", ["mpiexec", "torchrun"])
def test_a_rank_that_fails_takes_the_job_with_it(run, tmp_path, launcher):
    """Rank 1 raises while rank 0 waits for it in a collective."""
    program = tmp_path / "program.py"
    program.write_text(
        "import torch, torch.distributed as dist\n"
        "from guided_diffusion import dist_util\n"
        "def main():\n"
        "    dist_util.setup_dist()\n"
        "    if dist_util.get_rank() == 1:\n"
        "        raise RuntimeError('rank 1 has had enough')\n"
        "    dist.all_reduce(torch.zeros(1))\n"
        "dist_util.run_main(main)\n"
    )
    ended = run(program, launcher=launcher, fails=True, timeout=SOON)
    assert "rank 1 has had enough" in ended.stderr

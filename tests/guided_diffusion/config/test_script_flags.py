"""The command lines of the seven programs: upstream's flags and defaults are all there, and --help explains."""

from __future__ import annotations

import re

import pytest

import guided_diffusion
from guided_diffusion.config.configs import LabelConfig, ModelConfig, SamplingConfig
from guided_diffusion.config.flags import Parser
from tests.support.helpers import SCRIPT_NAMES, SCRIPTS, Runner

DIFFUSION = {
    "learn_sigma": False, "diffusion_steps": 1000, "noise_schedule": "linear", "timestep_respacing": "",
    "use_kl": False, "predict_xstart": False, "rescale_timesteps": False, "rescale_learned_sigmas": False,
}  # fmt: skip
MODEL = {
    "image_size": 64, "num_channels": 128, "num_res_blocks": 2, "num_heads": 4, "num_heads_upsample": -1,
    "num_head_channels": -1, "attention_resolutions": "16,8", "channel_mult": "", "dropout": 0.0,
    "class_cond": False, "use_checkpoint": False, "use_scale_shift_norm": True, "resblock_updown": False,
    "use_fp16": False, "use_new_attention_order": False, **DIFFUSION,
}  # fmt: skip
CLASSIFIER = {
    "image_size": 64, "classifier_use_fp16": False, "classifier_width": 128, "classifier_depth": 2,
    "classifier_attention_resolutions": "32,16,8", "classifier_use_scale_shift_norm": True,
    "classifier_resblock_updown": True, "classifier_pool": "attention",
}  # fmt: skip
SUPER_RES = {
    name: value for name, value in MODEL.items()
    if name not in ("image_size", "channel_mult", "use_new_attention_order")
} | {"large_size": 256, "small_size": 64}  # fmt: skip
TRAIN = {
    "data_dir": "", "schedule_sampler": "uniform", "lr": 1e-4, "weight_decay": 0.0, "lr_anneal_steps": 0,
    "batch_size": 1, "microbatch": -1, "ema_rate": "0.9999", "log_interval": 10, "save_interval": 10000,
    "resume_checkpoint": "", "use_fp16": False, "fp16_scale_growth": 1e-3,
}  # fmt: skip
SAMPLE = {"clip_denoised": True, "num_samples": 10000, "batch_size": 16, "use_ddim": False, "model_path": ""}
UPSTREAM = {
    "classifier_train": {
        "data_dir": "", "val_data_dir": "", "noised": True, "iterations": 150000, "lr": 3e-4, "weight_decay": 0.0,
        "anneal_lr": False, "batch_size": 4, "microbatch": -1, "schedule_sampler": "uniform",
        "resume_checkpoint": "", "log_interval": 10, "eval_interval": 5, "save_interval": 10000,
        **CLASSIFIER, **DIFFUSION,
    },
    "classifier_sample": {**SAMPLE, "classifier_path": "", "classifier_scale": 1.0, **MODEL, **CLASSIFIER},
    "image_train": {**TRAIN, **MODEL},
    "image_sample": {**SAMPLE, **MODEL},
    "image_nll": {
        "data_dir": "", "clip_denoised": True, "num_samples": 1000, "batch_size": 1, "model_path": "", **MODEL,
    },
    "super_res_train": {**TRAIN, **SUPER_RES},
    "super_res_sample": {**SAMPLE, "base_samples": "", **SUPER_RES},
}  # fmt: skip
OURS = {
    "classifier_train": {
        "ect": False, "ect_weight": 0.2, "random_crop": True, "random_flip": True, "init_from": "", "dlsm_weight": 0.0,
        "model_path": "", "keep_best": "",
    },
    "image_train": {"init_from": ""},
    "classifier_sample": {
        "eds": False, "eds_cap": None, "trace": "", "trace_samples": 4, "trace_maps": 8, "classes": "",
        "balanced": False,
    },
    "image_sample": {"classes": "", "balanced": False, "save_images": False},
}
IN_EVERY_SCRIPT = {
    "log_dir": "", "seed": 0, "amp_dtype": "fp16", "meet_timeout": 60, "num_classes": 1000, "in_channels": 3,
}  # fmt: skip
UNITS = {
    "pixels": {"image_size", "large_size", "small_size", "attention_resolutions", "classifier_attention_resolutions"},
    "steps": {"iterations", "log_interval", "eval_interval", "save_interval", "lr_anneal_steps"},
    "images": {"batch_size", "num_samples", "microbatch"},
    "seconds": {"meet_timeout"},
}


@pytest.fixture(scope="module")
def helps(fork_server, tmp_path_factory) -> dict[str, str]:
    """What --help prints, on one line."""
    run = Runner(fork_server, tmp_path_factory.mktemp("help"))
    return {name: run(name, ["--help"]).stdout for name in SCRIPT_NAMES}


def entries(text: str) -> dict[str, str]:
    """Flag -> its help, from the page."""
    found = {}
    for part in re.split(r"\n  (?=--)", text)[1:]:
        entry = " ".join(re.split(r"\n\n", part)[0].split())
        one = r"--\w+(?: \[?[A-Z]+\]?)?"
        for name in re.findall(r"--(\w+)", re.match(f"{one}(?:, {one})*", entry)[0]):
            found[name] = entry
    return found


@pytest.mark.parametrize("script", SCRIPT_NAMES)
class TestHelp:
    def test_every_upstream_flag_has_upstreams_default(self, helps, script):
        found = entries(helps[script])
        for name, default in UPSTREAM[script].items():
            assert f"default {default!r})" in found[name], f"--{name}: {found[name]}"

    def test_our_flags(self, helps, script):
        found = entries(helps[script])
        for name, default in (IN_EVERY_SCRIPT | OURS.get(script, {})).items():
            told = "no default" if default is None else f"default {default!r}"
            assert f"{told})" in found[name]

    def test_every_flag_is_explained(self, helps, script):
        """Default; range or choices of numbers and names; units."""
        found = entries(helps[script])
        assert set(UPSTREAM[script]) <= set(found)
        for name, entry in found.items():
            assert re.search(r"(default .+|no default)\)$", entry), entry
            if re.search(rf"--{name}\b[^(]* [NX] ", entry):
                assert re.search(r"at least|at most|[\d.]+ to [\d.]+|-1:|one of", entry), f"no range: {entry}"
        for unit, names in UNITS.items():
            for name in names & set(found):
                assert unit in found[name], f"no unit: {found[name]}"

    def test_choices(self, helps, script):
        found = entries(helps[script])
        assert "one of linear, cosine" in found["noise_schedule"]
        assert "one of fp16, bf16, fp32, auto" in found["amp_dtype"]
        if "classifier_pool" in found:
            assert "one of adaptive, attention, spatial, spatial_v2" in found["classifier_pool"]
        if "schedule_sampler" in found:
            assert "one of uniform, loss-second-moment" in found["schedule_sampler"].replace("- ", "-")

    def test_nothing_is_listed_twice(self, helps, script):
        names = re.findall(r"^  (--\w+)", helps[script], flags=re.MULTILINE)
        assert len(names) == len(set(names))


def test_help_keeps_the_lines_of_its_example(fork_server, tmp_path):
    run = Runner(fork_server, tmp_path)
    for name in SCRIPT_NAMES:
        source = (SCRIPTS / f"{name}.py").read_text()
        lines = source.split('"""')[1].replace("\\\\", "\\").splitlines()
        examples = [line for line in lines if line.startswith("    ")]
        printed = run(name, ["--help"]).stdout.splitlines()
        assert examples and set(examples) <= set(printed), name


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_two_ranks_print_it_once(run, word):
    """By the launcher's variables alone: no rank waits for another."""
    alone = run("image_sample", [word]).stdout
    assert run("image_sample", [word], launcher="fork2").stdout == alone


def test_version(run, fork_server, tmp_path):
    for name in ("classifier_sample", "image_train"):
        assert run(name, ["--version"]).stdout == f"ed-dpm {guided_diffusion.__version__}\n"


def test_aliases_of_the_release(helps):
    assert "use_entropy_scale" in entries(helps["classifier_sample"])
    assert "entropy_constraint_loss_weight" in entries(helps["classifier_train"])


RELEASE = ["--local_rank", "0", "--fix_seed", "True"]


@pytest.mark.parametrize(
    ("script", "argv"),
    [
        ("classifier_sample", ["--specified_class", "3", "--classifier_out_channel", "9", "--use_entropy_scale", "y"]),
        ("classifier_sample", ["--save_imgs_for_visualization", "True", "--local-rank=0", "--fix_seed"]),
        ("image_sample", ["--specified_class", "3"]),
        ("classifier_train", ["--entropy_constraint_loss_weight", "0.1"]),
        ("image_train", []),
    ],
)
def test_command_lines_of_the_release_parse(run, script, argv):
    """They get as far as the missing checkpoint or folder."""
    (line,) = run(script, [*RELEASE, *argv, "--log_dir", "out"], fails=True).error_lines
    assert line.startswith(("error: --model_path: missing", "error: data_dir", "error: --data_dir")), line


def test_flags_of_the_release_are_ours_by_other_names():
    parser = Parser("Program.", SamplingConfig, LabelConfig, ModelConfig)
    argv = ["--specified_class", "3", "--classifier_out_channel", "7", "--save_imgs_for_visualization", "False"]
    values = parser.parse([*argv, "--local-rank", "2"]).values
    assert values == {"classes": "3", "num_classes": 7, "save_images": False}


@pytest.mark.parametrize(
    ("script", "argv", "says"),
    [
        ("image_sample", ["--fix_seed", "False"], "every run has a fixed seed; for other draws give --seed N"),
        ("image_train", ["--dataset_type", "mnist"], "--dataset_type: found 'mnist', expected "),
        ("classifier_sample", ["--classifier_out_channel", "0"], "found 0, expected at least 1"),
        ("classifier_sample", ["--local_rank", "x"], "--local_rank"),
    ],
)
def test_flags_of_the_release_that_are_refused(run, script, argv, says):
    (line,) = run(script, argv, fails=True).error_lines
    assert says in line


# A command line that parses gets as far as the missing checkpoint.
@pytest.mark.parametrize(
    "argv",
    [
        ["--eds"],
        ["--eds", "True"],
        ["--eds", "False"],
        ["--use_entropy_scale", "True"],
        ["--eds", "--use_ddim", "y", "--class_cond"],
    ],
    ids=" ".join,
)
def test_forms_of_booleans(run, argv):
    ended = run("classifier_sample", [*argv, "--log_dir", "out"], fails=True)
    assert ended.error_lines == ["error: --model_path: missing, expected the path of a checkpoint"]


LATE = """
import os, time
if os.environ.get("RANK", os.environ.get("PMI_RANK")) == "0":
    time.sleep(4)  # still loading
from guided_diffusion import dist_util
from guided_diffusion.config.configs import RunConfig
from guided_diffusion.config.flags import Parser
dist_util.run_main(Parser("Program.", RunConfig).parse)
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "mpiexec"])
def test_a_wrong_flag_is_said_once_though_rank_0_is_late(run, tmp_path, launcher):
    """The launcher ends all ranks as soon as one has failed."""
    program = tmp_path / "late.py"
    program.write_text(LATE)
    ended = run(program, ["--bogus", "1"], launcher=launcher, fails=True)
    assert ended.error_lines == ["error: unrecognized arguments: --bogus 1 (--help lists the flags)"]


@pytest.mark.parametrize("argv", [["--eds", "2"], ["--class_cond", "perhaps"]], ids=" ".join)
def test_what_is_no_boolean(run, argv):
    ended = run("classifier_sample", argv, fails=True)
    assert ended.statuses == [2] and "expected a boolean" in ended.error_lines[0]

"""The table of malformed inputs: what is done, and what the one line about it must say.

A row is a program, a name, the flags that differ from the program's good command in `BASE`, and fragments of the line,
which names the flag or file, what was found and what was expected. `{name}` in a flag is a file or folder that
`bad_files.py` makes. scripts/test_bad_input.py runs the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.support.helpers import CLASSIFIER, DIFFUSION, MODEL, UNET

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
    """A script's base command with some flags replaced, and what its one line must say.

    :param environment: variables that are set; midway: it fails in the midst of training, when there are files, and
        on several ranks perhaps on one alone.
    """

    name: str
    script: str
    flags: dict
    says: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    midway: bool = False

    def __str__(self) -> str:
        return f"{self.script}: {self.name}"


def cases(script: str, *rows: tuple, **more) -> list[Case]:
    return [Case(name, script, flags, tuple(says), **more) for name, flags, *says in rows]


# what the config.json beside a checkpoint says: name, key, value (text is JSON), what the line says
CONFIGS = [
    ("levels of inf", "channel_mult", '"inf,1"', "--channel_mult: found 'inf,1', expected positive numbers"),
    ("levels of nan", "channel_mult", '"nan"', "--channel_mult: found 'nan', expected positive numbers"),
    ("levels of 1e400", "channel_mult", '"1e400,1"', "--channel_mult: found '1e400,1', expected positive numbers"),
    ("negative levels", "channel_mult", '"-1,2"', "--channel_mult: found '-1,2', expected positive numbers"),
    ("a level of nothing", "channel_mult", '"1e-9,1"', "blocks on levels of 0, 32 channels, expected at least 1"),
    ("a megabyte of levels", "channel_mult", f'"{"1" * 10**6}"', "expected at most 100000 characters"),
    ("20000 levels", "channel_mult", f'"{"1," * 20000}1"', "expected a multiple of"),
    ("a list of levels", "channel_mult", "[1, 2]", "config.json beside it has channel_mult [1, 2], expected text"),
    ("a billion steps", "diffusion_steps", "1000000000", "diffusion_steps 1000000000, expected 1 to 1000000"),
    ("a billion blocks", "num_res_blocks", "1000000000", "found 1000000000 residual blocks", "at most 500 blocks"),
    ("ten million channels", "num_channels", "9999968", "found a network that takes at least", "of this machine"),
    ("channels that the file lacks", "num_channels", "4096", "time_embed.0.weight (found 128x32, expected 16384x4096)"),
    ("a number of 40 digits", "image_size", "9" * 40, "expected a whole number of 63 bits"),
    ("a number of 5000 digits", "image_size", "9" * 5000, "config.json: expected a JSON object, found no JSON"),
    ("infinite channels", "num_channels", "1e400", "num_channels inf, expected a whole number"),
    ("a list for a number", "num_channels", "[32]", "num_channels [32], expected a whole number"),
    ("attention at 0", "attention_resolutions", '"0"', "--attention_resolutions: found '0', expected sides"),
    ("attention at letters", "attention_resolutions", '"a,b"', "--attention_resolutions: found 'a,b', expected sides"),
    ("no heads", "num_heads", "0", "num_heads 0, expected at least 1"),
    ("no heads upwards", "num_heads_upsample", "0", "cannot be divided evenly by 0 heads"),
    ("nested without end", "num_heads", "[" * 200_000, "config.json: expected a JSON object, found no JSON"),
]

# of each the name in bad_files.py and what it is for the one line
NO_FILES = {
    "pipe": "found a named pipe, expected a regular file",
    "device": "found a device, expected a regular file",
    "images": "found a folder, expected a regular file",
    "long_path": "cannot be read: File name too long",
}
ADDRESSES = {
    "file:///etc/hostname": "hostname: cannot be",
    "ftp://127.0.0.1/model.pt": "model.pt: cannot be",
    "http://127.0.0.1:1/model.pt": "model.pt: cannot be fetched",
    "http://127.0.0.1:port/model.pt": "model.pt: cannot be fetched",
    "http://127.0.0.1:1/a model.pt": "model.pt: cannot be fetched",
}
_ANYWHERE = [(place, place, says) for place, says in ADDRESSES.items()]
_ANYWHERE += [(name, f"{{{name}}}", says) for name, says in NO_FILES.items()]

CHECKPOINTS = cases(
    "classifier_sample",
    *((f"config.json with {name}", {"model_path": f"{{config_{key}}}"}, *says)
      for key, (name, _, _, *says) in enumerate(CONFIGS)),
    ("config.json is a pipe", {"model_path": "{config_pipe}"}, "config.json: found a named pipe, expected a regular"),
    *((f"model_path {name}", {"model_path": path}, says) for name, path, says in _ANYWHERE),
    *((f"classifier_path {name}", {"classifier_path": path}, says) for name, path, says in _ANYWHERE),
    ("float8", {"model_path": "{float8}"}, "out.2.bias: expected a plain tensor of real numbers, found torch.float8"),
    ("float8 in safetensors", {"model_path": "{float8_safetensors}"}, "out.2.bias: expected a plain tensor"),
    ("integers", {"model_path": "{integers}"}, "out.2.bias: found torch.int64, expected floating-point numbers"),
    ("terabytes of one number", {"model_path": "{expanded}"}, "out.2.weight: expected", "bytes in 4"),
    ("quantized", {"model_path": "{quantized}"}, "model.pt: "),
    ("nested", {"model_path": "{nested}"}, "model.pt: "),
    ("no model", {"model_path": ""}, "--model_path", "missing"),
    ("no classifier", {"classifier_path": ""}, "--classifier_path", "missing"),
    ("missing checkpoint", {"model_path": "{nowhere}/model.pt"}, "nowhere/model.pt: no such file"),
    ("missing classifier", {"classifier_path": "{nowhere}/model.pt"}, "nowhere/model.pt: no such file"),
    ("truncated checkpoint", {"model_path": "{truncated}"}, "truncated"),
    ("truncated safetensors", {"model_path": "{truncated_safetensors}"}, "model.safetensors", "truncated"),
    ("text file", {"model_path": "{text}"}, "model.pt", "not a checkpoint"),
    ("list of tensors", {"model_path": "{list}"}, "expected a state dict"),
    ("wrong key", {"model_path": "{wrong_key}"}, "1 missing: out.2.bias", "1 unexpected: out.2.bios"),
    ("wrong shape", {"classifier_path": "{wrong_shape}"}, "of the wrong shape", "found", "expected"),
    ("malicious pickle", {"model_path": "{malicious}"}, "refused"),
    ("other architecture", {"model_path": "{bare}", **MODEL, "num_channels": 64}, "does not fit"),
    ("config.json is no JSON", {"model_path": "{no_json}"}, "config.json", "expected a JSON object, found no JSON"),
    ("config.json is a list", {"model_path": "{json_list}"}, "config.json", "JSON object"),
    ("config.json with a text for a number", {"model_path": "{odd_json}"}, "config.json", "image_size", "'8'"),
    ("contradiction", {"num_channels": 64, "num_heads": 2}, "--num_channels 64", "--num_heads 2", "config.json"),
    ("image sizes differ", {"classifier_path": "{classifier16}"}, "--image_size", "8", "16"),
    ("empty file", {"model_path": "{empty_file}"}, "model.pt", "not a checkpoint", "0 bytes"),
    ("code in the old format", {"model_path": "{malicious_legacy}"}, "refused"),
    ("code in a bare pickle", {"model_path": "{malicious_pickle}"}, "refused: it wants to run or build"),
    ("code in a tar archive", {"model_path": "{malicious_tar}"}, "model.pt"),
    ("weights with nan", {"model_path": "{nan}"}, "model.pt: out.2.bias: found inf or nan in 1 of"),
    ("classifier with inf", {"classifier_path": "{inf_classifier}"}, "found inf or nan in 1 of", "expected none"),
    ("tensor without data", {"model_path": "{meta}"}, "out.2.bias: expected a plain tensor", "no data"),
    ("sparse tensor", {"model_path": "{sparse}"}, "out.2.weight: expected a plain tensor", "sparse"),
    ("complex numbers", {"model_path": "{complex}"}, "out.2.bias: expected a plain tensor", "complex64"),
    ("channels differ", {"classifier_path": "{grey_classifier}"}, "--in_channels", "3", "1"),
    ("classes differ", {"model_path": "{five_classes}"}, "--num_classes", "5", "4"),
    ("names of classes differ", {"model_path": "{named}", "classifier_path": "{other_names}"},
     "--classifier_path", "class 1 is 'c', but '1' for --model_path", "expected a classifier of the same classes"),
    ("names that are numbers", {"classifier_path": "{odd_names}"}, "config.json beside it has class_names", "4 names"),
    ("a seen class that is not there", {"classifier_path": "{odd_seen}"}, "config.json beside it has seen_classes"),
    ("a folder of several checkpoints", {"model_path": "{several}"}, "several: holds a.pt, b.pt; expected the name"),
    ("no folder of a training", {"model_path": "{empty}"}, "--model_path", "expected a regular file or a training's"),
    ("networks swapped", {"model_path": "{classifier}", "classifier_path": "{model}"}, "--model_path",
     "found a classifier, expected a diffusion model; were --model_path and --classifier_path swapped?"),
    ("two models", {"classifier_path": "{model}"}, "--classifier_path", "found a diffusion model, expected a classif"),
    ("an upsampler to guide", {"model_path": "{super_res}"}, "--model_path", "found a super-resolution model, expected",
     "scripts/super_res_sample.py samples from it"),
    ("networks swapped, without config.json",
     {"model_path": "{bare_classifier}", "classifier_path": "{bare}", **MODEL, **CLASSIFIER, "num_classes": 4},
     "model.pt: found a classifier, expected a diffusion model; were --model_path and --classifier_path swapped?"),
    ("an optimizer's state", {"model_path": "{optimizer}"}, "found an optimizer's state", "model000150.pt beside it"),
    ("flags of another checkpoint", {"model_path": "{bare}", **MODEL, **DIFFUSION, "learn_sigma": True},
     "out.2.weight (found 3x32x3x3, expected 6x32x3x3)", "the file was made with --learn_sigma False"),
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
    ("the release's other seeds", {"fix_seed": "False"}, "--fix_seed", "found False", "--seed N"),
    ("log_dir is a file", {"log_dir": "{text}"}, "log directory", "model.pt"),
    ("log_dir below a file", {"log_dir": "{text}/sub"}, "log directory", "model.pt"),
    ("trace below a file", {"trace": "{text}/trace.npz"}, "--trace", "model.pt"),
    ("trace is a folder", {"trace": "{images}"}, "--trace", "images"),
    ("another run's folder", {"log_dir": "{other_run}"}, "holds samples of another run", "--seed 0", "has 7"),
    ("run.json is no JSON", {"log_dir": "{broken_run}"}, "run.json: expected the flags", "found no JSON"),
    ("run.json is a list", {"log_dir": "{list_run}"}, "run.json", "a JSON object, found a list"),
    ("unknown rule for nan", {"nonfinite": "ignore"}, "--nonfinite", "'ignore'", "stop, skip"),
    ("fractional samples", {"num_samples": 2.5}, "--num_samples", "'2.5'", "whole number"),
    ("unknown sampler", {"sampler": "euler"}, "--sampler", "'euler'", "dpmpp2m"),
    ("two samplers", {"sampler": "unipc", "use_ddim": True}, "--sampler", "unipc", "--use_ddim"),
    ("two rules", {"guidance": "range", "eds": True}, "--guidance", "range", "--eds"),
    ("interval backwards", {"guidance_interval": "700,3"}, "--guidance_interval", "'700,3'", "LO,HI"),
) + cases(
    "image_sample",
    ("no model", {"model_path": ""}, "--model_path", "missing"),
    ("a number that is another class's name", {"model_path": "{named}", "classes": "0"},
     "--classes: found 0", "name:0 for the class of that name (number 2) or name:b for class number 0"),
    ("a name that no class has", {"model_path": "{named}", "classes": "cat"}, "--classes: found 'cat'", "b, 1, 0"),
    ("classes of a model without", {"classes": "1"}, "--classes"),
    ("word for a number", {"num_samples": "many"}, "--num_samples", "'many'", "whole number"),
)  # fmt: skip

BASE_SAMPLES = cases(
    "super_res_sample",
    ("a model of one size", {"model_path": "{model}"}, "found a diffusion model, expected a super-resolution model",
     "scripts/image_sample.py samples from it"),
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
    ("claims a terabyte", {"base_samples": "{claims}"}, "--base_samples", "claims.npz"),
    ("damaged header", {"base_samples": "{odd_header}"}, "--base_samples", "odd_header.npz"),
    *((name, {"base_samples": f"{{{name}}}"}, "--base_samples", says)
      for name, says in NO_FILES.items() if name != "images"),
    ("a training's folder", {"base_samples": "{training}"}, "training: a training's folder, with model000100.pt"),
    ("images of another size", {"base_samples": "{images}"}, "--base_samples", "c0_0.png: found 8x8 pixels, expected"),
    ("a folder without images", {"base_samples": "{empty}"}, "--base_samples", "found no images, expected some of bmp"),
    ("a damaged archive", {"base_samples": "{half_zip}"}, "half.zip: damaged or truncated archive"),
    ("a folder without classes", {"base_samples": "{flat}", "model_path": "{super_res_classes}"},
     "--base_samples", "found no classes in 3 images", "--labels FILE.csv"),
    ("an address", {"base_samples": "ftp://127.0.0.1/base.npz"}, "--base_samples", "base.npz: no such file"),
    ("few labels", {"base_samples": "{one_label}", "model_path": "{super_res_classes}"}, "--base_samples", "arr_1"),
)

TRAINING = (
    cases(
        "classifier_train",
        ("no data", {"data_dir": ""}, "data_dir", "empty string"),
        ("missing folder", {"data_dir": "{nowhere}"}, "data_dir", "nowhere"),
        ("folder without images", {"data_dir": "{empty}"}, "data_dir", "empty", "found none"),
        ("file for a folder", {"data_dir": "{text}"}, "data_dir", "model.pt"),
        ("folder of other files", {"data_dir": "{heic}"}, "data_dir", "found none", "(2 files skipped: 2 .heic)"),
        ("a link to nothing", {"data_dir": "{broken_link}"}, "data_dir", "cats: a link to", "where there is nothing"),
        ("a link in a circle", {"data_dir": "{link_loop}"}, "data_dir", "cats links to a folder that it is in"),
        ("a damaged archive", {"data_dir": "{half_zip}"}, "data_dir", "half.zip: damaged or truncated archive"),
        ("numbered files", {"data_dir": "{flat}"}, "data_dir", "found no classes in 3 images", "--labels FILE.csv"),
        ("no folders", {"labels": "folder"}, "data_dir", "24 of 24 images are in no folder, such as c0_0.png; expected "
         "every image in a folder of its class; or give --labels FILE.csv"),
        ("names that cameras write", {"data_dir": "{two_cameras}"}, "data_dir", "found no classes in 8 images",
         "(DSC, IMG: names that cameras and programs write)", "--labels filename", "--labels FILE.csv"),
        ("labels before files", {"labels": "{swapped}"}, "swapped.csv: the columns look swapped: expected file,label"),
        ("labels that are not there", {"labels": "{nowhere}/l.csv"}, "--labels", "l.csv: no such file"),
        ("labels of no known kind", {"labels": "folders"}, "--labels folders", "auto, folder, filename, or a FILE.csv"),
        ("depth of 20 bits", {"bit_depth": 20}, "--bit_depth", "found 20, expected 8 to 16"),
        ("another colour", {"alpha": "red"}, "--alpha", "'red'", "keep, white, black"),
        ("fewer images than a batch", {"batch_size": 100}, "data_dir", "24 images", "a batch of --batch_size 100"),
        ("too few classes", {"num_classes": 3}, "--num_classes", "found 3", "4 classes"),
        ("another class to validate", {"val_data_dir": "{five}"}, "c4", "classes"),
        ("negative weight", {"ect_weight": -0.1}, "--ect_weight", "found -0.1", "at least 0"),
        ("rate nan", {"lr": "nan"}, "--lr", "found nan"),
        ("respacing", {"timestep_respacing": "10"}, "--timestep_respacing"),
        ("heads do not divide", {"classifier_num_head_channels": 24},
         "--classifier_num_head_channels: found 24, expected a divisor of 64,", "(--classifier_width 32), such as 16"),
        ("heads wider than a level", {"classifier_num_head_channels": 64, "classifier_attention_resolutions": "8,4"},
         "--classifier_num_head_channels: found 64, expected a divisor of 32 and 64", "such as 32"),
        ("width of 48", {"classifier_width": 48}, "--classifier_width 48: found levels of 48, 96 channels", "of 32"),
        ("image_size without levels", {"image_size": 9}, "--image_size", "found 9"),
        ("image_size not divisible", {"image_size": 9, "classifier_channel_mult": "1,2"}, "--image_size", "of 2"),
        ("attention at letters", {"classifier_attention_resolutions": "a"}, "--classifier_attention_resolutions"),
        ("multiples of letters", {"classifier_channel_mult": "a"}, "--classifier_channel_mult", "'a'"),
        ("2 channels", {"in_channels": 2}, "--in_channels", "found 2", "1, 3"),
        ("no checkpoint to resume", {"resume_checkpoint": "{nowhere}/model000002.pt"}, "model000002.pt: no such file"),
        ("a checkpoint of fewer classes", {"resume_checkpoint": "{classifier}", "data_dir": "{five}"},
         "made for 4 classes, but", "has 5; --init_from"),
        ("two checkpoints to begin with", {"resume_checkpoint": "{classifier}", "init_from": "{classifier}"},
         "--init_from: found together with --resume_checkpoint"),
        ("nothing to begin with", {"init_from": "{nowhere}/model.pt"}, "model.pt: no such file"),
        ("a diffusion model to begin with", {"init_from": "{model}"}, "model.pt: found a diffusion model, expected a"),
        ("its last step", {"resume_checkpoint": "{step_150}", "iterations": 100}, "model000150.pt: the checkpoint",
         "is at step 150, --iterations 100 is reached; give more --iterations to train on, or --init_from"),
        ("an optimizer to resume", {"resume_checkpoint": "{optimizer}"}, "opt000150.pt: found an optimizer's state",
         "expected the weights of a network, such as model000150.pt beside it"),
        ("no optimizer to resume", {"resume_checkpoint": "{classifier}"}, "opt000000.pt: no such file",
         "; --init_from", "model.pt begins a new run with the weights alone"),
        ("a gradient's loss without a model", {"dlsm_weight": 2}, "--dlsm_weight 2: found without --model_path"),
        ("a negative gradient's loss", {"dlsm_weight": -1}, "--dlsm_weight", "found -1.0, expected at least 0"),
        ("a model for nothing", {"model_path": "{model}"}, "--model_path", "found without --dlsm_weight and --val"),
        ("a model with classes", {"dlsm_weight": 2, "model_path": "{conditional}"}, "--model_path",
         "found a model with classes, expected an unconditional one"),
        ("a classifier for a model", {"dlsm_weight": 2, "model_path": "{classifier}"}, "--model_path",
         "found a classifier, expected a diffusion model"),
        ("a model of another schedule", {"dlsm_weight": 2, "model_path": "{model}", "noise_schedule": "linear",
         "diffusion_steps": 100}, "contradicts --diffusion_steps 100 (the checkpoint has 20), --noise_schedule linear"),
        ("gradients of clean images", {"dlsm_weight": 2, "model_path": "{model}", "noised": False},
         "--dlsm_weight 2: found with --noised False, expected --noised True"),
        ("gradients compiled", {"dlsm_weight": 2, "model_path": "{model}", "compile": True},
         "--dlsm_weight 2: found with --compile, expected one of them"),
        ("a diffusion model's width", {"num_channels": 64}, "--num_channels: found without --model_path"),
        ("best without validation", {"keep_best": "val_ce"}, "--keep_best val_ce: found without --val_data_dir"),
        ("best of no direction", {"keep_best": "val_ect", "val_data_dir": "{images}"}, "--keep_best: found 'val_ect', "
         "expected one of val_loss, val_ce, val_ece, val_acc@1, or one of their quartiles such as val_loss_q0"),
        ("best by an ideal", {"keep_best": "val_ideal_scale", "val_data_dir": "{images}", "model_path": "{model}"},
         "--keep_best: found 'val_ideal_scale', expected one of", "val_dlsm, val_dlsm_gain, or"),
    )
    + cases(
        "image_train",
        ("no data", {"data_dir": ""}, "data_dir", "empty string"),
        ("unknown sampler", {"schedule_sampler": "best"}, "--schedule_sampler", "'best'", "uniform"),
        ("average in letters", {"ema_rate": "slow"}, "--ema_rate", "'slow'"),
        ("average above 1", {"ema_rate": "0.9,1.5"}, "--ema_rate", "1.5"),
        ("no dropout of 2", {"dropout": 2}, "--dropout", "found 2"),
        ("never save", {"save_interval": 0}, "--save_interval", "found 0"),
        ("too few steps for linear", {"diffusion_steps": 9, "noise_schedule": "linear"}, "diffusion_steps", "9"),
        ("heads do not divide", {"num_heads": 5}, "--num_heads: found 5, expected a divisor of 64", "such as 4"),
        ("head channels do not divide", {"num_head_channels": 24}, "--num_head_channels: found 24", "such as 16"),
        ("heads of no channels", {"num_head_channels": 0}, "--num_head_channels: found 0", "such as 64"),
        ("no rate of the average", {"ema_rate": ""}, "--ema_rate", "found ''", "such as 0.99,0.9999"),
        ("image_size not divisible", {"image_size": 9, "channel_mult": "1,2"}, "--image_size", "multiple of 2"),
        ("microbatch 0", {"microbatch": -2}, "--microbatch", "found -2"),
        ("a checkpoint without labels", {"resume_checkpoint": "{model}", "class_cond": True},
         "found a network without labels, expected one trained with --class_cond; --init_from"),
        ("wrong checkpoint to resume", {"resume_checkpoint": "{classifier}"}, "model.pt: found a classifier, expected"),
        ("its last step", {"resume_checkpoint": "{step_150}", "iterations": 150}, "--iterations 150 is reached"),
        ("its last step of falling", {"resume_checkpoint": "{step_150}", "iterations": 0, "lr_anneal_steps": 9},
         "--lr_anneal_steps 9 is reached; give more --lr_anneal_steps to train on"),
        *((f"resume {name}", {"resume_checkpoint": path}, says) for name, path, says in _ANYWHERE),
        *((f"data_dir {place}", {"data_dir": place}, "data_dir", "cannot be listed") for place in ADDRESSES),
        *((f"data_dir {name}", {"data_dir": f"{{{name}}}"}, "data_dir") for name in NO_FILES if name != "images"),
        ("a billion steps", {"diffusion_steps": 10**9}, "--diffusion_steps", "found 1000000000, expected 1 to 1000000"),
        ("a billion blocks", {"num_res_blocks": 10**9}, "found 1000000000 residual blocks"),
        ("ten million channels", {"num_channels": 9999968}, "found a network that takes at least"),
        ("a million pixels", {"image_size": 2**20, "channel_mult": "1,2"}, "found a network that takes at least"),
        ("levels of inf", {"channel_mult": "inf,1"}, "--channel_mult: found 'inf,1'"),
    )
    + cases(
        "super_res_train",
        ("missing folder", {"data_dir": "{nowhere}"}, "data_dir", "nowhere"),
        ("small above large", {"small_size": 16}, "--small_size", "16"),
    )
    + cases(
        "image_nll",
        ("more classes than the model's", {"model_path": "{conditional}", "data_dir": "{five}"},
         "--data_dir", "found 5 classes, expected at most the 4 of --model_path"),
        ("no model", {"model_path": ""}, "--model_path", "missing"),
        ("a classifier", {"model_path": "{classifier}"}, "--model_path", "found a classifier, expected a diffusion"),
        ("no data", {"data_dir": ""}, "data_dir", "empty string"),
    )
)

_HUGE = {"model_path": "{huge}", "num_samples": 3, "clip_denoised": False}
MIDWAY = (
    cases("image_sample", ("weights that overflow", _HUGE, "found", "at step 2", "(t = "), midway=True)
    +     cases(
        "classifier_train",
        ("corrupt image", {"data_dir": "{corrupt}", "batch_size": 7}, "c1_", "cannot be read as an image"),
        ("diverging", {"lr": 1e30, "iterations": 5, "weight_decay": 1}, "training diverged at step", "--lr"),
        ("decompression bomb", {"data_dir": "{bomb}"}, "cannot be read as an image", "bomb", "ED_DPM_MAX_PIXELS"),
        ("a strip of pixels", {"data_dir": "{strip}"}, "found 9000x1 pixels", "no side 1000 times the other"),
        ("text in a PNG's name", {"data_dir": "{text_png}"}, "png: cannot be read as an image"),
        ("a program in a PNG's name", {"data_dir": "{postscript}"}, "png: cannot be read as an image"),
        ("empty PNG", {"data_dir": "{empty_png}"}, "png: cannot be read as an image"),
        ("a pipe in a PNG's name", {"data_dir": "{pipe_png}"}, "png: found a named pipe, expected a regular file"),
        ("32 bits a pixel", {"data_dir": "{float_png}"}, "png: cannot be read as an image: found an image of"),
        midway=True,
    )
    + cases(
        "image_train",
        ("corrupt image", {"data_dir": "{corrupt}", "batch_size": 7}, "c1_", "cannot be read as an image"),
        midway=True,
    )
    + cases(
        "image_nll",
        ("corrupt image", {"data_dir": "{corrupt}", "num_samples": 20}, "c1_", "cannot be read as an image"),
        midway=True,
    )
)

_PIXELS = {"ED_DPM_MAX_PIXELS": "many"}
ENVIRONMENT = [
    Case(f"{name}={value}", "image_sample", {}, says, {name: value, **others})
    for name, value, says, others in (
        ("WORLD_SIZE", "two", ("WORLD_SIZE", "expected a whole number, found 'two'"), {"RANK": "0"}),
        ("WORLD_SIZE", "0", ("WORLD_SIZE", "expected at least 1, found 0"), {"RANK": "0"}),
        ("RANK", "3", ("RANK", "expected less than WORLD_SIZE = 2, found 3"), {"WORLD_SIZE": "2"}),
        ("MASTER_PORT", "http", ("MASTER_PORT",), {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}),
        ("OPENAI_LOG_FORMAT", "stdout,xml", ("'xml'", "log"), {}),
        ("OPENAI_LOGDIR", "{text}/sub", ("log directory", "model.pt"), {}),
    )
] + [Case("ED_DPM_MAX_PIXELS=many", "classifier_train", {}, ("ED_DPM_MAX_PIXELS", "'many'"), _PIXELS, midway=True)]

SCRIPTS = CHECKPOINTS + FLAGS + BASE_SAMPLES + TRAINING + MIDWAY + ENVIRONMENT

# name, what the evaluator is given, what the line says
IMAGE_SETS = [
    ("nothing there", "{nowhere}", "nowhere: no such file"),
    ("folder without images", "{empty}", "empty: found no images"),
    ("corrupt image", "{corrupt}", "c1_0.png: cannot be read as an image"),
    ("decompression bomb", "{bomb}", "c0_0.png: cannot be read as an image: Image size (400000000 pixels)"),
    ("a strip of pixels", "{strip}", "found 9000x1 pixels"),
    ("bomb in a zip archive", "{bomb_zip}", "c0_0.png: cannot be read as an image: Image size (400000000 pixels)"),
    ("a program in a PNG's name", "{postscript}", "c0_0.png: cannot be read as an image"),
    ("a pipe in a PNG's name", "{pipe_png}", "c0_0.png: found a named pipe, expected a regular file"),
    ("32 bits a pixel", "{float_png}", "c0_0.png: cannot be read as an image: found an image of mode F, expected 8"),
    *((name, f"{{{name}}}", says) for name, says in NO_FILES.items() if name != "images"),
    ("a pipe in an npz file's name", "{pipe_npz}", "found a named pipe, expected a regular file"),
    ("a pipe in an archive's name", "{pipe_zip}", "found a named pipe, expected a regular file"),
    ("a NUL byte", "a\0b.npz", "a\\x00b.npz: cannot be read: embedded null byte"),
    *((place, place, ": no such file") for place in ADDRESSES),
    ("a link to nothing", "{broken_link}", "broken_link: cats: a link to"),
    ("folder of other files", "{heic}", "heic: found no images, expected some of bmp"),
    ("images of two sizes", "{two_sizes}", "expected one size; --resize N crops and scales them to NxN pixels"),
    ("float images", "{floats}", "floats.npz: expected images in arr_0 as uint8"),
    ("object array", "{objects}", "objects.npz: array arr_0 holds pickled objects, which are refused"),
    ("claims a terabyte", "{claims}", "claims.npz: array arr_0 claims"),
    ("truncated npz", "{truncated_npz}", "truncated.npz: not an npz file, or truncated"),
    ("damaged header", "{odd_header}", "odd_header.npz: array arr_0: damaged or of an unknown format"),
    ("no arr_0", "{no_arr_0}", "no_arr_0.npz: missing array arr_0; found images"),
    ("a damaged archive", "{half_zip}", "half.zip: damaged or truncated archive"),
    ("statistics in a pickle", "{malicious_pickle}", "model.pt: found a pickle, which can run any code and is never"),
    ("shards", "{shards}", "shards: found 2 npz files (rank0.npz, rank1.npz), expected one; say which"),
    ("a run that is not finished", "{other_run}", "other_run: the folder of a sampling run without its samples_*.npz"),
    ("a folder of runs", "{runs}", "runs: a folder with 2 runs in it (a, b), expected one run's folder, such as "),
    ("a training's folder", "{training}", "training: a training's folder, with model000100.pt, expected images; a sam"),
    ("a network", "{training}/model000100.pt", "model000100.pt: found a network's weights, expected images; a sam"),
]

# name, arguments of ed-dpm, what the line says
COMMANDS = [
    ("no command", "", "required: command"),
    ("unknown command", "sample", "invalid choice: 'sample'"),
    ("unknown row", "show table9", "table9: no such row or table"),
    ("no processes", "show table1 --nproc 0", "--nproc: found '0', expected a whole number from 1 on"),
    ("seeds in letters", "show table1 --seeds a", "--seeds: found 'a'"),
    ("a folder that is no book", "list --recipes {empty}", "no book.toml in it"),
    ("a report of nothing", "report --out {empty}", "no book.json in it"),
    ("status of nothing", "status {empty}", "no status.json in it or below"),
    ("status of no folder", "status {nowhere}", "nowhere: no such folder"),
    ("unknown download", "download nothing.pt", "nothing.pt: no such published file"),
    ("figure of no file", "figure vanishing A={nowhere}/a.npz", "a.npz: no such file"),
    ("figure of a pipe", "figure vanishing A={pipe_npz}", "found a named pipe, expected a regular file"),
    ("figure of a device", "figure compare A={device}", "found a device, expected a regular file"),
    ("figure of a long path", "figure compare A={long_path}", "cannot be read: File name too long"),
    ("a table that is a pipe", "figure sweep {pipe}", "found a named pipe, expected a regular file"),
    ("names that are a pipe", "figure compare A={base_samples} --class_names {pipe}", "found a named pipe, expected"),
    ("figure of a text", "figure vanishing A={text}", "model.pt: not a readable npz file"),
    ("figure without labels", "figure vanishing {claims}", "expected LABEL=FILE"),
    ("figure of what is no trace", "figure vanishing A={base_samples}", "base_samples.npz"),
]

# a recipe's file, what is replaced in it, by what, what the line says
RECIPES = [
    ("runs/cadm-g-ddpm250.toml", "num_samples = 50000", 'num_samples = "all"', "flags.num_samples: found 'all'"),
    ("runs/cadm-g-ddpm250.toml", 'model = "cadm-256"', 'model = "dit"', "model: found 'dit', expected one of"),
    ("runs/cadm-g-ddpm250.toml", 'model = "cadm-256"', "", "model: missing, expected text"),
    ("runs/cadm-g-ddpm250.toml", 'model = "cadm-256"', 'model = "cadm-64"', "classifier: found 'classifier-256'"),
    ("runs/cadm-g-ddpm250.toml", "reference", "refrence", "reference: missing"),
    ("runs/cadm-g-ddpm250.toml", "[flags]", "[flags", "line"),
    ("runs/cadm-g-ddpm250.toml", "[flags]", "seeds = 3\n[flags]", "seeds: no such key"),
    ("runs/cadm-g-ddpm250.toml", "num_samples =", "classes = [1]\nnum_samples =", "flags.classes: found [1]"),
    ("runs/uadm-5k-range.toml", "values = [5.0", 'values = ["5"', "sweep.values: found '5', expected numbers"),
    ("tables/table4.toml", "fid = 20.17", 'fid = "20"', "rows[0].paper.fid: found '20', expected a number"),
    ("tables/table4.toml", "fid = 20.17", "fld = 20.17", "rows[0].paper.fld: no such key"),
    ("tables/table4.toml", 'run = "uadm-5k-constant"', 'run = "other"', "rows[0].run: found 'other'"),
    ("tables/table4.toml", 'key = "range"', 'key = "constant"', "rows[1].key: found 'constant'"),
    ("tables/table1.toml", 'reference = "VIRTUAL_imagenet256_labeled.npz"', "", "rows[4].reference: missing"),
    ("networks/cadm-256.toml", "256x256_diffusion.pt", "mine.pt", "checkpoint: found 'mine.pt'"),
    ("networks/cadm-256.toml", "image_size = 256", "", "flags.image_size: missing, expected a whole number"),
    ("networks/classifier-64-ect.toml", "batch_size = 256", "batch_size = 2.5", "training.batch_size: found 2.5"),
]



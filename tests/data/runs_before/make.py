"""python make.py REPOSITORY [--small]: make runs.tar.xz and expected.json, or small.tar.xz, beside this file.

They are made with the code of that checkout.

Everything is run in one folder as working directory and with relative paths, so that the folder can be moved.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parents[1]
sys.path.insert(0, str(TESTS.parent))

import torch  # noqa: E402

from tests.faults.sweep import digests  # noqa: E402
from tests.faults.sweep_jobs import Sampling, Training  # noqa: E402

DIFFUSION = "--diffusion_steps 20 --noise_schedule cosine"
MODEL = (
    "--image_size 8 --num_channels 32 --channel_mult 1 --num_res_blocks 1 --num_heads 1 --attention_resolutions 1 "
    f"--use_scale_shift_norm False --class_cond True {DIFFUSION}"
)
CLASSIFIER = (
    "--image_size 8 --classifier_width 32 --classifier_depth 1 --classifier_channel_mult 1 "
    "--classifier_attention_resolutions 1 --classifier_num_head_channels 32 --classifier_pool adaptive "
    f"--classifier_use_scale_shift_norm False {DIFFUSION}"
)
TRAINING = "--data_dir images --batch_size 4 --seed 3 --keep 1 --log_interval 1"
SAMPLING = "--model_path model/model.pt --timestep_respacing 10 --batch_size 2 --seed 3"

# Name of a folder: script, arguments without --log_dir.
COMMANDS = {
    "image_train": ("image_train", f"{MODEL} {TRAINING} --save_interval 4 --iterations 10 --ema_rate 0.5"),
    "classifier_train": ("classifier_train", f"{CLASSIFIER} {TRAINING} --save_interval 1 --iterations 6"),
    "sampling": ("image_sample", f"{SAMPLING} --num_samples 10"),
    "guided": (
        "classifier_sample",
        f"{SAMPLING} --classifier_path classifier/model.pt --classifier_scale 2 --eds True --trace guided/trace.npz "
        "--trace_samples 1 --trace_maps 2 --num_samples 4",
    ),
}  # fmt: skip
# The same of a network of zeros that learns nothing, which packs to a few kB.
SMALL = {
    "training": ("image_train", f"{MODEL} {TRAINING} --lr 0 --init_from zeros/model.pt --iterations 3"),
    "sampling": ("image_sample", "--model_path zeros/model.pt --timestep_respacing 5 --batch_size 2 --seed 3"),
}
LONGER = 8  # samples that the finished guided run is extended to


def arguments(name: str, folder: str | None = None) -> list[str]:
    """The command of a run after the name of its script; `folder`: in place of its own."""
    words = COMMANDS[name][1].split()
    if folder is not None:
        words = [word.replace(f"{name}/", f"{folder}/") for word in words]
    return [*words, "--log_dir", folder or name]


def small_arguments(name: str) -> list[str]:
    return [*SMALL[name][1].split(), "--log_dir", name]


def run(repository: Path, program: str, words: list[str], cwd: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(repository / program), *words], cwd=cwd, env=environment)


def finish(repository: Path, name: str, words: list[str], cwd: Path) -> None:
    if run(repository, f"scripts/{COMMANDS[name][0]}.py", words, cwd).wait():
        raise SystemExit(f"{name} failed")


def result(folder: Path, name: str) -> dict[str, str]:
    """Digests of what a finished run left; a guided one with LONGER samples."""
    job = {
        "image_train": Training(name, HERE, [], last=10),
        "classifier_train": Training(name, HERE, [], last=5),
        "sampling": Sampling(name, HERE, [], samples=10),
        "guided": Sampling(name, HERE, [], samples=LONGER),
    }[name]
    return digests(job.result(folder))


def machine() -> dict[str, str]:
    """What the last bits depend on."""
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}


def pack(place: Path, name: str) -> None:
    with tarfile.open(HERE / name, "w:xz", preset=9) as archive:
        archive.add(place, ".", filter=lambda info: info.replace(mtime=0, uid=0, gid=0, uname="", gname="", deep=False))


def make_small(repository: Path, place: Path) -> None:
    """A training stopped after its first step, and a finished run of two samples."""
    from tests.support.helpers import make_checkpoint, make_images

    make_images(place / "images", per_class=2)
    flags = {"channel_mult": "1", "attention_resolutions": "1", "use_scale_shift_norm": False, "class_cond": True}
    model = make_checkpoint(place / "zeros", "model", **flags)
    zeros = {name: torch.zeros_like(values) for name, values in torch.load(model).items()}
    torch.save(zeros, model)
    (place / "code").symlink_to(repository)  # so that what is noted of the commands holds no path of this machine
    repository = Path("code")
    script = str(repository / f"scripts/{SMALL['training'][0]}.py")
    words = [script, "step:1", "SIGTERM", "0", *small_arguments("training")]
    run(repository, "tests/support/interrupted_program.py", words, place).wait()
    words = [*small_arguments("sampling"), "--num_samples", "2"]
    if run(repository, f"scripts/{SMALL['sampling'][0]}.py", words, place).wait():
        raise SystemExit("sampling failed")
    (place / "code").unlink()
    pack(place, "small.tar.xz")


def main() -> None:
    from tests.support.helpers import make_images

    repository, place = Path(sys.argv[1]).resolve(), Path(tempfile.mkdtemp())
    if "--small" in sys.argv:
        make_small(repository, place)
        shutil.rmtree(place)
        return
    make_images(place / "images", per_class=2)
    # Killed before it writes the first file after its first checkpoint, of 3 files; stopped in the first step. After
    # one step most of the moments are still 0, and with a rate of 0.5 most averages equal the weights: they pack well.
    for name, moment, kind in (("image_train", "file:4", "SIGKILL"), ("classifier_train", "step:1", "SIGTERM")):
        script = str(repository / f"scripts/{COMMANDS[name][0]}.py")
        words = [script, moment, kind, "0", *arguments(name)]
        status = run(repository, "tests/support/interrupted_program.py", words, place).wait()
        print(f"{name} ended with {status}")
    sources = {"model": "image_train/ema_0.5_000000.pt", "classifier": "classifier_train/model000000.pt"}
    for folder, source in sources.items():
        (place / folder).mkdir()
        shutil.copyfile(place / source, place / folder / "model.pt")
        shutil.copyfile(place / Path(source).parent / "config.json", place / folder / "config.json")
    process = run(repository, "scripts/image_sample.py", arguments("sampling"), place)
    while not (place / "sampling/parts/part-000000002.npz").exists():
        time.sleep(0.001)
    process.kill()
    process.wait()
    finish(repository, "guided", arguments("guided"), place)
    pack(place, "runs.tar.xz")

    expected = {"machine": machine()}
    for name in COMMANDS:
        more = ["--num_samples", str(LONGER)] if name == "guided" else []
        finish(repository, name, [*arguments(name, f"whole-{name}"), *more], place)
        expected[name] = result(place / f"whole-{name}", name)
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    shutil.rmtree(place)


if __name__ == "__main__":
    main()

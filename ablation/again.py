"""One reported run once more, from its command and the networks in the repository; is it within its interval?

    python -m ablation.again --protocol reduced --pick 7        # the run that this number picks at random
    python -m ablation.again --protocol reduced --run uncond-plain-entropy-1 --seed 2

Exit status 1 if the new FID is outside of the reported 95 % interval.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from ed_dpm_patches.reproduce.book import HELDOUT, ROOT
from ed_dpm_patches.reproduce.book_files import load
from ed_dpm_patches.reproduce.cli import Parser
from ed_dpm_patches.reproduce.results import read_json
from guided_diffusion import dist_util, run_directory
from guided_diffusion.errors import InputError

from .__main__ import PROTOCOLS, RECIPES, RESULTS

FILE = "model.safetensors"  # of each network in the repository, float16
DERIVED = "derived.json"  # in its place: {"network": of these weights, "temperature": what its logits are divided by}


def read_rows(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file of the report. InputError if it is not there."""
    if not path.is_file():
        raise InputError(f"{path}: no such file, `python -m ablation` writes it")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def translate(command: str, old: Path, new: Path, models: Path) -> list[list[str]]:
    """A reported command with networks of the repository, everything else below another folder.

    Before it come the commands that derive those networks whose weights are another one's.
    """
    commands = []

    def place(part: str) -> str:
        path = Path(part)
        if not path.is_relative_to(old):
            return part
        inner = path.relative_to(old)
        if inner.parts[0] != "networks":
            return str(new / inner)
        stored = models / inner.parts[1]
        if not (ROOT / stored / DERIVED).is_file():
            return str(stored / FILE)
        made = new / "networks" / stored.name / FILE
        if not (ROOT / made).is_file():
            derived = read_json(ROOT / stored / DERIVED)
            source, images = models.parent / derived["network"] / FILE, new / "data" / HELDOUT
            words = ["--temperature", derived["temperature"], source, images, made]
            commands.append(["python", "ablation/calibrate.py", *map(str, words)])
        return str(made)

    again = [place(part) for part in shlex.split(command)]
    return [*commands, again]


def commands_again(protocol: str, run: str, seed: str, new: Path) -> list[list[str]]:
    """The commands that sample and evaluate a reported run, below another folder. InputError for one that is not."""
    folder, old = RESULTS / protocol, Path("runs") / PROTOCOLS[protocol].out
    steps = [row for row in read_rows(folder / "commands.csv") if (row["run"], row["seed"]) == (run, seed)]
    if not steps:
        raise InputError(f"--run {run} --seed {seed}: not in {folder / 'commands.csv'}, expected one of its lines")
    models = RESULTS / "models" / protocol
    return [command for row in steps for command in translate(row["command"], old, new, models)]


def run_again(protocol: str, run: str, seed: str, new: Path) -> Iterator[str]:
    """Sample and evaluate; yields what is found. InputError for a step that fails or a run that is not reported."""
    folder, commands = RESULTS / protocol, commands_again(protocol, run, seed, new)
    bounds = [row for row in read_rows(folder / "intervals.csv") if (row["run"], row["seed"]) == (run, seed)]
    bounds = [row for row in bounds if row["metric"] == "fid"]
    if not bounds:
        raise InputError(f"--run {run} --seed {seed}: not in {folder / 'intervals.csv'}, expected one of its lines")
    if not (ROOT / new / "data" / HELDOUT).is_file():
        call(["python", *load(RECIPES / protocol).data.split(), str(new / "data")])
    for command in commands:
        yield shlex.join(command)
        call(command)
    fid = read_json(ROOT / commands[-1][commands[-1].index("--json") + 1])["fid"]
    value, low, high = (float(bounds[0][name]) for name in ("value", "low", "high"))
    yield f"{run}, seed {seed}: FID {fid:.6f}; reported {value:.6f} ({low:.6f} to {high:.6f})"
    if not low <= fid <= high:
        raise InputError(f"{run}, seed {seed}: found FID {fid:.6f}, expected {low:.6f} to {high:.6f}")


def call(command: list[str]) -> None:
    """Run a command in the repository; NAME=value words before it are variables."""
    words = list(takewhile(lambda word: "=" in word, command))
    command = command[len(words) :]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, **dict(word.split("=", 1) for word in words), "PATH": path}
    code = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL).returncode
    if code:
        raise InputError(f"{shlex.join(command)}: exit status {code}, expected 0")


def main() -> None:
    """Pick, run, compare. InputError for anything that is not there or not as reported."""
    parser = Parser(prog="python -m ablation.again", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--protocol", choices=PROTOCOLS, required=True)
    parser.add_argument("--pick", type=int, default=0, metavar="N", help="which run, at random (0)")
    parser.add_argument("--run", metavar="NAME", help="this one")
    parser.add_argument("--seed", default="1", help="of --run (1)")
    parser.add_argument("--out", type=Path, default=Path("runs/again"), metavar="DIR", help="(runs/again)")
    args = parser.parse_args()
    run, seed = args.run, args.seed
    if run is None:
        rows = read_rows(RESULTS / args.protocol / "runs.csv")
        row = random.Random(args.pick).choice(rows)
        run, seed = row["run"], row["seed"]
    run_directory.claim(ROOT / args.out, dist_util.fail)
    for line in run_again(args.protocol, run, seed, args.out):
        print(line, flush=True)


if __name__ == "__main__":
    dist_util.run_main(main)

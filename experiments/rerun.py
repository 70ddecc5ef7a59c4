"""`ed-dpm rerun`: one reported row once more, from its command and the stored networks; is it within its interval?

A report's folder has runs.csv, report.csv, commands.csv and intervals.csv, as `python -m experiments.cifar10` writes
them. Beside it `models/NAME/NETWORK/` holds the networks: weights in float16, or what to derive them from; of networks
that differ only in their training's seed, the first.
"""

from __future__ import annotations

import csv
import random
import shlex
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

from experiments.commands import Commands
from experiments.runner import Runner
from experiments.spec import HELDOUT, ROOT, short
from experiments.spec_files import load
from experiments.steps import Step, claim
from guided_diffusion.errors import InputError
from guided_diffusion.io.reading import read_json

REPORT = Path("results/cifar10/reduced")
RECIPES = ROOT / "experiments" / "cifar10" / "recipes"  # a folder of the report's name has its spec
FILE = "model.safetensors"
DERIVED = "derived.json"  # in its place: {"network": of these weights, "temperature": what its logits are divided by}


def read_rows(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file of a report. InputError if it is not there."""
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected that of a report by `python -m experiments.cifar10`")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def pick(report: Path, name: str | None, seed: str | None, number: int | None = None) -> tuple[str, str]:
    """The run of a row ("table/key") or of that name, and one of its seeds; for None one that a number picks.

    That is one whose networks are stored.
    """
    runs = [(row["run"], row["seed"]) for row in read_rows(report / "runs.csv") if seed in (None, row["seed"])]
    if name is None:
        for run in random.Random(number).sample(runs, len(runs)):
            with suppress(InputError):
                plan_again(report, *run, Path("runs"))
                return run
    rows = {row["row"]: row["run"] for row in read_rows(report / "report.csv") if row["run"]}
    found = [run for run in runs if run[0] == rows.get(name, name)]
    if not found:
        wanted = " ".join(filter(None, (name, seed and f"--seed {seed}"))) or "a run whose networks are stored"
        raise InputError(f"{wanted}: not in {report / 'report.csv'} or runs.csv, expected one of their rows or runs")
    return found[0]


def rerun(report: Path, run: str, seed: str, out: Path) -> str:
    """Sample and evaluate a run again below a folder; returns what is found.

    InputError for a step that fails, a run without command or interval, or a FID outside of the interval.
    """
    bounds = _lines(report / "intervals.csv", run, seed, metric="fid")[0]
    claim(ROOT / out / "rerun.json", {"report": str(short(report))})
    environment, steps = plan_again(report, run, seed, out)
    Runner(out, environment, show=False).run(steps)
    fid = read_json(ROOT / steps[-1].outputs[0])["fid"]
    value, low, high = (float(bounds[name]) for name in ("value", "low", "high"))
    if not low <= fid <= high:
        raise InputError(f"{run}, seed {seed}: found FID {fid:.6f}, expected {low:.6f} to {high:.6f}")
    return f"{run}, seed {seed}: FID {fid:.6f}; reported {value:.6f} ({low:.6f} to {high:.6f})"


def plan_again(report: Path, run: str, seed: str, out: Path) -> tuple[dict[str, str], list[Step]]:
    """Variables, and the steps: data, networks that have to be derived, sampling, evaluation."""
    reported = [shlex.split(row["command"]) for row in _lines(report / "commands.csv", run, seed)]
    variables = list(takewhile(lambda word: "=" in word, reported[0]))
    old = Path(reported[0][reported[0].index("--log_dir") + 1]).parents[1]
    models = short(report.parent / "models" / report.name)
    steps = [Commands(load(RECIPES / report.name), out=out).write_data()]

    def place(word: str) -> str:
        """A path of old in the new folder, a network's among the stored ones."""
        if not Path(word).is_relative_to(old):
            return word
        inner = Path(word).relative_to(old)
        if inner.parts[0] != "networks":
            return str(out / inner)
        stored = models / inner.parts[1]
        if not (ROOT / stored).is_dir():
            names = ", ".join(sorted(path.name for path in (ROOT / models).iterdir()))
            raise InputError(
                f"{stored}: not in the repository, expected a run with another network ({names}); it is trained by "
                f"`python -m experiments.cifar10 --protocol {report.name}`"
            )
        if not (ROOT / stored / DERIVED).is_file():
            return str(stored / FILE)
        made, derived = out / "networks" / stored.name / FILE, read_json(ROOT / stored / DERIVED)
        images, source = out / "data" / HELDOUT, models.parent / derived["network"] / FILE
        words = ("--temperature", derived["temperature"], source, images, made)
        command = ("python", "experiments/cifar10/calibrate.py", *map(str, words))
        steps.append(Step(f"derive-{stored.name}", command, (source, images), (made,)))
        return str(made)

    sample, evaluate = ([place(word) for word in command[len(variables) :]] for command in reported)
    samples, metrics = Path(evaluate[3]), Path(evaluate[evaluate.index("--json") + 1])
    for name, command, output in (("sample", sample, samples), ("evaluate", evaluate, metrics)):
        made = {str(path) for step in steps for path in step.outputs}
        inputs = tuple(Path(word) for word in command if word in made)
        steps.append(Step(f"{name}-{run}-seed{seed}", tuple(command), inputs, (output,)))
    return dict(word.split("=", 1) for word in variables), steps


def _lines(path: Path, run: str, seed: str, **also: str) -> list[dict[str, str]]:
    """The lines on a run. InputError where there is none."""
    wanted = {"run": run, "seed": seed} | also
    found = [row for row in read_rows(path) if wanted.items() <= row.items()]
    if not found:
        raise InputError(f"{run}, seed {seed}: not in {path}, expected a line on it")
    return found

"""Every documented `ed-dpm` command: those that print and draw are run, `run` is planned to its last step.

What the planned steps do is run in experiments/test_runner.py, downloads in experiments/test_downloads.py.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import cli
from experiments.diagnose import flags as diagnose
from experiments.frontier import __main__ as frontier
from experiments.plan import plan
from experiments.rerun import pick, plan_again
from experiments.spec_files import load
from experiments.tune import __main__ as tune
from guided_diffusion.config.configs import ClassifierConfig, DiffusionConfig, ModelConfig
from guided_diffusion.config.create import build_model
from guided_diffusion.runs.status import Status
from tests.support.documents import documented_commands
from tests.support.figures import make_sweep_table, make_trace, sweep_rows
from tests.support.helpers import ROOT

COMMANDS = sorted({command for _, command in documented_commands() if command.startswith("ed-dpm ")})


def test_every_command_is_documented():
    documented = {command.split()[1] for command in COMMANDS}
    assert documented == {"list", "show", "run", "report", "rerun", "figure", "download", "status", "diagnose", "tune"}
    figures = {command.split()[2] for command in COMMANDS if command.split()[1] == "figure"}
    assert figures == set(cli.figures.FIGURES)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_documented_command(command, tmp_path, monkeypatch, capsys):
    words = shlex.split(command)[1:]
    monkeypatch.chdir(ROOT if words[0] == "run" else tmp_path)
    if words[0] == "figure":
        pytest.importorskip("matplotlib")
        make_inputs(words, tmp_path)
    if words[0] in ("diagnose", "tune"):
        monkeypatch.setattr(sys, "argv", words)
        parsed = diagnose.parse("") if words[0] == "diagnose" else tune.parse(words[1:])[1]
        assert parsed.make(ModelConfig).image_size == parsed.make(ClassifierConfig).image_size == 256
        with torch.device("meta"):
            network = build_model(parsed.make(ModelConfig), parsed.make(DiffusionConfig))
        assert sum(p.numel() for p in network.parameters()) == 552_814_086  # as the published file has
        return
    if words[:2] == ["run", "frontier"]:
        assert load(frontier.create_parser().parse_args(words[2:]).recipes).tables.keys() >= {"references", "frontier"}
        return
    args = cli._parser().parse_args(words)  # InputError for what is not there
    if words[0] == "run":
        commands, rows = cli._commands(args)
        assert len(plan(commands, rows)) > len(rows) / 2
        return
    if words[0] == "rerun":
        report = ROOT / args.report
        assert plan_again(report, *pick(report, args.row, args.seed), args.out)[1]
        return
    if words[0] == "download" and words[1] != "list":
        return
    if words[0] == "report":
        book = {"recipes": "experiments/recipes", "rehearsal": False}
        args.out.mkdir(parents=True)
        (args.out / "book.json").write_text(json.dumps(book))
    if words[0] == "status":
        args.directory.mkdir()
        Status(args.directory, total=10, unit="images")
    monkeypatch.setattr(sys, "argv", ["ed-dpm", *words])
    cli.main()
    printed = capsys.readouterr().out.splitlines()
    if words[0] in ("report", "figure"):
        assert printed and all(Path(line).is_file() for line in printed)
    elif words[0] == "status":
        assert "running" in " ".join(printed)
    elif "--work" in words:
        assert printed
    else:
        assert len(printed) > 10


def make_inputs(words: list[str], folder: Path) -> None:
    """The files that a figure's command names, in `folder`."""
    rng = np.random.RandomState(0)
    for word in words[2:]:
        path = folder / word.split("=")[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        if words[1] == "compare" and "=" in word and not path.suffix:  # a sampling run's folder
            path.mkdir()
            path /= "samples_40x8x8x1.npz"
        if words[1] == "compare" and path.suffix == ".npz":
            np.savez(path, arr_0=rng.randint(0, 256, (40, 8, 8, 1)).astype(np.uint8), arr_1=np.arange(40) % 10)
        elif path.suffix == ".npz":
            make_trace(path, maps=4)
        elif path.suffix == ".txt":
            path.write_text("\n".join(map(str, range(10))))
        elif words[1] == "samplers" and path.suffix == ".csv":
            shutil.copy(ROOT / "results" / "digits" / "runs.csv", path)
        elif path.suffix == ".csv":
            prefix = words[words.index("--runs") + 1].removesuffix("*")
            make_sweep_table(path, *((prefix + name, *rest) for name, *rest in sweep_rows()))

"""The rule and the sampler of docs/extending.md: in --help, in a run, in report and figures."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import sys
from functools import partial

import pytest

from benchmarks.gpu import program_checks
from ed_dpm_patches.rules import RULES
from experiments.figures import cli as figures
from experiments.report import write_report
from guided_diffusion.diffusion.solvers import SAMPLERS
from scripts import classifier_sample
from tests.support import fabricated_results
from tests.support.documents import run_example
from tests.support.helpers import read_npz


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(RULES, "confidence", None)  # removed after the test
    monkeypatch.setitem(SAMPLERS, "half", None)
    run_example("extending.md", "A guidance rule")
    run_example("extending.md", "A sampler")


def test_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["classifier_sample", "--help"])
    with pytest.raises(SystemExit, match="0"):
        classifier_sample.main()
    told = " ".join(capsys.readouterr().out.split()).replace("- ", "-")  # lines end after hyphens, too
    assert f"(one of {', '.join(RULES)}; default 'constant')" in told and "confidence" in RULES
    assert "(one of \"\", ddpm, ddim, dpmpp2m, unipc, heun, strang, half; default '')" in told


def test_a_run(tmp_path):
    flags = program_checks.guided(tmp_path) | {"eds": False, "guidance": "confidence", "sampler": "half"}
    sample = partial(program_checks.call, "classifier_sample")
    out = sample(tmp_path / "out", **flags, guidance_factor=3.0, trace=tmp_path / "trace.npz")
    saved = json.loads((out / "run.json").read_text())
    assert (saved["guidance"], saved["sampler"]) == ("confidence", "half")
    trace = read_npz(tmp_path / "trace.npz")
    assert trace["scale"].min() >= 2 * 3 and trace["relative_guidance"].min() > 0
    other = sample(tmp_path / "other", **flags, guidance_factor=30.0)
    images = [read_npz(next(folder.glob("samples_*.npz")))["arr_0"] for folder in (out, other)]
    assert (images[0] != images[1]).any()


def test_report_and_figures(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    varied = {f"mine-{c}": {"guidance_factor": c, "sampler": "half"} for c in (2.0, 4.0)}
    runs = {
        name: fabricated_results.make_run(name, classifier_scale=1.0, guidance="confidence", **flags)
        for name, flags in varied.items()
    }
    for name, run in runs.items():
        monkeypatch.setitem(fabricated_results.RUNS, name, run)
    book = dataclasses.replace(fabricated_results.BOOK, runs=fabricated_results.RUNS)
    for name, fid in zip(runs, (9.0, 8.0), strict=True):
        fabricated_results.put_run(tmp_path, name, fid)
    write_report(book, tmp_path)
    with (tmp_path / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ("guidance", "classifier_scale", "guidance_factor", "guidance_until", "sampler")
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("confidence", "1.0", c, "", "Half 25") for c in ("2.0", "4.0")
    ]

    parser = argparse.ArgumentParser()
    figures.add_parser(parser.add_subparsers())
    for kind, column in (("sweep", "rule"), ("samplers", "guidance")):
        args = parser.parse_args(["figure", kind, str(tmp_path / "runs.csv"), "--out", str(tmp_path / f"{kind}.png")])
        picture, data = args.draw(args)
        with data.open(newline="") as file:
            drawn = list(csv.DictReader(file))
        assert picture.is_file() and [row[column] for row in drawn] == ["confidence"] * 2
        assert {row["sampler"].split()[0] for row in drawn} == {"Half"}

"""`ed-dpm figure samplers`: the CSV against hand computation, the PNG as a picture; what books call samplers."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from experiments.spec import ROOT
from experiments.spec_files import load
from guided_diffusion.diffusion.solvers import SAMPLERS
from tests.support.fabricated_results import make_run
from tests.support.figures import check_picture, figure, read_table, refused

HEADER = [
    "run", "seed", "n", "classifier", "guidance", "classifier_scale", "guidance_factor", "sampler", "fid", "rehearsal",
]  # fmt: skip


def make_table(folder: Path, *rows: tuple) -> Path:
    with open(folder / "runs.csv", "w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return folder / "runs.csv"


def row(run: str, sampler: str, fid: object, seed: int = 0, guidance: str = "constant", scale: float = 2.0) -> tuple:
    return run, seed, 50, "c" if guidance else "", guidance, scale if guidance else "", "", sampler, fid, ""


@pytest.mark.slow
def test_points_by_sampler_and_evaluations(tmp_path):
    table = make_table(
        tmp_path,
        *(row(f"u-{steps}", f"UniPC {steps}", 100 / steps + seed, seed) for seed in (0, 1) for steps in (25, 5, 10)),
        *(row(f"d-{steps}", f"DDIM {steps}", 300 / steps) for steps in (5, 10)),
        *(row(f"h-{steps}", f"Heun {steps}", 200 / steps) for steps in (4, 8)),
        row("e-5", "UniPC 5", 7, guidance="entropy"),
        row("free", "DPM-Solver++(2M) 5", 90, guidance=""),
        row("unfinished", "DDIM 50", ""),
    )
    picture, data = figure("samplers", table, "--out", tmp_path / "f.png")
    check_picture(picture)
    columns = ("sampler", "guidance", "evaluations", "run", "seeds", "fid", "half_range")
    assert [tuple(line[name] for name in columns) for line in read_table(data)] == [
        ("UniPC", "constant", "5", "u-5", "2", "20.5", "0.5"),
        ("UniPC", "constant", "10", "u-10", "2", "10.5", "0.5"),
        ("UniPC", "constant", "25", "u-25", "2", "4.5", "0.5"),
        ("DDIM", "constant", "5", "d-5", "1", "60", "0"),
        ("DDIM", "constant", "10", "d-10", "1", "30", "0"),
        ("Heun", "constant", "7", "h-4", "1", "50", "0"),
        ("Heun", "constant", "15", "h-8", "1", "25", "0"),
    ]
    # One point is no curve, unless there is nothing else.
    alone = read_table(figure("samplers", table, "--runs", "[ef]*", "--out", tmp_path / "f.png")[1])
    assert [tuple(line[name] for name in columns) for line in alone] == [
        ("UniPC", "entropy", "5", "e-5", "1", "7", "0"),
        ("DPM-Solver++(2M)", "", "5", "free", "1", "90", "0"),
    ]
    assert len(read_table(figure("samplers", table, "--runs", "d-*", "--out", tmp_path / "f.png")[1])) == 2


def test_bad_tables(tmp_path):
    one, unnumbered = row("a", "DDIM 5", 9), make_table(tmp_path, row("a", "DDIM", 9))
    refused("found sampler 'DDIM', expected a name and a number", "samplers", unnumbered)
    refused("found sampler ''", "samplers", make_table(tmp_path, row("a", "", 9)))
    refused("one seed twice", "samplers", make_table(tmp_path, one, one))
    refused(r"runs a and b are the same point of one curve \(DDIM at 5\)", "samplers",
            make_table(tmp_path, one, row("b", "DDIM 5", 8)))  # fmt: skip
    figure("samplers", make_table(tmp_path, one, row("b", "DDIM 5", 8, scale=3.0)), "--out", tmp_path / "f.png")
    refused("found fid 'x'", "samplers", make_table(tmp_path, row("a", "DDIM 5", "x")))
    refused("no run z", "samplers", make_table(tmp_path, one), "--runs", "z")
    refused("would replace", "samplers", make_table(tmp_path, one), "--out", tmp_path / "runs.png")


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({}, "DDPM 25"), ({"sampler": ""}, "DDPM 25"), ({"use_ddim": True}, "DDIM 25"),
        ({"sampler": "ddim"}, "DDIM 25"),
        ({"sampler": "dpmpp2m"}, "DPM-Solver++(2M) 25"), ({"sampler": "unipc", "timestep_respacing": 8}, "UniPC 8"),
    ],
)  # fmt: skip
def test_names_of_samplers(flags, name):
    assert make_run("x", **flags).sampler == name


def test_the_digits_book_differs_in_nothing_but_sampler_steps_and_rule():
    book = load(ROOT / "experiments" / "digits" / "recipes")
    rows = [*book.rows("samplers"), *book.rows("samplers-eds")]
    runs = {name: book.runs[name] for row in rows for name in row.run_names}.values()
    varied = ("sampler", "timestep_respacing", "eds")
    common = {tuple(sorted((k, v) for k, v in run.flags.items() if k not in varied)) for run in runs}
    assert len(common) == 1 and len(runs) == 6 * (4 + 3)
    assert {run.flags["sampler"] for run in runs} <= set(SAMPLERS)

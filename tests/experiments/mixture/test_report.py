"""The tables of a made-up raw.csv, and those of the committed results."""

from __future__ import annotations

import re
import sys

import pytest

from experiments.figures.style import write_csv
from experiments.mixture import __main__ as program
from experiments.mixture import report
from experiments.mixture.study import METRICS, read_spec
from tests.support.helpers import ROOT

TITLES = {name: values["title"] for name, values in read_spec()["methods"].items()}
RESULTS = ROOT / "results" / "mixture"


def line(method, chosen_by, scale, within, classifier="exact"):
    """A line of raw.csv, with distances of within - 0.01, within, within + 0.01 on three seeds."""
    axes = {"data": "plane", "classifier": classifier, "denoiser": "exact", "method": method, "sampler": "ddim"}
    values = {f"{name}_{seed}": within + 0.01 * (seed - 2) for name in METRICS for seed in (1, 2, 3)}
    return axes | {"steps": 25, "clip": 0.0, "chosen_by": chosen_by, "scale": scale} | values


@pytest.fixture
def made_up(tmp_path):
    rows = [
        line("constant", "within", 1.0, 0.2), line("constant", "frechet", 2.0, 0.3),
        line("timestep", "both", 0.5, 0.4), line("eds", "both", 0.5, 0.1),
        line("cfg", "both", 1.0, 0.05, classifier="none"),
    ]  # fmt: skip
    write_csv(tmp_path / "raw.csv", rows)
    return tmp_path


def test_the_tables_of_a_made_up_raw_file(made_up):
    entries = report.read(made_up / "raw.csv")
    found = {(row["method"], row["chosen_by"]): row for row in report.table(entries)}
    assert len(found) == 8
    assert found["constant", "within"]["scale"] == 1 and found["constant", "frechet"]["scale"] == 2
    assert found["eds", "within"]["within"] == pytest.approx(0.1)
    assert found["eds", "within"]["within_sd"] == pytest.approx(0.01)
    text = re.sub(" +", " ", report.markdown(entries, TITLES))
    # Paired: the differences of the seeds are all the same, so that the interval is nil.
    assert "200 ± 10 | +100 ± 0 % | **-50 ± 0 %** |" in text
    assert "300 ± 10 | +33 ± 0 % | **-67 ± 0 %** |" in text
    assert "| classifier-free | **50.0 ± 10.0** |" in text
    assert "| timestep-aware |" in text


@pytest.mark.slow
def test_the_report_is_made_of_the_raw_file_alone(made_up, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "argv", ["mixture", "--out", str(made_up), "--report"])
    program.main()
    assert str(made_up / "table.md") in capsys.readouterr().out
    assert {path.name for path in made_up.iterdir()} == {"raw.csv", "table.csv", "table.md", "figure.png"}
    assert (made_up / "figure.png").stat().st_size < 60_000


def test_without_a_raw_file(tmp_path):
    with pytest.raises(report.InputError, match="raw.csv: not found"):
        report.read(tmp_path / "raw.csv")


def test_the_committed_tables_follow_from_the_raw_file(tmp_path):
    entries = report.read(RESULTS / "raw.csv")
    report.write(tmp_path, entries, TITLES)
    for name in ("table.csv", "table.md"):
        assert (tmp_path / name).read_text() == (RESULTS / name).read_text(), name


@pytest.mark.parametrize("document", ["results/mixture/README.md", "docs/guidance.md"])
def test_the_documents_say_what_the_tables_say(document):
    text, tables = (ROOT / document).read_text(), (RESULTS / "table.md").read_text().replace("**", "")
    assert report.overview(report.read(RESULTS / "raw.csv"), TITLES) in text
    said = re.findall(r"[+-]?\d[\d.]* ± [\d.]*\d(?: %)?", text.replace("\n", " "))
    assert len(said) > 50 and [number for number in said if number not in tables] == []


def test_the_committed_files_are_small():
    assert (RESULTS / "raw.csv").stat().st_size <= 400_000 and (RESULTS / "figure.png").stat().st_size <= 60_000

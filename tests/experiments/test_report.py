"""`ed-dpm report` on fabricated results: figures, marks, sweeps, noise, provenance, and its four files."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments.report import TABLE_COLUMNS, write_report
from experiments.results import read_results
from experiments.smoke import smoke
from experiments.spec import DIGITS, Row, Spec
from experiments.spec_files import load
from guided_diffusion.errors import InputError
from tests.support.fabricated_results import (
    BOOK,
    CLASSIFIER_SHA,
    COMMIT,
    JUDGE_SHA,
    MODEL_SHA,
    NONE,
    REFERENCE_SHA,
    RUNS,
    TABLES,
    put_metrics,
    put_run,
    put_step,
)

FILES = ("report.md", "report.html", "report.csv", "runs.csv")


def report(out: Path, book: Spec = BOOK) -> str:
    """The Markdown of a fresh report."""
    out.mkdir(exist_ok=True)
    assert write_report(book, out) == [out / name for name in FILES]
    return (out / "report.md").read_text()


def records(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def cells(markdown: str, table: str, method: str) -> list[list[str]]:
    """The lines of a method in a table, as cells from the second column on."""
    section = re.search(rf"^## (?:SMOKE RUN: )?{table}$(.*?)(?=^## |\Z)", markdown, re.M | re.S).group(1)
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    found, inside = [], False
    for first, *rest in ([cell.strip() for cell in line] for line in lines[2:]):
        inside = first == method or (inside and not first)
        if inside:
            found.append(rest)
    return found


# ---- figures


def test_figures_differences_and_origin_of_a_row(tmp_path):
    put_run(tmp_path, "plain", 20.5, 21.5)
    put_metrics(tmp_path, "batch-pub", 50_000, 20.25)
    paper, release, ours, difference, published, its_difference = cells(report(tmp_path), "The main table", "Plain")
    assert paper[:6] == ["paper", "20.00", "7.00", "84.50", "0.71", "0.50"]
    assert release[:6] == ["release", "20.10", "", "", "", ""]
    assert ours[:6] == ["ours", "21.00 ± 0.50", "8.00 ± 0.00", "90.00 ± 0.00", "0.700 ± 0.000", "0.600 ± 0.000"]
    assert ours[6:] == ["1,000", "0, 1", COMMIT, MODEL_SHA[:12], CLASSIFIER_SHA[:12]]
    assert difference[:6] == ["difference", "+1.00", "+1.00", "+5.50", "-0.010", "+0.100"]
    assert published[:2] == ["published samples", "20.25"] and published[6] == "50,000"
    assert its_difference[1] == "+0.25"
    text = report(tmp_path, replace(BOOK, data=DIGITS))
    assert {"Plain (real images)"} < {record["method"] for record in records(tmp_path / "report.csv")}
    assert cells(text, "The main table", "Plain")[4][0] == "real images"


def test_rows_without_results_and_quoted_rows(tmp_path):
    text = report(tmp_path)
    assert "0 of 8 runs have results" in text and "A note on the table." in text
    assert [line[:2] for line in cells(text, "The main table", r"Cited \| elsewhere")] == [["paper (quoted)", "36.51"]]
    assert cells(text, "The main table", "Unguided")[1][0] == "ours: not run"
    assert cells(text, "The main table", "Others")[1][0] == "published samples: not run"
    assert cells(text, "The rules", "Entropy")[1][0] == "ours (best of 3): not run"
    assert "Provenance" not in text
    assert records(tmp_path / "runs.csv") == []


def test_a_difference_that_rounds_to_nothing_has_no_sign_of_its_own(tmp_path):
    put_run(tmp_path, "plain", 19.999)
    assert cells(report(tmp_path), "The main table", "Plain")[3][1] == "+0.00"


def test_fewer_samples_and_seeds_are_marked(tmp_path):
    put_run(tmp_path, "plain", 22.0, n=200)
    ours = cells(report(tmp_path), "The main table", "Plain")[2]
    assert ours[1] == "22.00" and ours[6:8] == ["FEWER: 200 of 1,000", "0 (FEWER: 1 of 2)"]
    assert (tmp_path / "report.html").read_text().count('class="number mark"') == 2  # the run is in two tables


def test_the_largest_number_of_samples_counts_with_all_its_seeds(tmp_path):
    put_run(tmp_path, "plain", 1.0, 2.0, 3.0, n=90)
    put_run(tmp_path, "plain", 20.0, 22.0, n=1000)
    put_metrics(tmp_path, "unknown-seed0-1000", 1000, 5.0)
    result = read_results(BOOK, tmp_path).runs["plain"]
    assert (result.n, result.seeds, result.mean("fid"), result.half_range("fid")) == (1000, (0, 1), 21.0, 1.0)
    assert result.evaluations[0].images_per_second == 2.0
    assert result.half_range("accuracy") is None and result.mean("accuracy") is None


def test_accuracy_has_a_column_where_it_was_computed(tmp_path):
    put_run(tmp_path, "unguided", 11.0)
    assert "accuracy" not in report(tmp_path)
    put_metrics(tmp_path, "unguided-seed0-1000", 1000, 11.0, accuracy=0.25)
    ours = cells(report(tmp_path), "The main table", "Unguided")[1]
    assert ours[6] == "0.250" and ours[11] == ""  # no classifier
    assert cells(report(tmp_path), "The rules", "Baseline")  # rectangular, without the column
    found = [r for r in records(tmp_path / "report.csv") if r["metric"] == "accuracy"]
    assert [(r["row"], r["ours"], r["paper"]) for r in found] == [("main/unguided", "0.25", "")]


def test_what_the_reference_cannot_give_is_left_out_with_a_line(tmp_path):
    """Statistics of mu and sigma alone give no sFID, and without images no precision and recall."""
    put_run(tmp_path, "plain", 21.0)
    assert "Without" not in report(tmp_path)
    put_metrics(tmp_path, "plain-seed0-1000", 1000, 21.0, sfid=None, precision=None, recall=None)
    text = report(tmp_path)
    assert "Without sFID: 1 of 1 results (plain), as their reference or feature network cannot give it" in text
    assert "Without precision: " in text and "Without recall: " in text and "Without IS" not in text
    ours = cells(text, "The main table", "Plain")[2]
    assert ours[1:6] == ["21.00", "", "90.00", "", ""]
    assert records(tmp_path / "runs.csv")[0]["sfid"] == ""


def test_results_without_records_have_no_origin(tmp_path):
    put_metrics(tmp_path, "plain-seed0-1000", 1000, 21.0)
    assert cells(report(tmp_path), "The main table", "Plain")[2][6:] == ["1,000", "0 (FEWER: 1 of 2)", "", "", ""]
    assert records(tmp_path / "runs.csv")[0]["images_per_second"] == ""


# ---- sweeps and noise


def put_rules(out: Path) -> None:
    put_run(out, "plain", 19.0, 21.0)  # mean 20, relative deviations -/+ 0.05: sum of squares 0.005
    put_run(out, "range-5", 19.0, 19.0)
    put_run(out, "range-10", 18.0, 18.0)
    put_run(out, "entropy-2", 12.0, 12.0)
    put_run(out, "entropy-4", 10.0, 10.0)
    put_run(out, "entropy-6", 11.0, 11.0)


def test_the_best_run_of_a_sweep_is_the_rows_result(tmp_path):
    put_rules(tmp_path)
    text = report(tmp_path)
    assert cells(text, "The rules", "Entropy")[1][:2] == ["ours (best of 3: gamma = 4)", "10.00 ± 0.00"]
    assert cells(text, "The rules", "Range")[1][0] == "ours (best of 2: C = 10)"
    assert "Range: its best, C = 10, is at the edge of the values tried" in text
    assert "Entropy: its best" not in text
    by_row = {r["row"]: r for r in records(tmp_path / "report.csv") if r["metric"] == "fid"}
    assert (by_row["rules/entropy"]["run"], float(by_row["rules/entropy"]["difference"])) == ("entropy-4", -6.0)


def test_a_sweep_compares_equal_numbers_of_samples(tmp_path):
    put_run(tmp_path, "entropy-2", 12.0, n=1000)
    put_run(tmp_path, "entropy-4", 10.0, n=1000)
    put_run(tmp_path, "entropy-6", 1.0, n=100)
    ours = cells(report(tmp_path), "The rules", "Entropy")[1]
    assert ours[:2] == ["ours (best of 2 of the 3 asked for: gamma = 4)", "10.00"]


def test_rules_are_compared_within_the_noise(tmp_path):
    """Noise by hand: six runs with one degree of freedom each share the sum of squares of one of them."""
    put_rules(tmp_path)
    text = report(tmp_path)
    spread = 0.005 / 6
    noise = [math.sqrt(spread * (20**2 + other**2) / 2) for other in (18, 10)]
    assert [f"{value:.2f}" for value in noise] == ["0.55", "0.46"]
    assert "- Range against Baseline: FID -2.00, noise 0.55: better.\n" in text
    assert "- Entropy against Baseline: FID -10.00, noise 0.46: better.\n" in text
    assert "Norm against" not in text  # not run
    assert "Baseline had fewer values tried" in text
    assert "against" not in text.split("## The rules")[0]
    put_run(tmp_path, "plain", 18.0, 22.0)  # twice the spread
    assert "Range against Baseline: FID -2.00, noise 1.10: the same within the noise." in report(tmp_path)
    put_run(tmp_path, "norm", 30.0, 30.0)
    assert "Norm against Baseline: FID +10.00" in report(tmp_path) and ": worse." in report(tmp_path)


def test_one_seed_says_nothing_about_noise(tmp_path):
    put_run(tmp_path, "plain", 20.0)
    put_run(tmp_path, "entropy-4", 10.0)
    put_run(tmp_path, "norm", 10.0, n=100)
    text = report(tmp_path)
    assert "Entropy against Baseline: FID -10.00, noise unknown with one seed a run." in text
    assert "Norm against Baseline: not compared, 100 samples against 1,000." in text


def test_a_rule_is_compared_with_the_constant_one_of_its_networks(tmp_path):
    put_rules(tmp_path)
    ect = {
        f"ect-{name}": replace(run, name=f"ect-{name}", classifier="ect")
        for name, run in (("constant", RUNS["plain"]), ("entropy", RUNS["entropy-4"]))
    }
    for name, fid in (("ect-constant", 15.0), ("ect-entropy", 9.0)):
        put_metrics(tmp_path, f"{name}-seed0-1000", 1000, fid)
    rows = [Row(f"rules/{name}", name, NONE, NONE, name) for name in ect]
    table = replace(TABLES[1], rows=(*TABLES[1].rows, *rows))
    text = report(tmp_path, replace(BOOK, runs=RUNS | ect, tables={"rules": table}))
    assert "ect-constant against Baseline: FID -5.00" in text and "ect-entropy against ect-constant: FID -6.00" in text


# ---- smoke runs, formats, provenance


def test_a_smoke_run_is_named_in_every_table(tmp_path):
    put_rules(tmp_path)
    text = report(tmp_path, smoke(BOOK))
    page = (tmp_path / "report.html").read_text()
    for table in TABLES:
        assert f"## SMOKE RUN: {table.title}\n\nSMOKE RUN: " in text
        assert f"<h2>SMOKE RUN: {table.title}</h2>\n<p>SMOKE RUN: " in page
    assert text.count("values mean nothing") == page.count("values mean nothing") == 1 + len(TABLES)
    for name in ("report.csv", "runs.csv"):
        assert {record["rehearsal"] for record in records(tmp_path / name)} == {"SMOKE RUN"}
    assert "SMOKE RUN" not in report(tmp_path)
    assert not any("SMOKE RUN" in (tmp_path / name).read_text() for name in FILES)


class Page(HTMLParser):
    """Checks that tags are closed in order, and keeps which there are."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.seen, self.cells = [], set(), []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        assert not {"src", "href"} & {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_the_page_is_whole_and_holds_what_the_text_holds(tmp_path):
    put_rules(tmp_path)
    text = report(tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert "script" not in page.seen and {"table", "style"} <= page.seen
    in_text = [cell.strip().replace("\\|", "|") for line in text.splitlines() if line.startswith("| ")
               for cell in re.split(r"(?<!\\)\|", line)[1:-1]]  # fmt: skip
    assert page.cells == [cell for cell in in_text if cell and not re.fullmatch("-+:?", cell)]


def test_the_lines_of_a_table_are_aligned(tmp_path):
    put_rules(tmp_path)
    for section in report(tmp_path).split("## ")[1:]:
        assert len({len(line) for line in section.splitlines() if line.startswith("|")}) == 1


def test_provenance_has_every_file_once_with_its_whole_hash(tmp_path):
    put_rules(tmp_path)
    put_run(tmp_path, "unguided", 11.0)
    text = report(tmp_path)
    assert cells(text, "Provenance", "model") == [["model.pt", MODEL_SHA]]
    assert cells(text, "Provenance", "classifier") == [["ect/model000019.pt", CLASSIFIER_SHA]]
    assert cells(text, "Provenance", "reference") == [["ref.npz", REFERENCE_SHA]]
    assert cells(text, "Provenance", "judge") == [["graph.pb", JUDGE_SHA]]


def test_a_checkpoint_that_changed_between_seeds_is_seen(tmp_path):
    put_run(tmp_path, "unguided", 11.0, 12.0)
    command = ["sample.py", "--model_path", "models/model.pt"]
    put_step(tmp_path, "sample-unguided-seed1-1000", command, {"models/model.pt": "d4" * 32}, commit=None)
    ours = cells(report(tmp_path), "The main table", "Unguided")[1]
    assert ours[9] == f"{MODEL_SHA[:12]}, {'d4' * 6}"


def test_the_csv_files_round_trip(tmp_path):
    put_run(tmp_path, "plain", 20.5, 21.5)
    put_run(tmp_path, "norm", 1 / 3)
    put_run(tmp_path, "range-5", 19.0)
    put_run(tmp_path, "entropy-2", 12.0)
    put_run(tmp_path, "unguided", 11.0)
    put_metrics(tmp_path, "batch-pub", 50_000, 20.25)
    report(tmp_path)
    table, runs = records(tmp_path / "report.csv"), records(tmp_path / "runs.csv")
    assert tuple(table[0]) == TABLE_COLUMNS
    metrics = ["fid", "sfid", "inception_score", "precision", "recall", "accuracy"]
    assert list(runs[0])[11:19] == ["sampler", *metrics, "images_per_second"]

    ours, published = (r for r in table if r["row"] == "main/plain" and r["metric"] == "fid")
    expected = {
        "table": "main", "method": "Plain", "paper": "20.0", "release": "20.1", "ours": "21.0", "half_range": "0.5",
        "difference": "1.0", "n": "1000", "asked": "1000", "seeds": "0 1", "run": "plain", "commit": COMMIT,
        "model_sha256": MODEL_SHA, "classifier_sha256": CLASSIFIER_SHA, "reference_sha256": REFERENCE_SHA,
        "rehearsal": "",
    }  # fmt: skip
    assert {key: ours[key] for key in expected} == expected
    assert (published["method"], published["ours"], published["run"]) == (
        "Plain (published samples)", "20.25", "pub.npz",
    )  # fmt: skip
    cited = next(r for r in table if r["row"] == "main/cited")
    assert (cited["method"], cited["paper"], cited["ours"]) == ("Cited | elsewhere", "36.51", "")

    by_name = {(r["run"], r["seed"]): r for r in runs}
    assert len(by_name) == len(runs) == 6
    assert float(by_name["norm", "0"]["fid"]) == 1 / 3
    columns = ("guidance", "classifier_scale", "guidance_factor", "guidance_until", "guidance_norm", "sampler")
    assert [[by_name[name, "0"][c] for c in columns] for name in ("plain", "entropy-2", "range-5", "norm")] == [
        ["constant", "10.0", "", "", "", "DDIM 25"],
        ["entropy", "2.0", "", "", "", "DDPM 25"],
        ["range", "1.0", "5.0", "700", "", "DDPM 25"],
        ["gradnorm", "1.0", "300.0", "", "0.2", "DDPM 25"],
    ]
    unguided = by_name["unguided", "0"]
    assert [unguided[c] for c in ("classifier", *columns)] == [""] * 6 + ["DDPM 250"]
    assert unguided["images_per_second"] == "2.0" and unguided["samples"] == "/made/unguided-seed0-1000.npz"
    assert by_name["plain", "1"]["fid"] == "21.5" and by_name["plain", "1"]["accuracy"] == ""


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics/plain-seed0-1000.json", "{", "expected a JSON object, found no JSON"),
        ("metrics/plain-seed0-1000.json", "[]", "expected a JSON object, found a list"),
        ("metrics/plain-seed0-1000.json", "{}", "fid: found None, expected a finite number"),
        ("metrics/batch-others.json", '{"fid": NaN}', "fid: found nan, expected a finite number"),
        ("steps/sample-plain-seed0-1000.json", '{"command": []}', "inputs: found None, expected an object"),
        ("steps/evaluate-plain-seed0-1000.json", '{"command": "x"}', "command: found 'x', expected a list"),
        (
            "steps/sample-plain-seed0-1000.json",
            '{"command": [], "commit": null, "device": "d", "seconds": 1, "processes": 1, "inputs": {"a.pt": null}}',
            "inputs: a.pt: found None, expected a sha256",
        ),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, file, content, message):
    put_run(tmp_path, "plain", 20.0)
    (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        write_report(BOOK, tmp_path)
    assert str(error.value).startswith(f"{tmp_path / file}: ") and "\n" not in str(error.value)
    assert not (tmp_path / "report.md").exists()


def test_a_file_of_another_number_of_samples_than_its_name_says(tmp_path):
    put_metrics(tmp_path, "plain-seed0-1000", 999, 20.0)
    with pytest.raises(InputError, match="n_samples: found 999, expected 1000"):
        read_results(BOOK, tmp_path)


def test_the_papers_book_has_a_report(tmp_path):
    text = report(tmp_path, load())
    assert all(f"## {table.title}\n" in text for table in load().tables.values())
    rows = {record["row"] for record in records(tmp_path / "report.csv")}
    assert rows == {row.name for table in load().tables.values() for row in table.rows}

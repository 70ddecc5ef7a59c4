"""Paired tests that a finished report lacks, because its comparisons came in later: both runs are made once more.

    python -m ablation.later --protocol reduced --at_once 2

Every run comes from its reported command and the networks in the repository, and has to be within its reported
interval. Then paired.csv has all tests, and the conclusions and the table of differences are written anew from it.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ed_dpm_patches.reproduce.book import ROOT, Book, Figures, Row, Table
from ed_dpm_patches.reproduce.book_files import load
from ed_dpm_patches.reproduce.cli import Parser, count
from ed_dpm_patches.reproduce.report import csv_text
from ed_dpm_patches.reproduce.report_formats import Document, to_markdown
from guided_diffusion import dist_util
from guided_diffusion.files import write_atomically

from .__main__ import PROTOCOLS, RECIPES, RESULTS
from .again import call, commands_again, read_rows, run_again
from .choice import Choice, swept_flag, with_value
from .conclusion import Finding, judge
from .paired import Comparison, Difference, comparisons, paired_command, read_difference
from .report import CONCLUSION, PAIRED_COLUMNS, conclusion_text, paired_records, paired_section, write_index

_TITLE = "## Paired differences"


def reported_book(book: Book, report: Sequence[dict[str, str]]) -> Book:
    """The book with the report's tables: rows of one run each, whose values may be others than the recipes'."""
    runs, tables = dict(book.runs), defaultdict(dict)
    for line in report:
        if line["run"] not in runs:
            stem, _, value = line["run"].rpartition("-")
            like = [run for name, run in book.runs.items() if re.fullmatch(rf"{re.escape(stem)}-[\d.e+-]+", name)]
            runs[line["run"]] = with_value(like[0], swept_flag(like), float(value))
        row = Row(line["row"], line["method"], Figures(), Figures(), line["run"])
        tables[line["table"]][row.name] = row
    made = {name: Table(name, name, tuple(rows.values())) for name, rows in tables.items()}
    return replace(book, runs=runs, tables=made)


class Report:
    """A finished report in its folder."""

    def __init__(self, protocol: str, new: Path):
        self.protocol, self.new, self.folder = protocol, new, RESULTS / protocol
        self.book = reported_book(load(RECIPES / protocol), read_rows(self.folder / "report.csv"))
        self._text = (self.folder / "README.md").read_text()
        self.tests: dict[tuple[str, str], list[Difference]] = defaultdict(list)
        for line in read_rows(self.folder / "paired.csv"):
            values = (float(line[name]) for name in ("fid_difference", "base_fid", "p"))
            self.tests[line["row"], line["against"]].append(Difference(int(line["seed"]), *values))

    @property
    def comparisons(self) -> list[Comparison]:
        return [comparison for table in self.book.tables.values() for comparison in comparisons(self.book, table)]

    def complete(self, at_once: int) -> None:
        """Make the tests that are missing, and write what they change."""
        missing = [one for one in self.comparisons if (one.row.name, one.base.name) not in self.tests]
        pairs = [(one.row.run, one.base.run) for one in missing]
        runs = [(run, str(seed)) for run in dict.fromkeys(sum(pairs, ())) for seed in self.book.seeds]
        with ThreadPoolExecutor(at_once) as pool:
            for lines in pool.map(lambda run: list(run_again(self.protocol, *run, self.new)), runs):
                print(lines[-1], flush=True)
            for one in missing:
                found = pool.map(lambda seed, one=one: self._test(one, seed), self.book.seeds)
                self.tests[one.row.name, one.base.name] = list(found)
        self._write()

    def _test(self, comparison: Comparison, seed: int) -> Difference:
        """The evaluator's paired test of two runs that have been made again."""
        runs = comparison.row.run, comparison.base.run
        own, base = (commands_again(self.protocol, run, str(seed), self.new)[-1] for run in runs)
        output = self.new / "paired" / f"{runs[0]}-against-{runs[1]}-seed{seed}.json"
        samples = base[base.index("evaluations/evaluator.py") + 2]
        call(paired_command(own, Path(samples), output))
        return read_difference(ROOT / output, seed)

    def _write(self) -> None:
        known = [one for one in self.comparisons if (one.row.name, one.base.name) in self.tests]
        rows = {one.row.name: f"{one.table.name}, {one.row.method}: at the edge" for one in known}
        choice = Choice(self.book, {name: text for name, text in rows.items() if text in self._text})
        findings = [judge(choice, one, self.tests[one.row.name, one.base.name]) for one in known]
        self._save("paired.csv", csv_text(PAIRED_COLUMNS, list(paired_records(findings))))
        old, new = (self.folder / CONCLUSION).read_text(), self._conclusion(findings)
        self._save(CONCLUSION, new)
        start = self._text.index(_TITLE)
        end = self._text.index("\n## ", start) + 1
        section = to_markdown(Document("", "", (), (paired_section(findings),)))
        text = self._text[:start] + section[section.index(_TITLE) :] + "\n" + self._text[end:]
        self._save("README.md", text.replace(old.strip(), new.strip()))
        write_index(self.folder.parent)

    def _conclusion(self, findings: Sequence[Finding]) -> str:
        measured = [
            line | {name: float(line[name]) for name in ("entropy_ratio", "grad_norm")}
            for line in read_rows(self.folder / "diagnosis.csv")
        ]
        return conclusion_text(findings, measured)

    def _save(self, name: str, text: str) -> None:
        with write_atomically(self.folder / name) as file:
            file.write(text.encode())
        print(self.folder / name, flush=True)


def main() -> None:
    """Complete a report. InputError for a run that comes out otherwise, or a network that is not there."""
    parser = Parser(prog="python -m ablation.later", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--protocol", choices=PROTOCOLS, required=True)
    parser.add_argument("--at_once", type=count, default=1, metavar="K", help="runs at a time (1)")
    parser.add_argument("--out", type=Path, default=Path("runs/again"), metavar="DIR", help="(runs/again)")
    args = parser.parse_args()
    Report(args.protocol, args.out).complete(args.at_once)


if __name__ == "__main__":
    dist_util.run_main(main)

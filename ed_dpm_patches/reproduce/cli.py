"""The paper's tables: which experiments there are, and exactly what makes each of them.

    ed-dpm list
    ed-dpm show table1 --nproc 8 --out runs/paper
    ed-dpm show table2/uadm-g-eds-ddim25
    ed-dpm download 256x256_diffusion_uncond.pt 256x256_classifier.pt

`python -m ed_dpm_patches.reproduce` is the same program. The commands of `show` are printed, not run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from guided_diffusion import dist_util
from guided_diffusion.errors import InputError

from . import downloads
from .book import Book, Figures, Network, Row, Run, load
from .commands import MODELS, Commands, checkpoint_bytes, sample_bytes, shell, training_bytes
from .published import published

_COLUMNS = {"fid": "FID", "sfid": "sFID", "inception_score": "IS", "precision": "precision", "recall": "recall"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and status 2."""
        raise InputError(f"{message} (--help explains)")


def run() -> NoReturn:
    """Entry point of the console script."""
    dist_util.run_main(main)


def main() -> None:
    """Parse the command line, download or print. InputError for an unknown name or an impossible option."""
    parser = _Parser(prog="ed-dpm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every row: name, method, the paper's FID, sampler, number of samples")
    show = commands.add_parser("show", help="what a row or a whole table needs and runs")
    show.add_argument("name", metavar="ROW|TABLE", help="as `list` prints it: table1, or table1/cadm-g-ddpm250")
    show.add_argument("--nproc", type=int, default=8, metavar="N", help="processes of sampling and training (8)")
    show.add_argument("--out", type=Path, default=Path("runs/paper"), metavar="DIR", help="for results (runs/paper)")
    download = commands.add_parser("download", help="fetch published files: resumable, checked, remembered")
    download.add_argument("names", nargs="+", metavar="NAME|all|list", help="file names, as `download list` prints")
    download.add_argument("--out", type=Path, default=Path(MODELS), metavar="DIR", help=f"for the files ({MODELS})")
    args = parser.parse_args()
    if args.command == "download" and args.names != ["list"]:
        for file in downloads.chosen(args.names):
            print(downloads.download(file, args.out), flush=True)
        return
    book = load()
    if args.command == "list":
        lines = listing(book)
    elif args.command == "download":
        lines = downloads.listing()
    else:
        if args.nproc < 1:
            raise InputError(f"--nproc: found {args.nproc}, expected at least 1")
        lines = details(book, args.name, Commands(book, args.nproc, args.out))
    text = "\n".join(lines)
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def listing(book: Book) -> Iterator[str]:
    """One line a row, under a line for its table."""
    names = [row.name for table in book.tables.values() for row in table.rows]
    methods = [row.method for table in book.tables.values() for row in table.rows]
    name_width, method_width = max(map(len, names)), max(map(len, methods))
    yield f"{'row':{name_width}}  {'method':{method_width}}  paper FID  sampler                 samples"
    for table in book.tables.values():
        yield f"\n{table.title}"
        for row in table.rows:
            sampler, samples = _made_by(book, row)
            fid = _number(row.paper.fid)
            yield f"{row.name:{name_width}}  {row.method:{method_width}}  {fid:>9}  {sampler:22}  {samples:>7}"


def _made_by(book: Book, row: Row) -> tuple[str, str]:
    if row.run:
        return book.runs[row.run].sampler, f"{book.runs[row.run].num_samples:,}"
    return ("published samples" if row.batch else "figures only"), "-"


def details(book: Book, name: str, commands: Commands) -> Iterator[str]:
    """Everything about a row, or about all rows of a table."""
    rows = book.rows(name)
    table = book.tables[rows[0].name.split("/")[0]]
    yield f"# {table.title}"
    if table.note:
        yield f"# {table.note}"
    for row in rows:
        yield f"\n## {row.name}: {row.method}"
        yield from _figures(row)
        if row.note:
            yield f"note: {row.note}"
        if row.run:
            yield from _run(book, book.runs[row.run], row, commands)
        if row.batch:
            yield "samples published by upstream, to evaluate as they are:"
            yield _file_line(row.batch)
            if not row.run:
                yield _file_line(row.reference)
            yield shell(commands.evaluate_batch(row))
        if not row.run and not row.batch:
            yield "nothing to run: the figures are quoted"
    if len(rows) > 1:
        yield f"\ndisk for all of {name}: {_disk(book, rows)}"


def _figures(row: Row) -> Iterator[str]:
    if row.paper == Figures():
        yield "the paper has no figures in numbers"
        return
    yield " " * 8 + "".join(f"{title:>10}" for title in _COLUMNS.values())
    yield f"{'paper':8}" + "".join(f"{_number(getattr(row.paper, key)):>10}" for key in _COLUMNS)
    if row.release != Figures():
        differing = "".join(f"{_number(getattr(row.release, key), ''):>10}" for key in _COLUMNS)
        yield f"{'release':8}{differing}   (where it differs)"


def _run(book: Book, run: Run, row: Row, commands: Commands) -> Iterator[str]:
    yield f"run {run.name}: {run.num_samples:,} samples, {run.sampler}"
    twins = [r.name for t in book.tables.values() for r in t.rows if r.run == run.name and r.name != row.name]
    if twins:
        yield f"the same run as {', '.join(twins)}"
    networks = _networks(book, run)
    for text in [run.note, *(network.note for network in networks)]:
        if text:
            yield f"note: {text}"
    yield f"files, expected in {MODELS}/:"
    for network in networks:
        if not network.training:
            yield _file_line(network.checkpoint, network)
    yield _file_line(run.reference)
    for network in networks:
        if network.training:
            yield "train the classifier (images are called CLASS_anything, as upstream wants them):"
            yield shell(commands.train(network))
    yield "sample:"
    yield shell(commands.sample(run))
    yield "evaluate:"
    yield shell(commands.evaluate(run))
    yield f"disk: {_disk(book, (row,))}"


def _networks(book: Book, run: Run) -> list[Network]:
    return [book.networks[name] for name in (run.model, run.classifier) if name]


def _file_line(name: str, network: Network | None = None) -> str:
    """A published file: name, size where something is known of it, where to get it."""
    file = published(name)
    size = ""
    if network:
        count, known = checkpoint_bytes(network)
        size = f"{count:,} bytes" if known else f"about {_bytes(count)}"
    parts = [name, size, file.url or file.instruction, f"sha256 {file.sha256}" if file.sha256 else ""]
    return "  " + "  ".join(part for part in parts if part)


def _disk(book: Book, rows: tuple[Row, ...]) -> str:
    """What rows need on disk; what several rows share counts once."""
    runs = {row.run: book.runs[row.run] for row in rows if row.run}.values()
    networks = {network.name: network for run in runs for network in _networks(book, run)}.values()
    files = sum(checkpoint_bytes(network)[0] for network in networks if not network.training)
    training = sum(training_bytes(network) for network in networks if network.training)
    sizes = [sample_bytes(book, run) for run in runs]
    largest = max(sizes, default=0)
    total = files + training + sum(sizes) + largest
    parts = [f"checkpoints {_bytes(files)}"] + [f"training {_bytes(training)}"] * bool(training)
    parts += [f"samples {_bytes(sum(sizes))}", f"{_bytes(largest)} for a while as batches become one file"]
    unknown = {row.batch for row in rows if row.batch} | {run.reference for run in runs}
    unknown |= {row.reference for row in rows if row.reference}
    return f"{_bytes(total)} ({', '.join(parts)}) plus published npz files of unknown size: {len(unknown)}"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _number(value: float | None, missing: str = "-") -> str:
    return missing if value is None else f"{value:.2f}"



"""Every table and figure of the paper, one command each.

    ed-dpm list
    ed-dpm show table2/uadm-g-eds-ddim25
    ed-dpm run all --smoke
    ed-dpm run table2 --nproc 8 --out runs/paper
    ed-dpm run frontier
    ed-dpm show --work 0.33
    ed-dpm report --out runs/paper
    ed-dpm rerun rules/entropy
    ed-dpm figure sweep runs/paper/runs.csv
    ed-dpm download 256x256_diffusion_uncond.pt
    ed-dpm status runs

`ed-dpm diagnose` measures on labelled images whether a classifier is good enough to guide, `ed-dpm tune` finds rule and
scale for given networks, `ed-dpm run frontier` compares FID with the work of a sample. `ed-dpm train-classifier`,
`train`, `sample` and `evaluate` are scripts/classifier_train.py, image_train.py and classifier_sample.py and
evaluations/evaluator.py: `mpiexec -n 2 ed-dpm sample --eds ...`.

`python -m experiments` is the same program. After an interruption the same command resumes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

from experiments import downloads, rerun
from experiments.commands import Commands
from experiments.describe import details, disk, listing
from experiments.figures import cli as figures
from experiments.frontier.known import RESULTS, best_within
from experiments.plan import check_files, plan, without_missing
from experiments.published import PUBLISHED
from experiments.report import write_report
from experiments.runner import Runner
from experiments.smoke import SAMPLES, smoke
from experiments.spec import RECIPES, ROOT, Row, short
from experiments.spec_files import load
from experiments.steps import claim, read_purpose
from guided_diffusion import __version__
from guided_diffusion.distributed import shutdown
from guided_diffusion.errors import InputError, counted
from guided_diffusion.runs import status
from guided_diffusion.system.streams import print_result

PROGRAMS = {
    "train-classifier": "scripts.classifier_train", "train": "scripts.image_train",
    "sample": "scripts.classifier_sample", "evaluate": "evaluations.evaluator",
    "diagnose": "experiments.diagnose.__main__", "tune": "experiments.tune.__main__",
    "run frontier": "experiments.frontier.__main__",
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and status 2."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (--help explains)")


def add_jobs(parser: argparse.ArgumentParser, told: str, default: int | None = None) -> None:
    """Add --jobs, under its former name too, and the former --samplers."""
    parser.add_argument("--jobs", type=count, default=default, metavar="K", help=told)
    parser.add_argument("--at_once", type=count, dest="jobs", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("--sampler_processes", "--samplers", action=NoLongerActs, help=argparse.SUPPRESS)


class NoLongerActs(argparse.Action):
    """A flag of earlier versions: accepted with its value, with a warning that it does nothing."""

    def __call__(self, parser: object, namespace: object, values: object, option_string: str | None = None) -> None:
        print(f"warning: {option_string} no longer acts: every run is a process of its own", file=sys.stderr)


def run() -> NoReturn:
    """Entry point of the console script."""
    for words in (2, 3):
        if program := PROGRAMS.get(" ".join(sys.argv[1:words])):
            sys.argv[:words] = [" ".join(sys.argv[:words])]  # as --help and errors name it
            shutdown.run_main(importlib.import_module(program).main)
    shutdown.run_main(main)


def main() -> None:
    """Parse the command line and do it. InputError for an unknown name, an impossible option, a failed step."""
    args = _parser().parse_args()
    args.act(args)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="ed-dpm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"ed-dpm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    recipes = argparse.ArgumentParser(add_help=False)
    recipes.add_argument("--recipes", type=Path, default=RECIPES, metavar="DIR", help="of a spec (the paper's)")
    smoke_run = argparse.ArgumentParser(add_help=False)
    smoke_run.add_argument("--smoke", action="store_true", help="tiny stand-ins on embedded digits, in minutes")
    smoke_run.add_argument("--rehearse", action="store_true", dest="smoke", help=argparse.SUPPRESS)

    command = commands.add_parser("list", parents=[recipes], help="every row with method, paper's FID and sampler")
    command.set_defaults(act=lambda args: print_result(listing(load(args.recipes))))
    command = commands.add_parser("show", parents=[recipes, smoke_run], help="the files and commands of rows")
    _add_making_options(command, rows="*")
    command.add_argument("--work", type=_share, metavar="SHARE",
                         help="instead: the best known setting with at most this share of DDIM 25's FLOPs")  # fmt: skip
    command.set_defaults(act=_show)
    command = commands.add_parser("run", parents=[recipes, smoke_run], help="download, train, sample, evaluate, report")
    _add_making_options(command)
    add_jobs(command, "steps at a time (1; --smoke: one a core)")
    command.add_argument("--skip_missing", action="store_true", help="skip rows whose files you must bring")
    command.set_defaults(act=_run)
    command = commands.add_parser("report", help="tables of what has been run: Markdown, HTML, CSV")
    command.add_argument("--out", type=Path, default=Path("runs/paper"), metavar="DIR", help="of `run` (runs/paper)")
    command.set_defaults(act=_report)
    command = commands.add_parser("rerun", help="one reported row once more: is its FID within its interval?")
    command.add_argument("row", nargs="?", metavar="ROW", help="as in its report, or a run's name (one at random)")
    command.add_argument("--seed", metavar="N", help="of the reported ones (the first)")
    command.add_argument("--report", type=Path, default=rerun.REPORT, metavar="DIR", help=f"({rerun.REPORT})")
    command.add_argument("--out", type=Path, default=Path("runs/rerun"), metavar="DIR",
                         help="for all that is made (runs/rerun)")  # fmt: skip
    command.set_defaults(act=_rerun)
    command = figures.add_parser(commands)
    command.set_defaults(act=lambda args: print_result(map(str, args.draw(args))))
    command = commands.add_parser("download", help="fetch published files: resumable, checked, remembered")
    command.add_argument("names", nargs="+", metavar="NAME|all|list", help="file names, as `download list` prints")
    command.add_argument("--out", type=Path, default=Path("models"), metavar="DIR", help="for the files (models)")
    command.set_defaults(act=_download)
    command = commands.add_parser("status", help="progress of sampling and training runs")
    command.add_argument("directory", type=Path, metavar="DIR", help="of a run, or with runs anywhere below it")
    command.add_argument("--json", action="store_true", help="the contents of their status.json as one object")
    command.set_defaults(act=_status)
    return parser


def _add_making_options(parser: argparse.ArgumentParser, rows: str = "+") -> None:
    """Add the options that `show` and `run` have in common. :param rows: how many names, as argparse's nargs."""
    add = parser.add_argument
    add("names", nargs=rows, metavar="ROW|TABLE|all", help="as `list` prints them: table1/cadm-g-ddpm250, or table1")
    add("--out", type=Path, metavar="DIR", help="for all that is made (runs/paper; --smoke: runs/smoke)")
    add("--nproc", type=count, metavar="N", help="processes of sampling and training (8; --smoke: 1)")
    add("--models", type=Path, default=Path("models"), metavar="DIR", help="of published files (models)")
    add("--data_dir", type=Path, default=Path("imagenet"), metavar="DIR", help="with train and val images (imagenet)")
    add("--classifier_path", type=Path, metavar="FILE", help="the authors' ECT classifier, which has no address")
    add("--num_samples", type=count, metavar="N", help="a run, in place of the recipe's; the report marks it")
    add("--batch_size", type=count, metavar="N", help="images a process samples at a time (the script's default)")
    add("--seeds", type=_seeds, default=(), metavar="0,1", help="sample every run once with each (the recipes')")
    add("--trace", action="store_true", help="write a trace beside the samples of guided runs, for figures")


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from 1 on")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a positive number such as 0.33")
    return value


def _seeds(text: str) -> tuple[int, ...]:
    if not all(part.isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected whole numbers such as 0,1")
    return tuple(dict.fromkeys(int(part) for part in text.split(",")))


def _commands(args: argparse.Namespace) -> tuple[Commands, list[Row]]:
    """The steps by the spec and the command line, and the rows that it names."""
    spec = load(args.recipes)
    rows = list({row.name: row for name in args.names for row in spec.rows(name)}.values())
    if args.smoke:
        spec = smoke(spec)
    small = spec.writes_data
    by_hand = [file.name for file in PUBLISHED.values() if file.url is None]
    return Commands(
        spec,
        out=short(args.out or Path("runs/smoke" if args.smoke else "runs/paper")),
        processes=args.nproc or (1 if small else Commands.processes),
        models=short(args.models),
        data_dir=short(args.data_dir),
        given=dict.fromkeys(by_hand, args.classifier_path.absolute()) if args.classifier_path else {},
        num_samples=args.num_samples or (SAMPLES if args.smoke else None),
        seeds=args.seeds,
        batch_size=args.batch_size,
        trace=args.trace,
    ), rows


def _show(args: argparse.Namespace) -> None:
    if bool(args.names) == (args.work is not None):
        raise InputError("show: expected either rows or tables, as `ed-dpm list` prints them, or --work SHARE")
    if args.work is not None:
        usual = vars(_parser().parse_args(["show", "--work", str(args.work)]))
        if others := [name for name, value in usual.items() if getattr(args, name) != value]:
            raise InputError(f"--{others[0]}: found with --work, expected --work alone: it reads {short(RESULTS)}")
        print_result(best_within(args.work, RESULTS))
        return
    print_result(details(*_commands(args)))


def _run(args: argparse.Namespace) -> None:
    commands, rows = _commands(args)
    spec, out = commands.spec, commands.out
    if not (ROOT / "scripts").is_dir():
        raise InputError(f"{ROOT}: no folder scripts in it, expected the repository: install it with pip install -e")
    if args.skip_missing:
        rows, lines = without_missing(commands, rows)
        print("\n".join(lines))
    check_files(commands, rows)
    steps = plan(commands, rows)
    claim(ROOT / out / "book.json", {"recipes": str(short(args.recipes)), "rehearsal": args.smoke})
    small = spec.writes_data
    jobs = args.jobs or (max(1, (os.cpu_count() or 1) // commands.processes) if small else 1)
    runner = Runner(out, {"OMP_NUM_THREADS": "1"} if small else {})
    print(f"{counted(len(rows), 'rows')}, {counted(len(steps), 'steps')}; logs: {runner.logs}", flush=True)
    print(f"disk in all: {disk(commands, rows)}; free: {shutil.disk_usage(runner.logs.parent).free / 1e9:,.0f} GB")
    try:
        made = runner.run(steps, jobs)
        print(f"{counted(len(steps), 'steps')}: {made} run, {len(steps) - made} were done", flush=True)
    finally:  # report what there is, whatever failed
        print("\n".join(f"report: {path}" for path in write_report(spec, ROOT / out)))


def _report(args: argparse.Namespace) -> None:
    if not (args.out / "book.json").exists():
        raise InputError(f"--out {args.out}: no book.json in it, expected a folder that `ed-dpm run` has made")
    found = read_purpose(args.out / "book.json")
    if not (isinstance(found.get("recipes"), str) and isinstance(found.get("rehearsal"), bool)):
        raise InputError(f"{args.out / 'book.json'}: found no recipes and rehearsal, expected what `ed-dpm run` writes")
    spec = load(ROOT / found["recipes"])
    if found["rehearsal"]:
        spec = smoke(spec)
    print_result(map(str, write_report(spec, args.out.absolute())))


def _rerun(args: argparse.Namespace) -> None:
    report = ROOT / args.report
    print_result([rerun.rerun(report, *rerun.pick(report, args.row, args.seed), short(args.out))])


def _download(args: argparse.Namespace) -> None:
    if args.names == ["list"]:
        print_result(downloads.listing())
        return
    for file in downloads.chosen(args.names):
        print(downloads.download(file, args.out), flush=True)


def _status(args: argparse.Namespace) -> None:
    found = status.find(args.directory)
    if args.json:
        entries = {
            str(directory.absolute()): entry | {"silent": status.is_silent(entry)} for directory, entry in found.items()
        }
        print_result([json.dumps(entries, indent=2)])
    else:
        print_result(status.table(found, args.directory))

"""`ed-dpm figure NAME`: the paper's figures as PNG with their data as CSV beside them.

    ed-dpm figure vanishing baseline=base.npz EDS=eds.npz --out runs/fig1.png
    ed-dpm figure vanishing-points baseline=base.npz
    ed-dpm figure gradient-maps UADM-G=base.npz UADM-G+EDS=eds.npz
    ed-dpm figure compare UADM-G=runs/base UADM-G+EDS=eds-samples.npz
    ed-dpm figure sweep runs.csv --metric fid
    ed-dpm figure samplers runs.csv

A folder stands for the samples, the trace or the table in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

from experiments.figures import compare, gradient_maps, sampler_curves, style, sweep, vanishing, vanishing_points
from experiments.figures.inputs import check_labels
from guided_diffusion.errors import InputError

FIGURES = {
    "vanishing": vanishing,
    "vanishing-points": vanishing_points,
    "gradient-maps": gradient_maps,
    "compare": compare,
    "sweep": sweep,
    "samplers": sampler_curves,
}


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add `figure` and return its parser.

    Parsed arguments have `draw`, which takes them and returns the paths of what it wrote.
    """
    as_written = argparse.RawDescriptionHelpFormatter
    figure = commands.add_parser(
        "figure", help="a figure of the paper", description=__doc__, formatter_class=as_written
    )
    figures = figure.add_subparsers(dest="figure", metavar="NAME", required=True)
    for name, module in FIGURES.items():
        parser = figures.add_parser(
            name, help=module.__doc__.splitlines()[0].split(":")[0].rstrip("."), description=module.__doc__,
            formatter_class=as_written,
        )  # fmt: skip
        module.add_arguments(parser)
        parser.add_argument(
            "--out", type=_png, default=_png(f"{name}.png"), metavar="FILE.png", help=f"the figure ({name}.png)"
        )
        parser.set_defaults(draw=partial(_draw, module))
    return figure


def draw(words: Sequence[object], path: Path) -> None:
    """Draw a figure from within a program, by the command's words. InputError where it cannot be drawn."""
    parser = argparse.ArgumentParser(prog="ed-dpm", exit_on_error=False)
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["figure", *map(str, words), "--out", str(path)])
    args.draw(args)


def _draw(module: ModuleType, args: argparse.Namespace) -> list[Path]:
    """Draw, and write the data that the figure shows beside it; returns both paths."""
    data = args.out.with_suffix(".csv")
    if "files" in args:
        check_labels(args.files)
    elif data.resolve() == args.table.resolve():
        raise InputError(f"--out: found {args.out}, whose data would replace {data}; expected another name")
    style.write_csv(data, module.draw(args))
    return [args.out, data]


def _png(text: str) -> Path:
    """An absolute path. Its folder is made when the figure is saved."""
    if not text.endswith(".png") or Path(text).is_dir():
        raise InputError(f"--out: found {text}, expected the name of a file that ends in .png")
    return Path(text).absolute()

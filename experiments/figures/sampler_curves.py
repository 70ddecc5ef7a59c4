"""A metric over the number of evaluations: a curve a sampler, from the runs.csv of `ed-dpm report`.

Every sampler but Heun evaluates the network, and where guided the classifier, once a step. Constant and entropy-driven
guidance and none have a panel each. Points are means over seeds, bars half the range. Settings that were run with one
number of steps only make no curve, and are left out where others do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.figures.curves import Curve, Row, add_arguments, collect, draw_curves, read_rows
from guided_diffusion.diffusion.solvers import SAMPLERS
from guided_diffusion.errors import InputError

__all__ = ["add_arguments", "draw"]

# What may tell two curves of one panel apart.
_SETTINGS = (
    "guidance", "model", "classifier", "classifier_scale", "guidance_factor", "guidance_until", "guidance_norm", "n",
)  # fmt: skip


def draw(args: argparse.Namespace) -> list[dict]:
    """Write the figure and return its points, a row each."""
    rows = read_rows(args)
    curves = collect(rows, args.table, args.metric, _place)
    if not curves:
        raise InputError(f"{args.table}: found no run {args.runs} with a value of {args.metric}, expected some")
    if any(len(points) > 1 for points in curves.values()):
        curves = {curve: points for curve, points in curves.items() if len(points) > 1}
    return draw_curves(args, rows, curves, log_y=True, best=False)


def _place(row: Row, path: Path) -> tuple[Curve, int]:
    """The curve of a run, and its evaluations of the network. InputError for a sampler without a number of steps."""
    sampler, _, steps = row.get("sampler", "").rpartition(" ")
    if not sampler or not steps.isdecimal():
        found = f"run {row['run']}: found sampler {row.get('sampler', '')!r}"
        raise InputError(f"{path}: {found}, expected a name and a number of steps such as DDIM 25")
    panel = f"{row['guidance']} guidance" if row["guidance"] else "no guidance"
    settings = (("sampler", sampler), *((name, row.get(name) or "") for name in _SETTINGS))
    evaluations = next((entry.evaluations for entry in SAMPLERS.values() if entry.title == sampler), int)
    return Curve(panel, "network evaluations", "evaluations", settings), evaluations(int(steps))

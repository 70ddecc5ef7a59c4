"""A metric over the strength of guidance (supplement Fig. 1-4): a curve a rule, from the runs.csv of `ed-dpm report`.

Entropy-driven and constant guidance vary gamma, the other rules vary C. These have different units, hence a
panel for each. Points are means over seeds, bars half the range. A ring marks the best point of a curve.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ed_dpm_patches.config import rule_flags
from ed_dpm_patches.rules import RULES
from experiments.figures.curves import Curve, Row, add_arguments, collect, draw_curves, number, read_rows
from guided_diffusion.errors import InputError

__all__ = ["add_arguments", "draw"]

# What points of one curve share; the optional columns may be absent.
_SETTINGS = ("classifier", "model", "sampler", "n", "classifier_scale", "guidance_until", "guidance_norm")


def draw(args: argparse.Namespace) -> list[dict]:
    """Write the figure and return its points, a row each."""
    rows = read_rows(args)
    curves = collect([row for row in rows if row["guidance"]], args.table, args.metric, _place)
    if not curves:
        raise InputError(f"{args.table}: found no guided run {args.runs} with a value of {args.metric}, expected some")
    # The rules that share the axis of gamma come first.
    order = sorted(RULES, key=lambda rule: _varied(rule) != "classifier_scale")
    curves = {curve: curves[curve] for curve in sorted(curves, key=lambda c: (order.index(c.name), c.settings))}
    return draw_curves(args, rows, curves, log_y=False, best=True)


def _varied(rule: str) -> str:
    """The flag that a curve of the rule varies."""
    return "guidance_factor" if "guidance_factor" in rule_flags(rule) else "classifier_scale"


def _place(row: Row, path: Path) -> tuple[Curve, float]:
    """The curve of a run, and its gamma or C. InputError for a rule that is none."""
    rule = row["guidance"]
    if rule not in RULES:
        found = f"run {row['run']}: found guidance {rule}"
        raise InputError(f"{path}: {found}, expected one of {', '.join(RULES)} or nothing")
    varied = _varied(rule)
    settings = tuple((name, "" if name == varied else row.get(name) or "") for name in _SETTINGS)
    shares_gamma = varied == "classifier_scale"
    curve = Curve(
        panel="scale \N{GREEK SMALL LETTER GAMMA}" if shares_gamma else f"rule {rule}",
        x_label="\N{GREEK SMALL LETTER GAMMA}" if shares_gamma else "C",
        varied=varied,
        settings=(("rule", rule), *settings, ("guidance_factor", "")),
    )
    return curve, number(row, varied, path)

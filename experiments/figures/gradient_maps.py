"""Gradient maps (Fig. 4): the guidance over time of the same samples under different rules, magnified alike.

A picture is 0.5 + magnify * g / 2, clipped to [0, 1]: no guidance is mid grey, one channel reads as its sign.
"""

from __future__ import annotations

import argparse

import numpy as np

from experiments.figures import style
from experiments.figures.inputs import (
    Labelled,
    Maps,
    add_class_names,
    class_name,
    labelled_trace,
    read_class_names,
    read_maps,
)
from guided_diffusion.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The figure's own options."""
    parser.add_argument("files", nargs="+", type=labelled_trace, metavar="LABEL=TRACE",
                        help="two or more, npz of --trace, or a run's folder with it")  # fmt: skip
    parser.add_argument("--count", type=int, default=3, metavar="N", help="samples shown, from the first on (3)")
    parser.add_argument("--magnify", type=float, default=50.0, metavar="F", help="factor on the guidance (50)")
    add_class_names(parser)


def draw(args: argparse.Namespace) -> list[dict]:
    """Write the figure and return the size of every map, a row each."""
    names = read_class_names(args.class_names, args.files)
    if len(args.files) < 2:
        raise InputError(f"gradient-maps: found one trace, {args.files[0].path}, expected two or more to compare")
    maps = {file.label: read_maps(file) for file in args.files}
    first = maps[args.files[0].label]
    available = min(len(m.y) for m in maps.values())
    if not 1 <= args.count <= available:
        raise InputError(f"--count: found {args.count}, expected 1 to {available}, as many samples have maps")
    for file in args.files[1:]:
        _check_same_start(args.files[0], first, file, maps[file.label], args.count)

    rows, blocks, shares = [], [], []
    for sample in range(args.count):
        title = f"sample {sample}, {class_name(names, int(first.y[sample]))}"
        blocks.append((title, [[style.picture(args.magnify * g) for g in m.guidance[sample]] for m in maps.values()]))
        for label, m in maps.items():
            rows += sizes(label, sample, m, args.magnify)
            shares.append(np.mean([row["saturated"] for row in rows[-len(m.t) :]]))
    steps, (height, width) = len(first.t), first.guidance.shape[-2:]
    cell = style.CELL if steps <= 10 else 0.45
    size = 2.4 + steps * cell, 0.6 + args.count * (0.3 + len(maps) * (cell * height / width + 0.04))
    with style.new_figure(args.out, *size) as figure:
        style.picture_grid(
            figure.subplots(), blocks, cell=cell,
            rows=[style.plain(label, 20) for label in maps] * args.count,
            columns=[f"t = {first.t[0]}", *map(str, first.t[1:])],
            right=[f"{share:.0%} clipped" for share in shares],
        )  # fmt: skip
        figure.suptitle(f"guidance \N{MULTIPLICATION SIGN} {args.magnify:g}")
    return rows


def sizes(label: str, sample: int, maps: Maps, magnify: float) -> list[dict]:
    """Rows of a sample, one a map: sample, trace, class, t, rms and largest |g|, the share of clipped values."""
    g_kCHW = maps.guidance[sample].astype(np.float64)
    return [
        {
            "sample": sample,
            "trace": label,
            "class": int(maps.y[sample]),
            "t": int(t),
            "rms": float(np.sqrt(np.mean(g**2))),
            "max": float(np.abs(g).max()),
            "saturated": float(np.mean(np.abs(magnify * g) > 1)),
        }
        for t, g in zip(maps.t, g_kCHW, strict=True)
    ]


def _check_same_start(file_a: Labelled, a: Maps, file_b: Labelled, b: Maps, count: int) -> None:
    """InputError unless the first samples have the same steps, classes, size and starting noise."""
    both = f"{file_a.path} and {file_b.path}"
    if not np.array_equal(a.t, b.t):
        raise InputError(f"{both}: found maps at t {list(map(int, a.t))} and {list(map(int, b.t))}, expected the same")
    if a.x_t.shape[2:] != b.x_t.shape[2:]:
        raise InputError(f"{both}: found {a.x_t.shape[2:]} and {b.x_t.shape[2:]} as (C, H, W), expected the same")
    if not np.array_equal(a.y[:count], b.y[:count]):
        raise InputError(f"{both}: do not have the same classes, expected runs with the same --seed and labels")
    if not np.array_equal(a.x_t[:count, 0], b.x_t[:count, 0]):
        raise InputError(f"{both}: do not start from the same noise, expected runs with the same --seed")

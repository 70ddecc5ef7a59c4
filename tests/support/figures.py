"""Traces and tables to draw, and calls of `ed-dpm figure`."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image

from experiments.figures import cli, style
from guided_diffusion.errors import InputError

STEPS = np.arange(980, -1, -20)  # 50 of them

class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def figure(*argv: object) -> list[Path]:
    parser = Parser()
    cli.add_parser(parser.add_subparsers(dest="command", required=True))
    args = parser.parse_args(["figure", *map(str, argv)])
    return args.draw(args)


def refused(match: str, *argv: object) -> None:
    with pytest.raises(InputError, match=match) as caught:
        figure(*argv)
    assert "\n" not in str(caught.value)


def read_table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def check_picture(path: Path) -> np.ndarray:
    """Check that a file is a PNG at 200 dpi that is not empty; return its grey levels."""
    assert path.is_absolute()
    with Image.open(path) as image:
        assert image.format == "PNG" and image.info["dpi"] == pytest.approx((style.DPI, style.DPI), abs=0.01)
        grey = np.asarray(image.convert("L"))
    assert min(grey.shape) > 200 and len(np.unique(grey)) > 10 and (grey < 128).mean() > 0.005
    return grey


def make_trace(path: Path, *, samples=6, steps=STEPS, channels=1, seed=0, maps=2, **changed) -> Path:
    rng = np.random.RandomState(seed)
    shape = samples, len(steps)
    arrays = {"t": np.tile(steps, (samples, 1)), "y": np.arange(samples) % 3}
    for name in ("entropy_ratio", "p_y", "grad_norm", "scale", "relative_guidance"):
        arrays[name] = rng.rand(*shape).astype(np.float32)
    if maps:
        size = maps, 3, channels, 4, 5
        arrays["map_t"] = np.tile(steps[[0, len(steps) // 2, -1]], (maps, 1))
        noise = np.random.RandomState(9).randn(*size).astype(np.float32)  # of every seed
        arrays |= {"map_x_t": noise, "map_pred_xstart": np.clip(noise, -1, 1)}
        arrays["map_guidance"] = (rng.randn(*size) / 50).astype(np.float32)
    arrays |= changed
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


SWEEP_HEADER = ["run", "seed", "n", "classifier", "guidance", "classifier_scale", "guidance_factor", "fid", "rehearsal"]

def make_sweep_table(path: Path, *rows: tuple) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([SWEEP_HEADER, *rows])
    return path


def sweep_rows(mark: str = "") -> list[tuple]:
    rows = [("plain", 0, 50, "", "", "", "", 40, mark)]
    for seed in (0, 1):
        for gamma in (10, 2, 5):
            rows.append((f"e-{gamma}", seed, 50, "c", "entropy", gamma, "", abs(gamma - 5) + 9 + seed, mark))
        rows += [(f"t-{c}", seed, 50, "c", "timestep", 1, c, 20 + c, mark) for c in (0.1, 0.2)]
    return [*rows, ("g", 0, 50, "c", "gradnorm", 1, 300, 30, mark), ("unfinished", 0, 50, "c", "range", 1, 5, "", mark)]

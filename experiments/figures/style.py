"""The look of all figures, and how they are saved: PNG at 200 dpi with the data as CSV beside it, legible in grey.

matplotlib is imported when a figure is drawn, so that the other commands of `ed-dpm` do without it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from experiments.documents import csv_text, write_text
from guided_diffusion.errors import InputError
from guided_diffusion.io.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200
WIDTH = 7.2  # inches: a text column, so that 8 pt stay 8 pt in print
CELL = 0.75  # inches: side of a picture in a grid

_RC = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "xtick.labelsize": 8,
    "ytick.labelsize": 8, "figure.titlesize": 10, "lines.linewidth": 1.4, "lines.markersize": 4.5,
    "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True,
}  # fmt: skip
# Neighbours differ in luminance as well: 0, 0.60, 0.26, 0.50, 0.38 of white.
_COLOURS = ("#000000", "#e08a00", "#0b4f9c", "#3fa37c", "#c2410c")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (9, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def line(index: int) -> dict[str, Any]:
    """Colour, dash and marker of the index-th line of a figure; no two of the first 280 are the same."""
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": _LINES[index % len(_LINES)],
        "marker": _MARKERS[index % len(_MARKERS)],
    }


def plain(text: str, width: int | None = None) -> str:
    """A user's words as matplotlib shows them as they are, in lines of at most `width` characters."""
    wrapped = "\n".join(textwrap.wrap(text, width)) if width else text
    escaped = wrapped.replace("$", r"\$")
    return f"\u200a{escaped}" if escaped.startswith("_") else escaped  # legends leave out what begins with _


@contextmanager
def new_figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of about `width` x `height` inches that is written to `path` when the block ends.

    InputError where matplotlib is not installed or `path` cannot be written.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure  # draws with Agg, and keeps no list of open figures as pyplot does
    except ImportError as error:
        raise InputError("matplotlib: not installed, expected for figures: pip install matplotlib") from error
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_RC, "backend": "agg"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with write_atomically(path) as file:
            figure.savefig(file, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.05)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows with the same keys under a line of their names; None is an empty field, a float has 7 digits."""
    fields = ({key: _field(value) for key, value in row.items()} for row in rows)
    write_text(path, csv_text(list(rows[0]), fields))


def _field(value: Any) -> Any:
    return f"{value:.7g}" if isinstance(value, float | np.floating) else value


def sampling_axis(axes: Axes, t_S: np.ndarray) -> None:
    """The x axis of timesteps as sampling runs: noise at the left, image at the right."""
    first, last = int(t_S.max()), int(t_S.min())
    margin = 0.02 * (first - last) or 1
    axes.set_xlim(first + margin, last - margin)
    axes.set_xlabel("t  (noise \N{RIGHTWARDS ARROW} image)")


def log_axis(axes: Axes, name: Literal["x", "y"] = "y") -> None:
    """Make an axis logarithmic: powers of ten at the ticks, and 2 and 5 times these where there would be few."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis = axes.yaxis if name == "y" else axes.xaxis
    if not np.isfinite(axes.dataLim.get_points()[:, name == "y"]).all():  # such as the scale of a run without guidance
        axes.text(0.5, 0.5, "nothing above 0", ha="center", va="center", transform=axes.transAxes)
        axis.set_ticks([])
        return
    axes.set(**{f"{name}scale": "log"})
    low, high = axis.get_view_interval()
    axis.set_minor_formatter(NullFormatter())
    if high / low < 100:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")


def picture(x_CHW: np.ndarray) -> np.ndarray:
    """Values of [-1, 1] as a picture in [0, 1], clipped: [H, W, 3] for three channels, else [H, W]."""
    shown = np.nan_to_num(np.clip(0.5 + 0.5 * x_CHW.astype(np.float64), 0, 1), nan=0.5)
    return shown[0] if len(shown) == 1 else shown.transpose(1, 2, 0)


def picture_grid(
    axes: Axes, blocks: Sequence[tuple[str, Sequence[Sequence[np.ndarray]]]], *, cell: float,
    rows: Iterable[str], columns: Iterable[str], right: Iterable[str] = (),
) -> None:  # fmt: skip
    """Pictures in blocks of rows, each block under its title.

    :param blocks: (title, rows of pictures [H, W] or [H, W, 3] in [0, 1]); "" for no title.
    :param cell: side of a picture in inches. rows: label of every row of every block, in order.
    :param columns: titles above all. right: a note behind every row.
    """
    gap, heading = 0.04 / cell, 0.26 / cell
    y, centres, left = 0.0, [], 0.0
    for title, block in blocks:
        if title:
            y += heading
            axes.text(0, y - 0.05 / cell, plain(title), ha="left", va="bottom", fontweight="bold")
        for pictures in block:
            height, width = pictures[0].shape[:2]
            aspect = height / width
            for column, shown in enumerate(pictures):
                x = column * (1 + gap)
                axes.imshow(shown, cmap="gray", vmin=0, vmax=1, extent=(x, x + 1, y + aspect, y))
                left = max(left, x + 1)
            centres.append(y + aspect / 2)
            y += aspect + gap
    for centre, note in zip(centres, right, strict=False):
        axes.text(left + 2 * gap, centre, note, ha="left", va="center", fontsize=8)
    axes.set(xlim=(0, left), ylim=(y - gap, 0))
    titles = list(columns)
    axes.set_xticks([0.5 + column * (1 + gap) for column in range(len(titles))], titles)
    axes.set_yticks(centres, list(rows))
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axes.grid(False)
    axes.spines[:].set_visible(False)

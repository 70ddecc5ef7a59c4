"""The figures of the report, as PNG files. Lines differ in dash and marker, so that they read in grey too."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from demo.conclusions import label  # noqa: E402
from demo.plan import COMBINATIONS, SCALES, TRACED_SCALE, Configuration  # noqa: E402
from demo.results import LOW_ENTROPY, VANISHED_NORM, Results, timesteps  # noqa: E402

STYLES = {
    ("plain", "constant"): {"color": "black", "linestyle": "-", "marker": "o"},
    ("plain", "eds"): {"color": "#0060a8", "linestyle": "--", "marker": "s"},
    ("ect", "constant"): {"color": "#c85000", "linestyle": "-.", "marker": "^"},
    ("ect", "eds"): {"color": "#7a9a01", "linestyle": ":", "marker": "D"},
}
TITLES = {"accuracy": "accuracy", "fid": "Fréchet distance", "precision": "precision", "recall": "recall"}


def plot_vanishing(results: Results, path: Path) -> None:
    """Entropy, relative guidance and the share of vanished gradients over the process, from noise to image."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for key in COMBINATIONS:
        trace = results.traces[key]
        t = timesteps(trace)
        style = STYLES[key] | {"label": label(*key), "markersize": 4}
        axes[0].plot(t, trace["entropy_ratio"].mean(axis=0), **style)
        low, middle, high = np.quantile(trace["relative_guidance"], (0.25, 0.5, 0.75), axis=0)
        axes[1].plot(t, middle, **style)
        axes[1].fill_between(t, low, high, color=style["color"], alpha=0.12, linewidth=0)
        axes[2].plot(t, trace["vanished"].mean(axis=0), **style)
    axes[0].set(title="entropy H / log K\n(mean)", ylim=(-0.03, 1.03))
    axes[1].set(title="guidance norm / eps norm\n(median, quartiles)", yscale="log")
    axes[2].set(
        title=f"share with |gradient| < {VANISHED_NORM}\nand H / log K < {LOW_ENTROPY}", ylim=(-0.03, 1.03)
    )
    for axis in axes:
        axis.set_xlabel("t (sampling runs from left to right)")
        axis.set_xlim(1000, -20)
        axis.grid(alpha=0.3)
    axes[0].legend(title=f"scale {TRACED_SCALE:g}")
    _save(figure, path)


def plot_curves(results: Results, path: Path) -> None:
    """The metrics over the scale, the spread of the seeds as bars."""
    figure, axes = plt.subplots(1, 4, figsize=(15, 4), layout="constrained")
    for axis, (metric, title) in zip(axes, TITLES.items(), strict=True):
        for key in COMBINATIONS:
            scales = SCALES[key[1]]
            scores = [results.scores[Configuration(*key, scale)][metric] for scale in scales]
            errors = [score.half_range for score in scores]
            means = [score.mean for score in scores]
            axis.errorbar(scales, means, yerr=errors, capsize=3, label=label(*key), markersize=5, **STYLES[key])
        unguided = results.scores[Configuration()][metric].mean
        axis.axhline(unguided, color="0.5", linestyle=(0, (6, 2)), linewidth=1, label="unguided")
        axis.axhline(results.real[metric].mean, color="0.5", linestyle=":", linewidth=1, label="real digits")
        ticks = sorted(set(sum(SCALES.values(), ())))
        axis.set(title=title, xlabel="scale (gamma)", xscale="log")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    _save(figure, path)


def plot_samples(images: dict[Configuration, np.ndarray], real: np.ndarray, path: Path, rows: int = 3) -> None:
    """The first samples of all configurations: same place, same starting noise and class.

    :param images: uint8 [N, 8, 8] each, N >= 10 * rows, classes in turn. real: the same, of real digits.
    """
    columns = max(len(scales) for scales in SCALES.values())
    figure, axes = plt.subplots(
        1 + len(COMBINATIONS), columns, figsize=(4.4 * columns, 1.6 * (1 + len(COMBINATIONS))), layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    blocks = {(0, 0): ("unguided", images[Configuration()]), (0, 1): ("real digits (train part)", real)}
    for row, (classifier, rule) in enumerate(COMBINATIONS, start=1):
        for column, scale in enumerate(SCALES[rule]):
            title = f"{label(classifier, rule)}, scale {scale:g}"
            blocks[row, column] = (title, images[Configuration(classifier, rule, scale)])
    for place, (title, block) in blocks.items():
        axes[place].imshow(tile(block[: 10 * rows]), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes[place].set_title(title, fontsize=10)
    _save(figure, path)


def tile(images: np.ndarray, columns: int = 10) -> np.ndarray:
    """Images [N, H, W] as one, `columns` a row, with a grey line between them."""
    padded = np.pad(images, ((0, 0), (0, 1), (0, 1)), constant_values=96)
    count, height, width = padded.shape
    rows = count // columns
    return padded.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)

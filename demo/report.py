"""The report of a run: one HTML file without links to anything else, and its figures as PNG files."""

from __future__ import annotations

import base64
import html
from pathlib import Path

import numpy as np

from demo import conclusions, plots
from demo.plan import CONFIGURATIONS, MODEL, TRACED_SCALE, Configuration, Plan
from demo.results import METRICS, Results, read_results
from guided_diffusion.files import write_atomically

STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #111; }
img { max-width: 100%; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border: 1px solid #999; padding: .25rem .6rem; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.verdict { border-left: .4rem solid #111; padding: .5rem 1rem; background: #eee; font-size: 1.1rem; }
pre { overflow-x: auto; background: #f4f4f4; padding: .5rem; font-size: .8rem; }
"""


def write_report(plan: Plan, commands: list[str]) -> str:
    """Write report.html, vanishing.png, curves.png and samples.png into the run's folder.

    Returns the summary as a plain text table. `commands` are listed at the end of the report.
    """
    results = read_results(plan)
    figures = {name: plan.out / f"{name}.png" for name in ("vanishing", "curves", "samples")}
    plots.plot_vanishing(results, figures["vanishing"])
    plots.plot_curves(results, figures["curves"])
    plots.plot_samples(
        {c: load_images(plan.samples(c, plan.settings.seeds[0])) for c in CONFIGURATIONS},
        balanced(plan.data / "train.npz"),
        figures["samples"],
    )
    with write_atomically(plan.out / "report.html") as file:
        file.write(page(plan, results, figures, commands).encode())
    return conclusions.text_table(results)


def page(plan: Plan, results: Results, figures: dict[str, Path], commands: list[str]) -> str:
    """The HTML text."""
    settings, single_seed = plan.settings, len(plan.settings.seeds) < 2
    body = [
        "<h1>Entropy-driven guidance on handwritten digits</h1>",
        paragraph(
            f"scikit-learn's 1,797 digits (8x8, 10 classes) in three disjoint parts: train, evaluator, held out. "
            f"{settings.num_samples} samples a run with {settings.respacing}, seeds "
            f"{', '.join(map(str, settings.seeds))}, from the unconditional model {MODEL}. The judge is a classifier "
            f"of clean images trained on the evaluator part; the reference is the held-out part."
        ),
        f'<p class="verdict">{html.escape(conclusions.verdict(results))}</p>',
        "<h2>Does the guidance vanish?</h2>",
        image(figures["vanishing"]),
        paragraph(
            f"All four combinations at scale {TRACED_SCALE:g}, so that they differ only in the factor log K / H and in "
            "how the classifier was trained. The share on the right is about the classifier's own gradient, before "
            "any scale: EDS enlarges a vanished gradient, it does not keep it from vanishing."
        ),
        bullets(conclusions.vanishing_sentences(results)),
        "<h2>Does it make better samples?</h2>",
        image(figures["curves"]),
        table(results),
        paragraph(
            ("One seed only: noise cannot be told from effect. " if single_seed else "Mean over the seeds. ")
            + "± is half the difference between the two seeds. The noise of a difference is one standard deviation, "
            "pooled over all thirteen configurations (relative to its size for the distance, with which its noise "
            "grows); less than two of them count as no difference. It covers the sampling alone: every network was "
            "trained once. Three scales are a coarse search, equally coarse for both rules. Real digits are the train "
            "part judged like samples: what a perfect sampler could reach."
        ),
        bullets(conclusions.quality_sentences(results)),
        "<h2>Samples</h2>",
        paragraph("Same place in a block: same starting noise and same class (columns 0 to 9). Not selected."),
        image(figures["samples"]),
        "<h2>The paper's claims and this run</h2>",
        rows(["claim", "seen here"], [[html.escape(a), html.escape(b)] for a, b in conclusions.claims(results)]),
        paragraph(
            "This is a small case: 64 pixels and 10 classes instead of 196,608 numbers and 1,000 classes, a judge and "
            "a reference of about 450 images each, two seeds. It shows that the parts work together and what they do "
            "to the guidance. It neither confirms nor refutes the paper's numbers on ImageNet."
        ),
        "<details><summary>Commands, run from the repository root</summary>",
        f"<pre>{html.escape(chr(10).join(commands))}</pre></details>",
    ]
    head = f'<meta charset="utf-8"><title>ED-DPM on digits</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(body) + "\n</body></html>\n"


def table(results: Results) -> str:
    """All configurations and the real digits; the lowest distance of each combination is in bold."""
    best = {results.best(c.rule, c.classifier) for c in results.scores if c.rule}
    lines = []
    for configuration, scores in results.scores.items():
        lines.append([*_row_head(configuration), *(str(scores[m]) for m in METRICS)])
        if configuration in best:
            lines[-1][4] = f"<b>{lines[-1][4]}</b>"
    lines.append(["real digits", "", "", *(str(results.real[m]) for m in METRICS)])
    header = ["classifier", "rule", "scale", "accuracy", "Fréchet distance", "precision", "recall"]
    return rows(header, lines, numbers=2)


def _row_head(configuration: Configuration) -> list[str]:
    if not configuration.rule:
        return ["unguided", "", ""]
    classifier, rule = conclusions.label(configuration.classifier, configuration.rule).split(", ")
    return [classifier, rule, f"{configuration.scale:g}"]


def rows(header: list[str], lines: list[list[str]], numbers: int = 99) -> str:
    """An HTML table; columns from `numbers` on are right-aligned."""
    text = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in header) + "</tr>"]
    for line in lines:
        cells = (f'<td{" class=number" * (i >= numbers)}>{cell}</td>' for i, cell in enumerate(line))
        text.append("<tr>" + "".join(cells) + "</tr>")
    return "<table>\n" + "\n".join(text) + "\n</table>"


def image(path: Path) -> str:
    """A PNG inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{path.stem}" src="data:image/png;base64,{data}">'


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def bullets(sentences: list[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences) + "\n</ul>"


def load_images(path: Path) -> np.ndarray:
    """uint8 [N, 8, 8]."""
    with np.load(path, allow_pickle=False) as file:
        return file["arr_0"][..., 0]


def balanced(path: Path) -> np.ndarray:
    """Images of a reference file with the classes in turn, as samples have them."""
    with np.load(path, allow_pickle=False) as file:
        images, labels = file["arr_0"][..., 0], file["arr_1"]
    by_class = [images[labels == digit][:3] for digit in range(10)]
    return np.stack(by_class, axis=1).reshape(-1, *images.shape[1:])

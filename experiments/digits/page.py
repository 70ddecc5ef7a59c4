"""The demo's page: what its runs say, in figures, tables and sentences of which only the form is written beforehand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evaluations.metrics.registry import METRICS as TITLES
from experiments.commands import Commands
from experiments.comparison import Outcome, findings, outcomes
from experiments.figures import cli as figures
from experiments.figures.inputs import Labelled, Trace, read_arrays, read_trace
from experiments.figures.vanishing_points import CERTAIN_ENTROPY, VANISHED_NORM
from experiments.report import measured, runs_csv
from experiments.report_formats import Column, Document, Group, Line, Section, to_html
from experiments.results import read_results
from experiments.spec import ROOT
from experiments.verdict import BETTER, SAME, WORSE, Difference, compare
from guided_diffusion.io.atomic import write_atomically

TABLE = "demo"
METRICS = ("accuracy", "fid", "precision", "recall")
CLASSIFIERS = ("plain", "ect")
TRACED_SCALE = 1.7  # of the runs whose guidance is looked at: all alike
EARLY, LATE = (667, 1000), (0, 333)  # parts of the process: "late" is near the finished image
_VERDICTS = {
    BETTER: "EDS beats a tuned constant scale",
    WORSE: "EDS is worse than a tuned constant scale",
    SAME: "EDS does not beat a tuned constant scale",
    None: "One seed cannot tell EDS from a tuned constant scale",
}


class Page:
    """The results of the demo's table.

    :param commands: of the book that has been run, with traces.
    """

    def __init__(self, commands: Commands):
        self.commands, self.out = commands, ROOT / commands.out
        self.book = commands.book
        table = self.book.tables[TABLE]
        self.results = read_results(self.book, self.out, commands.seeds)
        found = outcomes(self.book, self.results, table)
        self.rows = {outcome.row.name.removeprefix(f"{TABLE}/"): outcome for outcome in found}
        self.pool = [self.results.runs[name] for row in table.rows for name in row.run_names]
        self.traces = {key: self._trace(key) for key, outcome in self.rows.items() if outcome.row.sweep}

    def write(self, lines: list[str]) -> str:
        """Write report.html and its figures; returns the summary as a plain text table. `lines`: the commands."""
        with write_atomically(self.out / "runs.csv") as file:
            file.write(runs_csv(self.book, self.results).encode())
        text = to_html(self.document(self._draw(), "\n".join(lines)))
        with write_atomically(self.out / "report.html") as file:
            file.write(text.encode())
        return self.summary()

    def document(self, pictures: dict[str, Path], commands: str) -> Document:
        """The whole page, with figures that `_draw` has made."""
        seeds = self.commands.seeds
        return Document(
            "Entropy-driven guidance on handwritten digits",
            "" if len(seeds) > 1 else "One seed only: noise cannot be told from effect.",
            (
                "scikit-learn's 1,797 digits (8x8, 10 classes) in three disjoint parts: train, evaluator, held out. "
                f"{self.pool[0].n} samples a run with {self.book.runs[self.pool[0].run].sampler}, seeds "
                f"{', '.join(map(str, seeds))}, from {self.book.networks['uncond'].checkpoint}. "
                "The judge is a classifier of clean images trained on the evaluator part; the reference is the "
                "held-out part.",
            ),
            (
                Section(
                    "Does the guidance vanish?",
                    text=(
                        f"All four combinations at scale {TRACED_SCALE:g}, so that they differ only in the factor "
                        f"log K / H and in how the classifier was trained; seed {seeds[0]}. The second figure is about "
                        "the classifier's own gradient, before any scale: EDS enlarges a vanished gradient, it does "
                        "not keep it from vanishing. The sentences are about all seeds.",
                    ),
                    findings=tuple(self.vanishing()),
                    pictures=(pictures["vanishing"], pictures["vanishing-points"]),
                ),
                Section(
                    "Does it make better samples?",
                    (Column("method"), Column("scale"), *(Column(TITLES[m].column, "number") for m in METRICS)),
                    tuple(Group(outcome.row.method, tuple(self._lines(outcome))) for outcome in self.rows.values()),
                    (
                        "Mean over the seeds, ± half the difference between the largest and the smallest; the best "
                        "scale of each method by FID is bold. FID is the Fréchet distance in the judge's features. "
                        "Every network was trained once, and three scales are a coarse search, equally coarse for "
                        "both rules. Real digits are the train part judged like samples: what a perfect sampler "
                        "could reach.",
                    ),
                    tuple(findings(self.book, self.results, list(self.rows.values()))),
                    tuple(pictures[metric] for metric in METRICS),
                ),
                Section(
                    "Samples",
                    text=("Same column: same starting noise and same class. Not selected.",),
                    pictures=(pictures["samples"],),
                ),
                Section(
                    "The paper's claims and this run",
                    (Column("claim", "prose"), Column("seen here", "prose")),
                    tuple(Group(claim, (Line((seen,)),)) for claim, seen in self.claims()),
                    (
                        "This is a small case: 64 pixels and 10 classes instead of 196,608 numbers and 1,000 classes, "
                        "a judge and a reference of about 450 images each. It shows that the parts work together and "
                        "what they do to the guidance. It neither confirms nor refutes the paper's numbers on "
                        "ImageNet.",
                    ),
                ),
                Section("Commands, run from the repository root", code=commands),
            ),
            self.verdict(),
        )

    def verdict(self) -> str:
        """EDS at its best against the constant scale at its best, whatever the classifier."""
        eds, constant = self._best("eds"), self._best("constant")
        found = self._compare(eds, constant)
        values = " against ".join(f"{measured(each.result, 'fid')} ({_name(each)})" for each in (eds, constant))
        return f"{_VERDICTS[found.verdict]} in Fréchet distance in this run: {values}; {found}."

    def vanishing(self) -> list[str]:
        """How much the constant scale's gradient vanishes, and what EDS and ECT change."""
        found = []
        for classifier in CLASSIFIERS:
            trace = self.traces[f"{classifier}-constant"]
            early, late = (_over(trace, "entropy_ratio", period).mean() for period in (EARLY, LATE))
            gone = _vanished(trace)
            found.append(
                f"{self.rows[f'{classifier}-constant'].row.method}: H / log K falls from {early:.3f} (t ≥ {EARLY[0]}) "
                f"to {late:.3f} (t < {LATE[1]}). {gone.any(axis=1).mean():.0%} of the samples have a vanished gradient "
                f"(norm below {VANISHED_NORM}, H / log K below {CERTAIN_ENTROPY}) in some step, "
                f"{gone[:, -1].mean():.0%} in the last one."
            )
        return [*found, *self._eds_effects(), self._ect_effect()]

    def claims(self) -> list[tuple[str, str]]:
        """The paper's claims, and what is seen here."""
        trace, both, base = self.traces["plain-constant"], self.rows["ect-eds"], self.rows["plain-constant"]
        against = "; ".join(str(self._compare(both, base, metric)) for metric in ("fid", "precision", "recall"))
        return [
            (
                f"The gradient vanishes (norm below {VANISHED_NORM}) too early in almost every sample (Fig. 3).",
                f"In {_vanished(trace).any(axis=1).mean():.0%} of the samples it does so at some step with a certain "
                f"classifier, in {_vanished(trace, LATE).mean():.0%} of the late steps (plain, constant). The bound is "
                "the paper's, for images of 196,608 numbers; these have 64.",
            ),
            ("EDS restores the guidance late, hardly near t = T (Sect. 3.2).", " ".join(self._eds_effects())),
            ("ECT keeps the predictions from becoming one-hot (Sect. 3.3).", self._ect_effect()),
            ("EDS beats a tuned constant scale: FID 16.56 against 20.17 (Table 4, ImageNet 256x256).", self.verdict()),
            (
                "ECT + EDS beats plain guidance: FID 6.78 against 12.0, precision and recall as good or better "
                "(Table 2, ImageNet 256x256).",
                f"ECT + EDS against plain guidance: {measured(both.result, 'fid')} ({_name(both)}) against "
                f"{measured(base.result, 'fid')} ({_name(base)}); {against}.",
            ),
        ]

    def summary(self) -> str:
        """Plain text: every method with its best scale by FID."""
        lines = [("method", "best scale", *(TITLES[metric].column for metric in METRICS))]
        for outcome in self.rows.values():
            scale = f"{outcome.run.flags['classifier_scale']:g}" if outcome.row.sweep else "-"
            values = (measured(outcome.result or outcome.batch, metric) for metric in METRICS)
            lines.append((outcome.row.method, scale, *values))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

    def _trace(self, key: str) -> Trace:
        """The runs of all seeds at the traced scale."""
        (run,) = (self.book.runs[name] for name in self.rows[key].row.sweep if name.endswith(f"-{TRACED_SCALE:g}"))
        paths = [ROOT / self.commands.trace(run, seed) for seed in self.commands.seeds]
        traces = [read_trace(Labelled(self.rows[key].row.method, path)) for path in paths]
        series = {name: np.concatenate([trace.series[name] for trace in traces]) for name in traces[0].series}
        return Trace(traces[0].label, paths[0], traces[0].t, series, None)

    def _draw(self) -> dict[str, Path]:
        """The figures, by name: those of `ed-dpm figure`."""
        traces = [f"{trace.label}={trace.path}" for trace in self.traces.values()]
        drawn = {"vanishing": ["vanishing", *traces, "--magnify", 5], "vanishing-points": ["vanishing-points", *traces]}
        for metric in METRICS:
            drawn[metric] = ["sweep", self.out / "runs.csv", "--metric", metric]
        seed, real, samples = self.commands.seeds[0], self.out / "real-digits.npz", []
        for run in self.pool:
            path = ROOT / self.commands.samples(self.book.runs[run.run], seed)
            samples.append(f"{run.run.removeprefix(f'{TABLE}-')}={path}")
        _write_in_turn(ROOT / self.commands.data / "train.npz", real)
        shown = ",".join(map(str, range(20)))
        drawn["samples"] = ["compare", *samples, f"real digits={real}", "--samples", shown]
        paths = {name: self.out / f"{name}.png" for name in drawn}
        for name, words in drawn.items():
            figures.draw(words, paths[name])
        return paths

    def _lines(self, outcome: Outcome) -> list[Line]:
        """A line for each scale of a row, that of the best one bold."""
        tried = [self.results.runs[name] for name in outcome.row.run_names] or [outcome.batch]
        best = outcome.run.name if outcome.row.sweep else ""
        lines = []
        for each in tried:
            scale = f"{self.book.runs[each.run].flags['classifier_scale']:g}" if outcome.row.sweep else ""
            cells = (scale, *(measured(each, metric) for metric in METRICS))
            lines.append(Line(cells, "strong" if each.run == best else ""))
        return lines

    def _best(self, rule: str) -> Outcome:
        """The method of a rule with the lowest FID."""
        return min((self.rows[f"{name}-{rule}"] for name in CLASSIFIERS), key=lambda each: each.result.mean("fid"))

    def _compare(self, a: Outcome, b: Outcome, metric: str = "fid") -> Difference:
        return compare(a.result, b.result, self.pool, metric)

    def _eds_effects(self) -> list[str]:
        """How EDS changes the relative guidance early and late, for both classifiers."""
        found = []
        for classifier in CLASSIFIERS:
            eds, constant = (self.traces[f"{classifier}-{rule}"] for rule in ("eds", "constant"))
            early, late = (
                np.divide(*(np.median(_over(trace, "relative_guidance", period)) for trace in (eds, constant)))
                for period in (EARLY, LATE)
            )
            found.append(
                f"EDS multiplies the median relative guidance of the {classifier.replace('ect', 'ECT')} classifier by "
                f"{early:.2f} early (t ≥ {EARLY[0]}) and by {late:.2f} late (t < {LATE[1]})."
            )
        return found

    def _ect_effect(self) -> str:
        """How ECT changes the entropy late."""
        plain, ect = (_over(self.traces[f"{name}-constant"], "entropy_ratio", LATE).mean() for name in CLASSIFIERS)
        return (
            f"ECT changes the late mean of H / log K (t < {LATE[1]}, constant scale) from {plain:.3f} to {ect:.3f}, "
            f"{ect / plain:.2f} times."
        )


def _over(trace: Trace, name: str, period: tuple[int, int]) -> np.ndarray:
    """A series over the steps with period[0] <= t < period[1]: [samples, steps]."""
    return trace.series[name][:, (trace.t >= period[0]) & (trace.t < period[1])]


def _vanished(trace: Trace, period: tuple[int, int] = (0, 1000)) -> np.ndarray:
    """Whether the gradient has vanished while the classifier is certain: bool [samples, steps]."""
    certain = _over(trace, "entropy_ratio", period) < CERTAIN_ENTROPY
    return (_over(trace, "grad_norm", period) < VANISHED_NORM) & certain


def _name(outcome: Outcome) -> str:
    """A method with its best scale."""
    return f"{outcome.row.method}, scale {outcome.run.flags['classifier_scale']:g}"


def _write_in_turn(part: Path, path: Path, rounds: int = 3) -> None:
    """Write some images of a part of the digits with their classes in turn, as samples have them."""
    arrays = read_arrays(part, {"arr_0", "arr_1"})
    places = np.stack([np.flatnonzero(arrays["arr_1"] == digit)[:rounds] for digit in range(10)], axis=1).ravel()
    with write_atomically(path) as file:
        np.savez(file, **{name: values[places] for name, values in arrays.items()})

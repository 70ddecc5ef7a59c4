"""The demo's page: its runs in figures, tables and sentences, whose form is templates/digits.html.jinja."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evaluations.metrics.registry import METRICS as TITLES
from experiments.commands import Commands
from experiments.comparison import Outcome, findings, outcomes
from experiments.documents import Column, Line, render, write_text
from experiments.figures import cli as figures
from experiments.figures.inputs import Labelled, Trace, read_arrays, read_trace
from experiments.figures.vanishing_points import CERTAIN_ENTROPY, VANISHED_NORM
from experiments.report import measured, runs_csv
from experiments.results import read_results
from experiments.spec import ROOT
from experiments.verdict import BETTER, SAME, WORSE, Difference, compare
from guided_diffusion.io.atomic import write_atomically

TABLE = "demo"
METRICS = ("accuracy", "fid", "precision", "recall")
TRACED_SCALE = 1.7  # of the runs whose guidance is shown: all alike
_VERDICTS = {
    BETTER: "EDS beats a tuned constant scale",
    WORSE: "EDS is worse than a tuned constant scale",
    SAME: "EDS does not beat a tuned constant scale",
    None: "One seed cannot tell EDS from a tuned constant scale",
}


class Page:
    """The results of the demo's table.

    :param commands: of the spec that has been run, with traces.
    """

    def __init__(self, commands: Commands):
        self.commands, self.out = commands, ROOT / commands.out
        self.spec = commands.spec
        table = self.spec.tables[TABLE]
        self.results = read_results(self.spec, self.out, commands.seeds)
        found = outcomes(self.spec, self.results, table)
        self.rows = {outcome.row.name.removeprefix(f"{TABLE}/"): outcome for outcome in found}
        self.pool = [self.results.runs[name] for row in table.rows for name in row.run_names]
        self.traces = {key: self._trace(key) for key, outcome in self.rows.items() if outcome.row.sweep}

    def write(self, lines: list[str]) -> str:
        """Write report.html and its figures; returns the summary as a plain text table. `lines`: the commands."""
        write_text(self.out / "runs.csv", runs_csv(self.spec, self.results))
        write_text(self.out / "report.html", self.html(self._draw(), "\n".join(lines)))
        return self.summary()

    def html(self, paths: dict[str, Path], commands: str) -> str:
        """The whole page, with the figures that `_draw` has made."""
        columns = (Column("method"), Column("scale"), *(Column(TITLES[m].column, "number") for m in METRICS))
        groups = [(outcome.row.method, self._lines(outcome)) for outcome in self.rows.values()]
        rows = list(self.rows.values())
        return render(
            "digits.html", seeds=self.commands.seeds, n=self.pool[0].n, norm=VANISHED_NORM, entropy=CERTAIN_ENTROPY,
            sampler=self.spec.runs[self.pool[0].run].sampler, model=self.spec.networks["uncond"].checkpoint,
            verdict=self.verdict(), traced_scale=TRACED_SCALE, rows=self.rows, over=self.over, vanished=self.vanished,
            eds_factor=self.eds_factor, shown=[paths[metric] for metric in METRICS], columns=columns, groups=groups,
            compare=self.compare, said=_said, findings=list(findings(self.spec, self.results, rows)), paths=paths,
            commands=commands,
        )  # fmt: skip

    def verdict(self) -> str:
        """The comparison of EDS at its best with the constant scale at its best, whatever the classifier."""
        eds, constant = (
            min((self.rows[f"{name}-{rule}"] for name in ("plain", "ect")), key=lambda row: row.result.mean("fid"))
            for rule in ("eds", "constant")
        )
        found = self.compare(eds, constant)
        values = f"{_said(eds)} against {_said(constant)}"
        return f"{_VERDICTS[found.verdict]} in Fréchet distance in this run: {values}; {found}."

    def compare(self, a: Outcome, b: Outcome, metric: str = "fid") -> Difference:
        """Compare two rows, with the noise of all runs."""
        return compare(a.result, b.result, self.pool, metric)

    def summary(self) -> str:
        """Plain text: every method with its best scale by FID."""
        lines = [("method", "best scale", *(TITLES[metric].column for metric in METRICS))]
        for outcome in self.rows.values():
            values = (measured(outcome.result or outcome.batch, metric) for metric in METRICS)
            lines.append((outcome.row.method, _scale(outcome) if outcome.row.sweep else "-", *values))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

    def over(self, key: str, name: str, period: tuple[int, int] = (0, 1000)) -> np.ndarray:
        """A series of a row's trace over the steps with period[0] <= t < period[1]: [samples, steps]."""
        trace = self.traces[key]
        return trace.series[name][:, (trace.t >= period[0]) & (trace.t < period[1])]

    def vanished(self, key: str, period: tuple[int, int] = (0, 1000)) -> np.ndarray:
        """Mark where the gradient has vanished while the classifier is certain: bool [samples, steps]."""
        certain = self.over(key, "entropy_ratio", period) < CERTAIN_ENTROPY
        return (self.over(key, "grad_norm", period) < VANISHED_NORM) & certain

    def eds_factor(self, classifier: str, period: tuple[int, int]) -> float:
        """The ratio of EDS's median relative guidance to that of the constant scale, in a period."""
        eds, constant = (self.over(f"{classifier}-{rule}", "relative_guidance", period) for rule in ("eds", "constant"))
        return np.median(eds) / np.median(constant)

    def _trace(self, key: str) -> Trace:
        """The runs of all seeds at the traced scale."""
        (run,) = (self.spec.runs[name] for name in self.rows[key].row.sweep if name.endswith(f"-{TRACED_SCALE:g}"))
        paths = [ROOT / self.commands.trace_file(run, seed) for seed in self.commands.seeds]
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
            path = ROOT / self.commands.samples(self.spec.runs[run.run], seed)
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
        lines = []
        for run in [self.results.runs[name] for name in outcome.row.run_names] or [outcome.batch]:
            scale = f"{self.spec.runs[run.run].flags['classifier_scale']:g}" if outcome.row.sweep else ""
            best = outcome.row.sweep and run is outcome.result
            lines.append(Line((scale, *(measured(run, m) for m in METRICS)), "strong" if best else ""))
        return lines


def _scale(outcome: Outcome) -> str:
    return f"{outcome.run.flags['classifier_scale']:g}"


def _said(outcome: Outcome) -> str:
    """FID of a method, with its name and best scale."""
    return f"{measured(outcome.result, 'fid')} ({outcome.row.method}, scale {_scale(outcome)})"


def _write_in_turn(part: Path, path: Path, rounds: int = 3) -> None:
    """Write some images of a part of the digits with their classes in turn, as samples have them."""
    arrays = read_arrays(part, {"arr_0", "arr_1"})
    places = np.stack([np.flatnonzero(arrays["arr_1"] == digit)[:rounds] for digit in range(10)], axis=1).ravel()
    with write_atomically(path) as file:
        np.savez(file, **{name: values[places] for name, values in arrays.items()})

"""What a search has found: the table, a curve for each rule, the flags to use, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from experiments.documents import Line, markdown_table, write_text
from experiments.figures.style import line, log_axis, new_figure, plain, write_csv
from experiments.paired import Difference
from experiments.tune.runs import UNGUIDED
from experiments.tune.search import Arm, Search
from experiments.verdict import SAME, by_paired_tests


@dataclass(frozen=True)
class Confirmed:
    """The chosen arm and its rivals on seeds that chose nothing.

    :param values: the metric at every seed, by arm, the chosen one first.
    :param against: paired tests of the chosen arm against each rival.
    """

    count: int
    values: dict[Arm, list[float]]
    against: dict[Arm, list[Difference]]

    @property
    def chosen(self) -> Arm:
        return next(iter(self.values))


def sentences(search: Search, confirmed: Confirmed, column: str, flags: str, sign: int = 1) -> list[str]:
    """Return the result in at most five sentences.

    :param column: the metric's name; sign: -1 for one of which more is better.
    """
    chosen, seeds = confirmed.chosen, len(next(iter(confirmed.values.values())))
    found = [
        f"Chosen: {chosen}, {column} {mean(confirmed.values[chosen]):.4g} with {confirmed.count:,} images at each of "
        f"{seeds} seeds that chose nothing; {search.images:,} images chose."
    ]
    for rival, tests in confirmed.against.items():
        percents = [100 * test.difference / test.base for test in tests]
        verdict = by_paired_tests([sign * test.difference for test in tests], [test.p for test in tests])
        sure = "not sure" if verdict == SAME else f"sure, {verdict}"
        found.append(
            f"Against {rival}: {mean(percents):+.1f} % ({min(percents):+.1f} to {max(percents):+.1f}; p "
            f"{', '.join(f'{test.p:.2f}' for test in tests)}): {sure}."
        )
    if at_edge := [arm for arm in search.edges() if arm.group == chosen.group]:
        found.append(f"{at_edge[0]} is at the edge of the scales tried: a better one may lie beyond.")
    return [*found, f"Flags: {flags}"]


def write(search: Search, confirmed: Confirmed, text: Sequence[str], column: str, sign: int, out: Path) -> list[Path]:
    """Write tune.md, tune.csv, confirmed.csv and tune.png. :param sign: -1 for a metric of which more is better."""
    rows = [
        {"rule": arm.rule, "interval": arm.interval, "scale": arm.scale, "images": count, column: sign * value}
        for (arm, count), value in sorted(search.values.items())
    ]
    write_csv(out / "tune.csv", rows)
    tests = {(rival, test.seed): test for rival, found in confirmed.against.items() for test in found}
    write_csv(out / "confirmed.csv", [
        {
            "rule": arm.rule, "interval": arm.interval, "scale": arm.scale, "seed": seed, "images": confirmed.count,
            column: value, "difference": getattr(tests.get((arm, seed)), "difference", None),
            "p": getattr(tests.get((arm, seed)), "p", None),
        }
        for arm, values in confirmed.values.items() for seed, value in enumerate(values, 1)
    ])  # fmt: skip
    counts = sorted({count for _, count in search.values})
    groups = []
    for arm in sorted({arm for arm, _ in search.values}, key=lambda arm: _last(search, arm)):
        cells = [f"{sign * search.values[arm, count]:.4g}" if (arm, count) in search.values else "" for count in counts]
        groups.append((str(arm), [Line(cells)]))
    table = markdown_table(groups, ["setting", *(f">{column}, {count:,} images" for count in counts)])
    listed = "\n".join(f"- {sentence}" for sentence in text)
    write_text(out / "tune.md", f"# Which guidance?\n\n{listed}\n\n{table}\n\n![{column} over the scale](tune.png)\n")
    draw(search, column, sign, out / "tune.png")
    return [out / name for name in ("tune.md", "tune.csv", "confirmed.csv", "tune.png")]


def draw(search: Search, column: str, sign: int, path: Path) -> None:
    """Draw the metric over the scale: every setting with the images of the first round, those that went on marked."""
    first = min(count for _, count in search.values)
    with new_figure(path, 5.0, 3.2) as figure:
        axes = figure.add_subplot()
        for index, group in enumerate(sorted({arm.group for arm, _ in search.values})):
            arms = sorted(arm for arm, count in search.values if arm.group == group and count == first)
            values = [sign * search.values[arm, first] for arm in arms]
            rule, interval = group
            axes.plot([arm.scale for arm in arms], values, label=plain(f"{rule} {interval}".strip()), **line(index))
        axes.set(xlabel="scale \N{GREEK SMALL LETTER GAMMA}", ylabel=f"{column}, {first:,} images")
        log_axis(axes, "x")
        axes.legend()


def _last(search: Search, arm: Arm) -> tuple[int, float]:
    """Sort key: those with most images first, the best of them first."""
    count = max(n for known, n in search.values if known == arm)
    return -count, search.values[arm, count]


def rivals(search: Search, ranked: Sequence[Arm]) -> list[Arm]:
    """Return what the best arm is compared with: the best of another rule, the best constant scale, no guidance."""
    best = ranked[0]
    by_value = sorted({arm for arm, _ in search.values}, key=lambda arm: _last(search, arm))
    other = [arm for arm in by_value if arm.rule != best.rule][:1]
    constant = [arm for arm in by_value if arm.rule == "constant"][:1]
    return [arm for arm in dict.fromkeys([*constant, *other]) if arm != best] + [UNGUIDED]

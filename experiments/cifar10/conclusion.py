"""Conclusions from the paired differences: the protocol's questions answered in at most ten sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.cifar10.paired_tests import Comparison
from experiments.cifar10.tuning import MATCHED, PAIRS, Choice
from experiments.documents import render
from experiments.paired import Difference, percents
from experiments.verdict import SAME, by_paired_tests

SUPPORT = -10.0  # percent of FID that the paper claims at least
BETTER, WORSE, NONE, EDGE = "effect: better", "effect: worse", "no effect shown", "not counted: best at an edge"
# A row and the row that it is compared with, by what a sentence calls them.
Pairs = dict[str, tuple[str, str]]
_MATCHED = {name: (f"{MATCHED}/{name}-entropy", f"{MATCHED}/{name}-constant") for name in PAIRS}
_TIMESTEP = {
    "medium": ("rules/entropy", "rules/timestep"),
    "sharpened medium": ("sharpness/sharpened-entropy", "sharpness/sharpened-timestep"),
    "logits times 8": ("logits/x8-entropy", "logits/x8-timestep"),
    "medium, five seeds": ("methods/entropy", "methods/timestep"),
    "sharpened medium, five seeds": ("methods-sharpened/entropy", "methods-sharpened/timestep"),
}
_ETAS = {f"eta {eta}": (f"eta/ect-{eta}-constant", "eta/plain-constant") for eta in ("0.1", "0.2", "0.5")}


@dataclass(frozen=True)
class Finding:
    """One row against another: differences by seed, and what the protocol calls that."""

    comparison: Comparison
    differences: Sequence[Difference]
    verdict: str

    @property
    def percents(self) -> list[float]:
        """Differences by seed, in percent of the base's mean FID."""
        return percents(self.differences)

    @property
    def percent(self) -> float:
        return float(np.mean(self.percents))

    @property
    def size(self) -> str:
        """Mean, smallest and largest."""
        return f"{self.percent:+.1f} % ({min(self.percents):+.1f} to {max(self.percents):+.1f})"


def judge(choice: Choice, comparison: Comparison, differences: Sequence[Difference]) -> Finding:
    """The protocol's definition of an effect."""
    if {comparison.row.name, comparison.base.name} & set(choice.edges):
        verdict = EDGE
    else:
        found = by_paired_tests([test.difference for test in differences], [test.p for test in differences])
        verdict = NONE if found == SAME else f"effect: {found}"
    return Finding(comparison, differences, verdict)


def sentences(findings: Sequence[Finding], certainty: Mapping[str, tuple[float, float]]) -> list[str]:
    """At most ten, about what has been run.

    :param certainty: by classifier, under its best constant scale in the last third of the steps: mean entropy over
        log K, and the median gradient norm as a share of the largest median at any step.
    """
    found = {(f.comparison.row.name, f.comparison.base.name): f for f in findings}

    def said(pairs: Pairs, all: bool = False) -> str:
        """The effects of the pairs that are found; "" for none, or where `all` are needed and one is not."""
        effects = [f"{name} {found[pair].size}, {found[pair].verdict}" for name, pair in pairs.items() if pair in found]
        return "" if all and len(effects) < len(pairs) else "; ".join(effects)

    text = render(
        "conclusion.txt", said=said, found=found, certainty=certainty, matched=_MATCHED, timestep=_TIMESTEP, etas=_ETAS
    )
    return [line for line in text.splitlines() if line] + [verdict(found)] * bool(findings)


def verdict(found: Mapping[tuple[str, str], Finding]) -> str:
    """The protocol's list of what would contradict the paper, and what would support it."""

    def of(*pairs: tuple[str, str]) -> list[Finding]:
        return [found[pair] for pair in pairs if pair in found]

    def none_better(findings: Sequence[Finding]) -> bool:
        return all(finding.verdict != BETTER for finding in findings)

    tables = of(*((f"{table}/eds", f"{table}/neither") for table in ("table2", "table3", "table2-ddpm", "table3-ddpm")))
    strong, weak = (of((f"classifiers/{key}-entropy", f"classifiers/{key}-constant")) for key in ("strong", "weak"))
    sharpened = ("sharpness/sharpened-entropy", "sharpness/sharpened-constant")
    eds = [*tables, *strong, *of(sharpened, ("logits/x8-entropy", "logits/x8-constant"))]
    helps = [finding for finding in eds if finding.verdict == BETTER]
    matched, rivals, etas = of(*_MATCHED.values()), of(*_TIMESTEP.values()), of(*_ETAS.values())
    against = []
    if strong and none_better([*tables, *strong]):
        against.append("EDS is better neither with the plain classifier nor with the strong one")
    if helps and matched and none_better(matched):
        against.append("where EDS helps, it is a larger scale and no more")
    if helps and rivals and none_better(rivals):
        against.append(
            "EDS is not shown to be better than the timestep-aware rule (growth towards t = 0 may be all that counts)"
        )
    if helps and strong and weak and not none_better(weak) and weak[0].percent <= strong[0].percent:
        against.append("EDS helps the weak classifier as much as the strong one")
    if len(etas) == len(_ETAS) and none_better(etas):
        against.append("ECT is better at no eta")
    parts = [f"evidence against the paper: {'; '.join(against)}"] if against else []
    if large := [finding for finding in helps if finding.percent <= SUPPORT]:
        both = of(("table2/ect-eds", "table2/neither"))
        most = both and not none_better(both) and both[0].percent < min(finding.percent for finding in tables)
        text = f"EDS lowers FID by 10 % or more in {len(large)} of {len(eds)} comparisons"
        parts.append(f"evidence for the paper: {text}{', and ECT and EDS together lower it most' if most else ''}")
    return f"By the protocol's criteria, {'; '.join(parts) or 'nothing here contradicts the paper or supports it'}."

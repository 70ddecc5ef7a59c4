"""What the paired differences say: the protocol's questions answered in at most ten sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .choice import MATCHED, PAIRS, Choice
from .paired import Comparison, Difference, is_effect

SUPPORT = -10.0  # percent of FID that the paper claims at least
BETTER, WORSE, NONE, EDGE = "effect: better", "effect: worse", "no effect shown", "not counted: best at an edge"
_SAMPLERS = {"": "DDIM", "-ddpm": "DDPM"}
_MODELS = {"table2": "UADM", "table3": "CADM"}
_RULES = {"range": "range", "timestep": "timestep-aware", "gradnorm": "gradient norm", "capped": "EDS with a cap"}
_SHARPNESS = {"weak": "weak", "plain": "medium", "strong": "strong", "calibrated": "calibrated medium"}


@dataclass(frozen=True)
class Finding:
    """One row against one constant scale: differences by seed, and what the protocol calls that."""

    comparison: Comparison
    differences: Sequence[Difference]
    verdict: str

    @property
    def percents(self) -> list[float]:
        """Differences by seed, in percent of the base's mean FID."""
        base = np.mean([value.base_fid for value in self.differences])
        return [float(100 * value.difference / base) for value in self.differences]

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
    elif not is_effect(differences):
        verdict = NONE
    else:
        verdict = BETTER if differences[0].difference < 0 else WORSE
    return Finding(comparison, differences, verdict)


def sentences(findings: Sequence[Finding], vanishing: Mapping[str, float]) -> Iterator[str]:
    """At most ten, about what has been run.

    :param vanishing: by classifier, median guidance over eps at the last step as a share of its largest median.
    """
    found = {(f.comparison.row.name, f.comparison.base.name): f for f in findings}
    for key, name in (("eds", "EDS"), ("ect", "ECT"), ("ect-eds", "ECT+EDS")):
        parts = {
            f"{model} {sampler}": found.get((f"{table}{end}/{key}", f"{table}{end}/neither"))
            for end, sampler in _SAMPLERS.items()
            for table, model in _MODELS.items()
        }
        yield from _sentence(f"{name} against the constant scale and the plain classifier", parts)
    sharp = {
        name: found.get((f"classifiers/{key}-entropy", f"classifiers/{key}-constant"))
        for key, name in _SHARPNESS.items()
    }
    yield from _sentence("EDS against the constant scale of the same classifier", sharp)
    matched = {name: found.get((f"{MATCHED}/{name}-entropy", f"{MATCHED}/{name}-constant")) for name in PAIRS}
    yield from _sentence("EDS against the constant scale of the same time-averaged guidance norm", matched)
    rules = {name: found.get((f"rules/{key}", "rules/constant")) for key, name in _RULES.items()}
    yield from _sentence("Other rules against the constant scale", rules)
    etas = {eta: found.get((f"eta/ect-{eta}-constant", "eta/plain-constant")) for eta in ("0.1", "0.2", "0.5")}
    yield from _sentence("ECT against the plain classifier, both with a constant scale, by eta", etas)
    counts = {n: found.get((f"subclasses/{n}-entropy", f"subclasses/{n}-constant")) for n in ("10", "50")}
    yield from _sentence("EDS against the constant scale, by the number of classes", counts)
    if vanishing:
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in vanishing.items())
        yield f"Guidance over eps at the last step, of the largest at any step, with constant scales: {shares}."
    if findings:
        yield verdict(found)


def verdict(found: Mapping[tuple[str, str], Finding]) -> str:
    """The protocol's list of what would contradict the paper, and what would support it."""

    def of(row: str, base: str) -> Finding | None:
        return found.get((row, base))

    tables = [of(f"{t}{end}/eds", f"{t}{end}/neither") for t in _MODELS for end in _SAMPLERS]
    strong, weak = (of(f"classifiers/{key}-entropy", f"classifiers/{key}-constant") for key in ("strong", "weak"))
    eds = [finding for finding in (*tables, strong) if finding]
    helps = [finding for finding in eds if finding.verdict == BETTER]
    matched = [of(f"{MATCHED}/{name}-entropy", f"{MATCHED}/{name}-constant") for name in PAIRS]
    matched = [finding for finding in matched if finding]
    rule, rival = of("rules/entropy", "rules/constant"), of("rules/timestep", "rules/constant")
    etas = [of(f"eta/ect-{eta}-constant", "eta/plain-constant") for eta in ("0.1", "0.2", "0.5")]
    etas = [finding for finding in etas if finding]
    against, both = [], of("table2/ect-eds", "table2/neither")
    if eds and strong and not helps:
        against.append("EDS is better nowhere, the strong classifier included")
    if helps and matched and all(finding.verdict != BETTER for finding in matched):
        against.append("where EDS helps, it is a larger scale and no more")
    if helps and rule and rival and rival.percent <= rule.percent:
        against.append("the timestep-aware rule is as good as EDS: growth with time, not entropy")
    if helps and strong and weak and weak.verdict == BETTER and weak.percent <= strong.percent:
        against.append("EDS helps the weak classifier as much as the strong one")
    if etas and all(finding.verdict != BETTER for finding in etas):
        against.append("ECT is better at no eta")
    parts = [f"against the paper: {'; '.join(against)}"] if against else []
    large = [finding for finding in helps if finding.percent <= SUPPORT]
    if large:
        parts.append(f"for it: EDS lowers FID by 10 % or more in {len(large)} of {len(eds)} comparisons")
    if large and both and both.verdict == BETTER and both.percent < min(f.percent for f in tables if f):
        parts.append("ECT+EDS lowers it most")
    return f"By the protocol's list, {', and '.join(parts) or 'nothing here contradicts the paper or supports it'}."


def _sentence(text: str, parts: Mapping[str, Finding | None]) -> Iterator[str]:
    known = [f"{name} {finding.size}, {finding.verdict}" for name, finding in parts.items() if finding]
    if known:
        yield f"{text}: {'; '.join(known)}."

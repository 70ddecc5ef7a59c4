"""What the paired differences say: the protocol's questions answered in at most ten sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.cifar10.choice import MATCHED, PAIRS, Choice
from experiments.cifar10.paired_tests import Comparison, Difference
from experiments.verdict import SAME, by_paired_tests

SUPPORT = -10.0  # percent of FID that the paper claims at least
BETTER, WORSE, NONE, EDGE = "effect: better", "effect: worse", "no effect shown", "not counted: best at an edge"
_SAMPLERS = {"": "DDIM", "-ddpm": "DDPM"}
_MODELS = {"table2": "UADM", "table3": "CADM"}
_RULES = {"range": "range", "timestep": "timestep-aware", "gradnorm": "gradient norm", "capped": "EDS with a cap"}
_ETAS = ("0.1", "0.2", "0.5")
_SHARPENED = "sharpened medium"
_MULTIPLES = (8,)  # of the medium classifier's logits
_SHARPNESS = {"weak": "weak", "plain": "medium", "strong": "strong", "calibrated": "calibrated medium"}


@dataclass(frozen=True)
class Finding:
    """One row against another: differences by seed, and what the protocol calls that."""

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
    else:
        found = by_paired_tests([test.difference for test in differences], [test.p for test in differences])
        verdict = NONE if found == SAME else f"effect: {found}"
    return Finding(comparison, differences, verdict)


def sentences(findings: Sequence[Finding], certainty: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    """At most ten, about what has been run.

    :param certainty: by classifier, under its best constant scale in the last third of the steps: mean entropy over
        log K, and the median gradient norm as a share of the largest median at any step.
    """
    found = {(f.comparison.row.name, f.comparison.base.name): f for f in findings}

    def of(table: str, row: str, base: str) -> Finding | None:
        return found.get((f"{table}/{row}", f"{table}/{base}"))

    for key, name in (("eds", "EDS"), ("ect", "ECT with a constant scale"), ("ect-eds", "ECT and EDS together")):
        parts = {
            f"{model}, {sampler}": of(f"{table}{end}", key, "neither")
            for end, sampler in _SAMPLERS.items()
            for table, model in _MODELS.items()
        }
        yield from _sentence(f"{name} in place of the best constant scale and the plain classifier changes FID", parts)
    sharp = {name: of("classifiers", f"{key}-entropy", f"{key}-constant") for key, name in _SHARPNESS.items()}
    sharp[_SHARPENED] = of("sharpness", "sharpened-entropy", "sharpened-constant")
    yield from _sentence("By classifier, EDS in place of that classifier's best constant scale changes FID", sharp)
    logits = {
        f"{name}, times {n}": of("logits", f"x{n}-{key}", f"x{n}-constant")
        for n in _MULTIPLES
        for key, name in (("entropy", "EDS"), ("timestep", "timestep-aware"))
    }
    yield from _sentence("With multiplied logits the rules in place of the best constant scale change FID", logits)
    rivals = {
        "the constant scale of the same time-averaged guidance norm": _said(
            {name: of(MATCHED, f"{name}-entropy", f"{name}-constant") for name in PAIRS}
        ),
        "the timestep-aware rule": _said(_against_timestep(found)),
    }
    if any(rivals.values()):
        texts = (f"against {name}, {text}" for name, text in rivals.items() if text)
        yield f"EDS changes FID {'; and '.join(texts)}."
    rules = {name: of("rules", key, "constant") for key, name in _RULES.items()}
    rules[f"timestep-aware, {_SHARPENED}"] = of("sharpness", "sharpened-timestep", "sharpened-constant")
    yield from _sentence("The other rules, at their best, in place of the constant one change FID", rules)
    etas = {f"eta {eta}": of("eta", f"ect-{eta}-constant", "plain-constant") for eta in _ETAS}
    if all(etas.values()):
        yield from _sentence("ECT with a constant scale changes FID", etas)
    counts = {f"{n} classes": of("subclasses", f"{n}-entropy", f"{n}-constant") for n in ("10", "50")}
    if counts["50 classes"]:
        yield from _sentence("By the number of classes, EDS in place of the constant scale changes FID", counts)
    if certainty:
        parts = (f"{name} {entropy:.2f} and {100 * share:.0f} %" for name, (entropy, share) in certainty.items())
        yield (
            "In the last third of the steps, under the best constant scale, mean entropy over log K and gradient norm "
            f"as a share of its peak are: {'; '.join(parts)}."
        )
    if findings:
        yield verdict(found)


def verdict(found: Mapping[tuple[str, str], Finding]) -> str:
    """The protocol's list of what would contradict the paper, and what would support it."""

    def of(row: str, base: str) -> Finding | None:
        return found.get((row, base))

    tables = [of(f"{t}{end}/eds", f"{t}{end}/neither") for t in _MODELS for end in _SAMPLERS]
    strong, weak = (of(f"classifiers/{key}-entropy", f"classifiers/{key}-constant") for key in ("strong", "weak"))
    sharpened = of("sharpness/sharpened-entropy", "sharpness/sharpened-constant")
    multiplied = [of(f"logits/x{n}-entropy", f"logits/x{n}-constant") for n in _MULTIPLES]
    eds = [finding for finding in (*tables, strong, sharpened, *multiplied) if finding]
    helps = [finding for finding in eds if finding.verdict == BETTER]
    matched = [of(f"{MATCHED}/{name}-entropy", f"{MATCHED}/{name}-constant") for name in PAIRS]
    matched = [finding for finding in matched if finding]
    rivals = [finding for finding in _against_timestep(found).values() if finding]
    etas = [of(f"eta/ect-{eta}-constant", "eta/plain-constant") for eta in _ETAS]
    against, both = [], of("table2/ect-eds", "table2/neither")
    if strong and not any(finding.verdict == BETTER for finding in (*tables, strong) if finding):
        against.append("EDS is better neither with the plain classifier nor with the strong one")
    if helps and matched and all(finding.verdict != BETTER for finding in matched):
        against.append("where EDS helps, it is a larger scale and no more")
    if helps and rivals and all(finding.verdict != BETTER for finding in rivals):
        against.append(
            "EDS is not shown to be better than the timestep-aware rule (growth towards t = 0 may be all that counts)"
        )
    if helps and strong and weak and weak.verdict == BETTER and weak.percent <= strong.percent:
        against.append("EDS helps the weak classifier as much as the strong one")
    if all(finding and finding.verdict != BETTER for finding in etas):
        against.append("ECT is better at no eta")
    parts = [f"evidence against the paper: {'; '.join(against)}"] if against else []
    large = [finding for finding in helps if finding.percent <= SUPPORT]
    if large:
        most = both and both.verdict == BETTER and both.percent < min(f.percent for f in tables if f)
        text = f"EDS lowers FID by 10 % or more in {len(large)} of {len(eds)} comparisons"
        parts.append(f"evidence for the paper: {text}{', and ECT and EDS together lower it most' if most else ''}")
    return f"By the protocol's criteria, {'; '.join(parts) or 'nothing here contradicts the paper or supports it'}."


def _against_timestep(found: Mapping[tuple[str, str], Finding]) -> dict[str, Finding | None]:
    """EDS against the timestep-aware rule, by classifier."""
    return {
        "medium": found.get(("rules/entropy", "rules/timestep")),
        _SHARPENED: found.get(("sharpness/sharpened-entropy", "sharpness/sharpened-timestep")),
        **{f"logits times {n}": found.get((f"logits/x{n}-entropy", f"logits/x{n}-timestep")) for n in _MULTIPLES},
    }


def _sentence(text: str, parts: Mapping[str, Finding | None]) -> Iterator[str]:
    if said := _said(parts):
        yield f"{text}: {said}."


def _said(parts: Mapping[str, Finding | None]) -> str:
    return "; ".join(f"{name} {finding.size}, {finding.verdict}" for name, finding in parts.items() if finding)

"""What the numbers of a run say, in sentences. Nothing here is written in advance but the form."""

from __future__ import annotations

import math

from demo.plan import CLASSIFIERS, COMBINATIONS, SCALES, Configuration
from demo.results import EARLY, LATE, LOW_ENTROPY, METRICS, VANISHED_NORM, Results, over_period


def label(classifier: str, rule: str) -> str:
    """What a combination is called in figures, tables and sentences."""
    return f"{'ECT' if classifier == 'ect' else 'plain'}, {'EDS' if rule == 'eds' else 'constant'}"


def vanishing_sentences(results: Results) -> list[str]:
    """The vanishing itself, with the scale that all four combinations share."""
    sentences = []
    for classifier in CLASSIFIERS:
        trace = results.traces[classifier, "constant"]
        ever, last = trace["vanished"].any(axis=1).mean(), trace["vanished"][:, -1].mean()
        early, late = (over_period(trace, "entropy_ratio", period) for period in (EARLY, LATE))
        sentences.append(
            f"{label(classifier, 'constant')}: H / log K falls from {early:.3f} (t ≥ {EARLY[0]}) to {late:.3f} "
            f"(t < {LATE[1]}). {ever:.0%} of the samples have a vanished gradient (norm below {VANISHED_NORM}, "
            f"H / log K below {LOW_ENTROPY}) in some step, {last:.0%} in the last one."
        )
    return [*sentences, *eds_sentences(results), ect_sentence(results)]


def eds_sentences(results: Results) -> list[str]:
    """How EDS changes the relative guidance early and late, for both classifiers."""
    sentences = []
    for classifier in CLASSIFIERS:
        early, late = (eds_factor(results, classifier, period) for period in (EARLY, LATE))
        sentences.append(
            f"EDS multiplies the median relative guidance of the {classifier_name(classifier)} classifier by "
            f"{early:.2f} early (t ≥ {EARLY[0]}) and by {late:.2f} late (t < {LATE[1]})."
        )
    return sentences


def ect_sentence(results: Results) -> str:
    """How ECT changes the entropy late."""
    plain, ect = (over_period(results.traces[c, "constant"], "entropy_ratio", LATE) for c in CLASSIFIERS)
    return (
        f"ECT changes the late mean of H / log K (t < {LATE[1]}, constant scale) from {plain:.3f} to {ect:.3f}, "
        f"{ect / plain:.2f} times."
    )


def quality_sentences(results: Results) -> list[str]:
    """Best EDS against best constant, and best ECT against best plain, each with its best of three scales."""
    eds, constant = results.best("eds"), results.best("constant")
    sentences = [compare(results, eds, constant, "Best EDS against best constant scale")]
    for classifier in CLASSIFIERS:
        pair = results.best("eds", classifier), results.best("constant", classifier)
        sentences.append(compare(results, *pair, f"The same with the {classifier_name(classifier)} classifier only"))
    ect = results.best("constant", "ect"), results.best("constant", "plain")
    sentences.append(compare(results, *ect, "ECT against plain, both with constant scale"))
    sentences.append(
        "Beside the distance, "
        + "; ".join(
            f"{name(c)} has accuracy {results.scores[c]['accuracy']}, precision {results.scores[c]['precision']}, "
            f"recall {results.scores[c]['recall']}"
            for c in (eds, constant)
        )
        + "."
    )
    return sentences + edge_sentences(results)


def verdict(results: Results) -> str:
    """One sentence for the top of the report."""
    eds, constant = results.best("eds"), results.best("constant")
    difference, noise = results.difference(eds, constant, "fid"), results.noise(eds, constant, "fid")
    outcome = {
        "lower": "EDS beats a tuned constant scale in Fréchet distance",
        "higher": "EDS is worse than a tuned constant scale in Fréchet distance",
        "the same within the noise": "EDS does not beat a tuned constant scale in Fréchet distance",
        "of unknown significance (one seed)": "One seed cannot tell EDS from a tuned constant scale",
    }[relation(difference, noise)]
    values = " against ".join(f"{results.scores[c]['fid']} ({name(c)})" for c in (eds, constant))
    return f"{outcome} in this run: {values}; difference {difference:+.4f}, noise of a difference {noise:.4f}."


def claims(results: Results) -> list[tuple[str, str]]:
    """The paper's claims, and what is seen here."""
    trace = results.traces["plain", "constant"]
    both, base = results.best("eds", "ect"), results.best("constant", "plain")
    return [
        (
            f"The gradient vanishes (norm below {VANISHED_NORM}) too early in almost every sample (Fig. 3).",
            f"In {trace['vanished'].any(axis=1).mean():.0%} of the samples it does so at some step with a certain "
            f"classifier, in {over_period(trace, 'vanished', LATE):.0%} of the late steps (plain, constant). The bound "
            "is the paper's, for images of 196,608 numbers; these have 64.",
        ),
        (
            "EDS restores the guidance late and hardly changes it near t = T (Sect. 3.2).",
            " ".join(eds_sentences(results)),
        ),
        (
            "ECT keeps the predictions from becoming one-hot (Sect. 3.3).",
            ect_sentence(results),
        ),
        (
            "EDS beats a tuned constant scale: FID 16.56 against 20.17 (Table 4, ImageNet 256x256).",
            verdict(results),
        ),
        (
            "ECT + EDS beats plain guidance: FID 6.78 against 12.0, precision and recall as good or better "
            "(Table 2, ImageNet 256x256).",
            compare(results, both, base, "ECT + EDS against plain guidance")
            + "".join(
                f" {metric.capitalize()}: {results.difference(both, base, metric):+.3f} "
                f"(noise {results.noise(both, base, metric):.3f})."
                for metric in ("precision", "recall")
            ),
        ),
    ]


def text_table(results: Results) -> str:
    """Plain text: every combination with its best scale (lowest mean Fréchet distance)."""
    rows = [("method", "best scale", "accuracy", "FID", "precision", "recall")]
    shown = [("unguided", "-", results.scores[Configuration()])]
    for classifier, rule in COMBINATIONS:
        best = results.best(rule, classifier)
        shown.append((label(classifier, rule), f"{best.scale:g}", results.scores[best]))
    shown.append(("real digits", "-", results.real))
    rows += [(title, scale, *(str(scores[metric]) for metric in METRICS)) for title, scale, scores in shown]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def compare(results: Results, a: Configuration, b: Configuration, what: str) -> str:
    """Fréchet distance of two configurations, with the noise of their difference."""
    difference, noise = results.difference(a, b, "fid"), results.noise(a, b, "fid")
    return (
        f"{what}: {results.scores[a]['fid']} ({name(a)}) against {results.scores[b]['fid']} ({name(b)}); "
        f"difference {difference:+.4f}, noise of a difference {noise:.4f}: {relation(difference, noise)}."
    )


def relation(difference: float, noise: float) -> str:
    """What a difference amounts to when two standard deviations are asked for."""
    if math.isnan(noise):
        return "of unknown significance (one seed)"
    if abs(difference) <= 2 * noise:
        return "the same within the noise"
    return "lower" if difference < 0 else "higher"


def edge_sentences(results: Results) -> list[str]:
    """Which best scales are at the end of what was tried, so that a better one may lie beyond."""
    ends = []
    for classifier, rule in COMBINATIONS:
        best = results.best(rule, classifier)
        if best.scale in (min(SCALES[rule]), max(SCALES[rule])):
            ends.append(f"{name(best)} is the {'largest' if best.scale == max(SCALES[rule]) else 'smallest'}")
    return [f"Best scales at the end of the range tried: {'; '.join(ends)}."] if ends else []


def eds_factor(results: Results, classifier: str, period: tuple[int, int]) -> float:
    """Median relative guidance with EDS over that with a constant scale, at the traced scale."""
    eds, constant = (results.traces[classifier, rule] for rule in ("eds", "constant"))
    return over_period(eds, "relative_guidance", period) / over_period(constant, "relative_guidance", period)


def name(configuration: Configuration) -> str:
    """With its scale."""
    return f"{label(configuration.classifier, configuration.rule)}, scale {configuration.scale:g}"


def classifier_name(classifier: str) -> str:
    return "ECT" if classifier == "ect" else classifier

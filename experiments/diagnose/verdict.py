"""What a diagnosis says, in at most five sentences."""

from __future__ import annotations

from typing import Any

from experiments.comparison import UNIT_FACTORS
from experiments.diagnose.statistics import CONSTANT, CONSTANT_1, Estimate
from experiments.figures.vanishing_points import CERTAIN_ENTROPY, VANISHED_NORM

NO_LOSS = (
    "L and s* are left out: --model_path is class-conditional, and they need an unconditional model, whose noise the "
    "classifier's gradient completes."
)
_CLOSE = 0.05  # a temperature this near to 1 counts as 1


def said(found: Estimate, form: str = ".3g") -> str:
    """An estimate with its interval as text; "-" where there is none."""
    value, low, high = found
    if value is None:
        return "-"
    return f"{value:{form}}" if low is None or low == high else f"{value:{form}} ({low:{form}} to {high:{form}})"


def flags(rule: str, gamma: float, steps: int) -> str:
    """Return the flags of classifier_sample for a rule. :param steps: of the process."""
    named = {CONSTANT: "", CONSTANT_1: "", "entropy": "--eds "}.get(rule, f"--guidance {rule} ")
    factor = f"--guidance_factor {UNIT_FACTORS[rule](steps):g} " if rule in UNIT_FACTORS else ""
    return f"{named}{factor}--classifier_scale {gamma:.3g}"


def best(result: dict[str, Any]) -> tuple[str, str]:
    """Return the classifier and the rule that lower L most."""
    found = result["classifiers"]
    choices = [(name, rule) for name, entry in found.items() for rule in entry["rules"]]
    return max(choices, key=lambda choice: found[choice[0]]["rules"][choice[1]]["gain"][0])


def verdict(result: dict[str, Any]) -> list[str]:
    """Return the sentences on a result of `summarize`: on every classifier, then on what lowers L most."""
    found = result["classifiers"]
    sentences = [
        f"Calibration over all t: {_each(found, _calibration)}.",
        f"Top-1 accuracy exceeds one half {_each(found, lambda entry: _knows(entry, result['times']))}.",
        f"The gradient has vanished (norm below {VANISHED_NORM}, H / log K below {CERTAIN_ENTROPY}) at "
        f"t = {result['times'][0]} in {_each(found, _vanished)}.",
    ]
    if result["unguided"] is None:
        return [*sentences, NO_LOSS]
    name, rule = best(result)
    rules = found[name]["rules"]
    judged = rules[rule]
    gamma, tried = judged["gamma"][0], rule
    if not (judged["gain"][1] or 0) > 0:
        return [
            *sentences,
            f"No classifier and rule surely lowers L of images that were not fitted on: at best {name} with {rule} at "
            f"scale {gamma:.3g}, by {said(judged['gain'])}.",
            "Measure more images (--num_images), or train the classifier longer, on noisy images of this process.",
        ]
    plain = f"at scale 1 the plain gradient lowers it by {said(rules[CONSTANT_1]['gain'])}"
    compared = ""
    if rule not in (CONSTANT, CONSTANT_1):
        beyond = judged["over_constant"]
        compared = f", {said(beyond)} more than with the constant scale {rules[CONSTANT]['gamma'][0]:.3g}"
        if not beyond[1] > 0:
            compared += ", no difference that this many images can tell"
            tried = CONSTANT
    advice = f"{flags(tried, rules[tried]['gamma'][0], result['steps'])} with {name}"
    return [
        *sentences,
        f"L / (1 - abar) falls most with {name} and the rule {rule} at scale {gamma:.3g}: by {said(judged['gain'])}, "
        f"{judged['share'][0]:.1%} of it at the mean level{compared}; {plain}.",
        f"Try {advice}, and two to four times that scale: what lowers L is nearest to the true gradient; the best FID "
        "may need another rule, and more, for what the sampler loses (`ed-dpm tune`).",
    ]


def _each(found: dict[str, Any], say: Any) -> str:
    told = {name: say(entry) for name, entry in found.items()}
    return next(iter(told.values())) if len(told) == 1 else "; ".join(f"{text} ({name})" for name, text in told.items())


def _calibration(entry: dict[str, Any]) -> str:
    temperature, ece = entry["overall"]["temperature"], entry["overall"]["ece"]
    value, low, high = temperature
    what = "calibrated" if low <= 1 <= high or abs(value - 1) < _CLOSE else "too certain" if value > 1 else "too unsure"
    return f"{what}, temperature {said(temperature)}, ECE {said(ece)}"


def _knows(entry: dict[str, Any], times: list[int]) -> str:
    accuracy = [value for value, _, _ in entry["levels"]["accuracy"]]
    known = [level for level, value in enumerate(accuracy) if value > 0.5]
    if not known:
        return f"at no level (at most {max(accuracy):.2f})"
    highest = times[known[-1]]
    return f"from t = {highest} down" if len(known) == known[-1] + 1 else f"up to t = {highest}, but not at all levels"


def _vanished(entry: dict[str, Any]) -> str:
    share = f"{entry['levels']['vanished'][0][0]:.0%} of the images"
    scales = [value for value, _, _ in entry["levels"].get("s_star", ())]
    return f"{share}, s* is {scales[0]:.3g}" if scales and scales[0] is not None else share

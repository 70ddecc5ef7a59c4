"""The sampling and evaluation of arms: steps of the same runner as everything else, so that they resume."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ed_dpm_patches import config as paper
from ed_dpm_patches.rules import RULES, ConstantRule
from evaluations.metrics.registry import METRICS
from experiments import paired
from experiments.comparison import UNIT_FACTORS
from experiments.paired import Difference
from experiments.runner import Runner
from experiments.spec import ROOT
from experiments.steps import Step
from experiments.tune.search import Arm
from guidance_methods.config import FLAGS
from guided_diffusion.io.reading import read_json

UNGUIDED = Arm("unguided", "", 0.0)


class Runs:
    """Samples of arms and what the evaluator says of them.

    :param flags: of classifier_sample, for all arms.
    :param size: "HxWxC" of an image; steps: T of the process.
    :param evaluator: the evaluator's words besides reference and samples; reference: its npz file or name.
    :param metric: a name of the evaluator's registry.
    """

    def __init__(
        self, runner: Runner, out: Path, flags: dict[str, Any], size: str, steps: int, reference: str,
        evaluator: Sequence[str], metric: str, jobs: int,
    ):  # fmt: skip
        self.runner, self.out, self.flags, self.size, self.steps = runner, out, flags, size, steps
        self.reference, self.evaluator, self.metric, self.jobs = reference, list(evaluator), metric, jobs

    def _shared(self, arm: Arm) -> dict[str, Any]:
        """Return the flags of all arms, without those of rules that are not this one's."""
        arguments = inspect.signature(RULES.get(arm.rule, ConstantRule)).parameters
        foreign = {option for argument, option in (paper.FLAGS | FLAGS).items() if argument not in arguments}
        return {name: value for name, value in self.flags.items() if name not in foreign}

    def guidance(self, arm: Arm) -> dict[str, Any]:
        """Return the flags that make an arm."""
        if arm == UNGUIDED:
            return {"classifier_scale": 0.0}
        flags: dict[str, Any] = {"classifier_scale": arm.scale}
        flags |= {"eds": True} if arm.rule == "entropy" else {"guidance": arm.rule}
        if arm.rule in UNIT_FACTORS:
            flags["guidance_factor"] = UNIT_FACTORS[arm.rule](self.steps)
        return flags | ({"guidance_interval": arm.interval} if arm.interval else {})

    def values(self, arms: Sequence[Arm], count: int, seed: int) -> list[float]:
        """Return the metric of `count` images of each arm, lower is better; images that exist are not made again."""
        steps = [step for arm in arms for step in (self._sample(arm, count, seed), self._evaluate(arm, count, seed))]
        self.runner.run(steps, self.jobs)
        sign = 1 if METRICS[self.metric].lower_is_better else -1
        return [sign * self.figures(arm, count, seed)[self.metric] for arm in arms]

    def figures(self, arm: Arm, count: int, seed: int) -> dict[str, Any]:
        """Return what the evaluator has found of an arm's images."""
        return read_json(ROOT / self._evaluate(arm, count, seed).outputs[0])

    def compare(self, arms: Sequence[Arm], base: Arm, count: int, seeds: Sequence[int]) -> list[list[Difference]]:
        """Return the paired tests of arms against another one, at every seed."""
        steps = {(arm, seed): self._evaluate(arm, count, seed, base) for arm in arms for seed in seeds}
        self.runner.run(list(steps.values()), self.jobs)
        return [
            [paired.read(ROOT / steps[arm, seed].outputs[0], seed, self.metric) for seed in seeds] for arm in arms
        ]

    def _samples(self, arm: Arm, count: int, seed: int) -> Path:
        return self.out / "samples" / f"{arm}-seed{seed}" / f"samples_{count}x{self.size}.npz"

    def _sample(self, arm: Arm, count: int, seed: int) -> Step:
        samples = self._samples(arm, count, seed)
        flags = self._shared(arm) | self.guidance(arm) | {"num_samples": count, "seed": seed, "log_dir": samples.parent}
        words = (part for name, value in flags.items() for part in (f"--{name}", str(value)))
        networks = tuple(Path(flags[name]) for name in ("model_path", "classifier_path") if name in flags)
        command = ("python", "scripts/classifier_sample.py", *words)
        return Step(f"sample-{arm}-seed{seed}-{count}", command, networks, (samples,), precious=True)

    def _evaluate(self, arm: Arm, count: int, seed: int, base: Arm | None = None) -> Step:
        samples = self._samples(arm, count, seed)
        name = f"{arm}-seed{seed}-{count}" + (f"-against-{base}" if base else "")
        metrics = self.out / "metrics" / f"{name}.json"
        command = ["python", "evaluations/evaluator.py", self.reference, str(samples), *self.evaluator]
        command += ["--metrics", self.metric, "--cache", str(self.out / "cache"), "--json", str(metrics)]
        inputs = [samples]
        if base:
            other = self._samples(base, count, seed)
            command, inputs = [*command, "--paired", str(other)], [*inputs, other]
        return Step(f"evaluate-{name}", tuple(command), tuple(inputs), (metrics,))

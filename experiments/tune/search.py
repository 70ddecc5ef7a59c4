"""Successive halving over rules, scales and intervals: many arms with few images, then fewer with more.

Jamieson & Talwalkar 2016 ("Non-stochastic best arm identification and hyperparameter optimization"). The rounds share
the images; after each the best 1 / `keep` of the arms go on, with their images kept. All arms share their noise, and so
are compared on the same images. Where the best scale of a rule and interval is the smallest or largest tried, the next
one, a factor of two beyond it, joins the round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

Values = list[float]


@dataclass(frozen=True, order=True)
class Arm:
    """A setting of the guidance. :param interval: "LO,HI" of --guidance_interval, or "" for all timesteps."""

    rule: str
    interval: str
    scale: float

    @property
    def group(self) -> tuple[str, str]:
        """What shares a curve over the scale."""
        return self.rule, self.interval

    def __str__(self) -> str:
        parts = [self.rule]
        if self.interval:
            parts.append(f"t{self.interval.replace(',', 'to')}")
        return "-".join([*parts, f"{self.scale:g}"] if self.scale else parts)


@dataclass
class Search:
    """The state of a search; `run` does it.

    :param budget: images in all; smallest: images of an arm in the first round, at least.
    :param keep: 1 / keep of the arms go on.
    :param moves: how many arms beyond an edge may join a group.
    :param values: by arm and number of images, the metric.
    """

    arms: Sequence[Arm]
    budget: int
    smallest: int = 100
    keep: int = 3
    moves: int = 4
    values: dict[tuple[Arm, int], float] = field(default_factory=dict)
    images: int = 0

    @property
    def _sizes(self) -> list[int]:
        """How many arms each round has, without those that join."""
        sizes = [len(self.arms)]
        while sizes[-1] > self.keep:
            sizes.append(self._kept(sizes[-1]))
        return sizes

    @property
    def needed(self) -> int:
        """The smallest budget with which every round has `smallest` new images an arm."""
        return sum(self._sizes) * self.smallest

    def run(self, evaluate: Callable[[list[Arm], int], Values]) -> list[Arm]:
        """Return the arms of the last round, best first.

        :param evaluate: (arms, number of images) -> the metric of each, lower is better; images of earlier calls count.
        :raises ValueError: a budget that is too small for the first round.
        """
        if self.budget < self.needed:
            raise ValueError(f"budget: found {self.budget} images, expected at least {self.needed}")
        alive, rounds = list(self.arms), len(self._sizes)
        count, moved = 0, dict.fromkeys({arm.group for arm in alive}, 0)
        for number in range(rounds):
            count += self._share(len(alive), rounds - number)
            self._measure(alive, count, evaluate)
            while beyond := self._beyond(alive, count, moved):
                later = self._later(len(alive) + len(beyond), rounds - 1 - number)
                if self.images + len(beyond) * count + later * self.smallest > self.budget:
                    break
                self._measure(beyond, count, evaluate)
                alive += beyond
            alive.sort(key=lambda arm: self.values[arm, count])
            if number < rounds - 1:
                alive = alive[: self._kept(len(alive))]
        self.count = count
        return alive

    def edges(self) -> list[Arm]:
        """Return the arms that are the best of their group, in the round where that was last measured, at an edge."""
        found = []
        for group in {arm.group for arm, _ in self.values}:
            own = [(count, arm) for arm, count in self.values if arm.group == group]
            last = max(count for count, _ in own)
            best = min((arm for count, arm in own if count == last), key=lambda arm: self.values[arm, last])
            scales = {arm.scale for _, arm in own}
            if len(scales) > 1 and best.scale in (min(scales), max(scales)):
                found.append(best)
        return sorted(found)

    def _kept(self, arms: int) -> int:
        """Return how many of a round's arms go on."""
        return max(2, math.ceil(arms / self.keep))

    def _later(self, arms: int, rounds: int) -> int:
        """Return how many arms the rounds after one with so many have in all."""
        found = 0
        for _ in range(rounds):
            arms = self._kept(arms)
            found += arms
        return found

    def _share(self, arms: int, rounds: int) -> int:
        """Return how many new images each arm gets in a round, of what is left for the rounds to come."""
        left = self.budget - self.images
        # Not all: the first round may have to move beyond an edge.
        return max(self.smallest, math.floor(left / rounds / arms * (0.7 if rounds > 1 else 1)))

    def _measure(self, arms: list[Arm], count: int, evaluate: Callable[[list[Arm], int], Values]) -> None:
        for arm, value in zip(arms, evaluate(arms, count), strict=True):
            before = max((n for known, n in self.values if known == arm), default=0)
            self.images += count - before
            self.values[arm, count] = value if math.isfinite(value) else math.inf

    def _beyond(self, alive: Iterable[Arm], count: int, moved: dict[tuple[str, str], int]) -> list[Arm]:
        """Return the next arms of the groups whose best is at an edge of all scales tried."""
        found = []
        for group in sorted({arm.group for arm in alive}):
            own = [arm for arm in alive if arm.group == group and (arm, count) in self.values]
            scales = {arm.scale for arm, _ in self.values if arm.group == group}
            best = min(own, key=lambda arm: self.values[arm, count])
            if moved[group] < self.moves and best.scale in (min(scales), max(scales)):
                moved[group] += 1
                factor = 2.0 if best.scale == max(scales) else 0.5
                found.append(replace(best, scale=best.scale * factor))
        return found


def grid(rules: Sequence[str], intervals: Sequence[str], centre: dict[str, float], steps: int = 5) -> list[Arm]:
    """Return arms at `steps` scales a factor of two apart, from half of each rule's centre on (FID wants more)."""
    return [
        Arm(rule, interval, centre.get(rule, 1.0) * 2.0 ** (number - 1))
        for rule in rules
        for interval in intervals
        for number in range(steps)
    ]

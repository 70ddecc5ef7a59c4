"""Successive halving on functions whose minimum is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.tune.search import Arm, Search, grid

CENTRES = {"constant": 1.0, "entropy": 0.5}
BEST = {"constant": (3.0, 1.0), "entropy": (30.0, 0.8)}  # scale and value of each rule's minimum


def value(arm: Arm, count: int, noise: float = 0.0) -> float:
    """A parabola in log scale, worse with an interval, with a bias and a noise that fall with the images."""
    scale, least = BEST[arm.rule]
    own = np.random.default_rng([hash(str(arm)) % 2**32, count]).normal()
    bowl = least + 0.05 * math.log2(arm.scale / scale) ** 2 + (0.1 if arm.interval else 0.0)
    return bowl + 30 / count + noise * own / math.sqrt(count)


def search(budget: int, intervals=("",), **options):
    made = {}

    def evaluate(arms, count):
        assert len(set(arms)) == len(arms)
        for arm in arms:
            made[arm] = max(count, made.get(arm, 0))
        return [value(arm, count) for arm in arms]

    found = Search(grid(("constant", "entropy"), intervals, CENTRES), budget, **options)
    return found, found.run(evaluate), made


def test_the_grid():
    arms = grid(("constant",), ("", "0,700"), {"constant": 4.0})
    assert [arm.scale for arm in arms[:5]] == [2.0, 4.0, 8.0, 16.0, 32.0]
    assert {arm.interval for arm in arms} == {"", "0,700"} and len(arms) == 10
    assert str(arms[5]) == "constant-t0to700-2" and str(arms[0]) == "constant-2"


@pytest.mark.parametrize("intervals", [("",), ("", "0,700")])
def test_it_moves_beyond_the_edge_to_the_best(intervals):
    """The grid ends at 4 for the rule whose best is near 32."""
    found, ranked, made = search(20_000, intervals)
    assert ranked[0] == Arm("entropy", "", 32.0)
    assert found.edges() == [] or all(arm.interval for arm in found.edges())
    assert sum(made.values()) == found.images <= 20_000
    assert found.images > 0.6 * 20_000  # it spends what it has
    assert len(made) < 30


def test_few_images_are_enough_for_the_bad_ones():
    _, ranked, made = search(20_000)
    most = max(made.values())
    assert made[ranked[0]] == most and sum(count == most for count in made.values()) <= 4
    assert min(made.values()) < most / 3


def test_an_edge_that_is_not_left_is_told():
    found, ranked, _ = search(20_000, moves=1)
    assert ranked[0] == Arm("entropy", "", 8.0) and found.edges() == [Arm("entropy", "", 8.0)]


def test_budgets():
    arms = grid(("constant", "entropy"), ("",), CENTRES)
    least = Search(arms, 0).needed
    assert least == (10 + 4 + 2) * 100
    found, ranked, _ = search(least)
    assert found.images <= least and ranked
    for budget in range(least, 4 * least, 137):  # also where settings join
        assert search(budget)[0].images <= budget
    with pytest.raises(ValueError, match=f"found {least - 1} images, expected at least {least}"):
        search(least - 1)


def test_a_value_that_is_no_number_loses():
    def evaluate(arms, count):
        return [math.nan if arm.scale > 4 else value(arm, count) for arm in arms]

    ranked = Search(grid(("constant",), ("",), CENTRES), 5000).run(evaluate)
    assert ranked[0].scale in (2.0, 4.0)

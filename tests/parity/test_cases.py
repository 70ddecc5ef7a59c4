"""The cases of tests/parity, one test each; `python -m tests.parity` prints the same as a table."""

import pytest

from tests.parity.__main__ import TOPICS
from tests.parity.compare import check

SLOW = ("Sampling", "Training")
CASES = [
    pytest.param(case, id=f"{topic}: {case}", marks=[pytest.mark.slow] * (topic in SLOW))
    for topic, cases in TOPICS.items()
    for case in cases
]


@pytest.mark.parametrize("case", CASES)
def test_parity(case):
    check(case)

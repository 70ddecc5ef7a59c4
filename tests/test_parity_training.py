"""The training cases of tests/parity, one test each; `python -m tests.parity` prints the same as a table."""

import pytest

from tests.parity.cases_training import CASES
from tests.parity.compare import check


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_training(case):
    check(case)

"""The sampling cases of tests/parity, one test each; `python -m tests.parity` prints the same as a table."""

import pytest

from tests.parity.cases_sampling import CASES
from tests.parity.compare import check


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sampling(case):
    check(case)

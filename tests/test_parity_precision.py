"""The precision cases of tests/parity, one test each; `python -m tests.parity` prints the same as a table."""

import pytest

from tests.parity.cases_precision import CASES
from tests.parity.compare import check


@pytest.mark.parametrize("case", CASES, ids=str)
def test_precision(case):
    check(case)

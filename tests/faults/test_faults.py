"""A few of the faults of `python -m tests.faults`, which does hundreds."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support.helpers import ROOT, clean_environment


@pytest.mark.slow
def test_nothing_is_lost():
    command = [sys.executable, "-m", "tests.faults", "--kills", "8", "--others", "1", "--patience", "4"]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    found = re.search(r"(\d+) faults in \d+ runs, results lost: 0,", done.stdout)
    assert found and int(found[1]) >= 14, done.stdout

"""Freed memory stays with the process, unless its user says otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from guided_diffusion.system.malloc import keep_freed_memory

def faulted_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt * resource.getpagesize()

keep_freed_memory()
b"x" * (64 << 20)
before = faulted_bytes()
for _ in range(4):
    b"x" * (64 << 20)
print(faulted_bytes() - before >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is the one with these settings")
@pytest.mark.parametrize(("settings", "kept"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "65536"}, False)])
def test_large_buffers_are_used_again(settings, kept):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | settings
    command = [sys.executable, "-c", PROGRAM]
    mib = int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert mib < 64 if kept else mib >= 4 * 64

"""On a CUDA GPU: networks, guidance, sampling, training and evaluation against the CPU, where possible in float64.

The checks are those of `python -m benchmarks.gpu`, which runs them without pytest. ED_DPM_TEST_DEVICE=cpu runs them
without a GPU, which shows that they are right themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.gpu import checks, compiled_checks, evaluation_checks, program_checks
from benchmarks.gpu.checks import DEVICE
from benchmarks.upstream import require_upstream
from tests.support.helpers import read_csv

pytestmark = [
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.usefixtures("fork_server"),  # from the first test on: by the time it is needed it has started
]


@pytest.fixture(autouse=True)
def without_tf32() -> Iterator[None]:
    """Float32 means float32 in convolutions too (of matrix products that is the default)."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


CHECKS = checks.CHECKS | evaluation_checks.CHECKS


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_the_device_computes_what_the_cpu_does(check):
    check()


@pytest.mark.parametrize("check", checks.UPSTREAM_CHECKS.values(), ids=checks.UPSTREAM_CHECKS)
def test_networks_are_upstreams(check):
    require_upstream()
    check()


@pytest.mark.parametrize("check", program_checks.CHECKS.values(), ids=program_checks.CHECKS)
def test_programs_do_what_they_do_elsewhere(check, tmp_path):
    check(tmp_path)


@pytest.mark.parametrize("launcher", ["fork2", "mpiexec"])
def test_two_processes_sample_on_one_gpu(run, launcher, tmp_path):
    """NCCL refuses two ranks on a GPU; Gloo takes its place."""
    torch.backends.cudnn.allow_tf32 = True  # as it is there
    flags = program_checks.guided(tmp_path)
    run("classifier_sample", flags | {"log_dir": tmp_path / "two"}, launcher=launcher, timeout=60)
    alone = program_checks.call("classifier_sample", tmp_path / "alone", **flags)
    program_checks.assert_same_images(tmp_path / "two", alone)


def test_two_processes_train_on_one_gpu(run, images, tmp_path):
    flags = program_checks.JOBS["classifier_train"] | {"data_dir": images, "iterations": 3, "log_dir": "run"}
    run("classifier_train", flags, launcher="fork2", timeout=60)
    losses = [float(row["train_loss"]) for row in read_csv(tmp_path / "run" / "progress.csv")]
    assert len(losses) == 3


@pytest.mark.slow
@pytest.mark.parametrize("check", compiled_checks.CHECKS.values(), ids=compiled_checks.CHECKS)
def test_compiled_networks_compute_what_they_did(check):
    check()

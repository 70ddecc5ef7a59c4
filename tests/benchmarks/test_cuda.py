"""On a CUDA GPU: networks, guidance, sampling, training and evaluation against the CPU, where possible in float64.

The checks are those of `python -m benchmarks.gpu`, which runs them without pytest. ED_DPM_TEST_DEVICE=cpu runs them
without a GPU, which shows that they are right themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.gpu import checks, compiled_checks, evaluation_checks, program_checks
from benchmarks.gpu.checks import DEVICE, RULES, TOLERANCE
from benchmarks.upstream import require_peer
from guided_diffusion.diffusion import samplers
from guided_diffusion.diffusion.solvers import SAMPLERS
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


both_networks = pytest.mark.parametrize(("make", "labels"), checks.NETWORKS.values(), ids=checks.NETWORKS)


@both_networks
@pytest.mark.parametrize("dtype", ["plain", *TOLERANCE])
def test_networks_compute_what_float64_does(make, labels, dtype):
    checks.networks_compute_what_float64_does(make, labels, dtype)


def test_normalisation_keeps_the_layout():
    checks.normalisation_keeps_the_layout()


@pytest.mark.parametrize("name", checks.UPSTREAMS)
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_networks_are_the_peers(name, half):
    checks.networks_are_upstreams(require_peer().unet, name, half)


by_name = {"ids": lambda rule: type(rule).__name__}


@pytest.mark.parametrize("rule", RULES, **by_name)
def test_guidance_is_float64s(rule):
    checks.guidance_is_float64s(rule)


@pytest.mark.parametrize("rule", RULES[:2], **by_name)
def test_guidance_of_an_almost_certain_float16_classifier(rule):
    checks.guidance_of_an_almost_certain_classifier(rule)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guided_samples_are_the_cpus(sampler):
    checks.guided_samples_are_the_cpus(sampler)


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    checks.noise_does_not_depend_on_the_batch()


@pytest.mark.skipif(DEVICE.type != "cuda", reason="asks CUDA; elsewhere: sampling/test_host_waits.py")
@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("step", [samplers.ddpm_step, samplers.ddim_step])
def test_the_host_does_not_wait_in_a_guided_step(step, dtype):
    checks.host_does_not_wait(step, dtype)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_images_do_not_depend_on_the_batch_size(tmp_path, sampler):
    program_checks.images_do_not_depend_on_the_batch_size(tmp_path, sampler)


@pytest.mark.parametrize("launcher", ["fork2", "mpiexec"])
def test_two_processes_sample_on_one_gpu(run, launcher, tmp_path):
    """NCCL refuses two ranks on a GPU; Gloo takes its place."""
    torch.backends.cudnn.allow_tf32 = True  # as it is there
    flags = program_checks.guided(tmp_path)
    run("classifier_sample", flags | {"log_dir": tmp_path / "two"}, launcher=launcher, timeout=60)
    alone = program_checks.call("classifier_sample", tmp_path / "alone", **flags)
    program_checks.assert_same_images(tmp_path / "two", alone)


def test_the_other_sampling_programs_run(tmp_path):
    program_checks.other_sampling_programs_run(tmp_path)


@both_networks
def test_losses_and_their_gradients_are_the_cpus(make, labels):
    checks.losses_are_the_cpus(make, labels)


@pytest.mark.parametrize("script", program_checks.JOBS)
def test_an_interrupted_training_equals_an_undisturbed_one(tmp_path, script):
    program_checks.interrupted_training_equals_an_undisturbed_one(tmp_path, script)


@pytest.mark.parametrize("name", ["fp16", "bf16"])
@pytest.mark.parametrize("script", program_checks.JOBS)
def test_training_in_half_precision(tmp_path, script, name):
    program_checks.half_precision_trains(tmp_path, script, name)


def test_two_processes_train_on_one_gpu(run, images, tmp_path):
    flags = program_checks.JOBS["classifier_train"] | {"data_dir": images, "iterations": 3, "log_dir": "run"}
    run("classifier_train", flags, launcher="fork2", timeout=60)
    losses = [float(row["train_loss"]) for row in read_csv(tmp_path / "run" / "progress.csv")]
    assert len(losses) == 3


@pytest.mark.parametrize("pool", evaluation_checks.POOLS)
def test_features_of_a_classifier_are_the_cpus(tmp_path, pool):
    evaluation_checks.classifier_features_are_the_cpus(tmp_path, pool)


@pytest.mark.parametrize("prepare", evaluation_checks.PREPARATIONS)
def test_a_graph_of_inceptions_operations_is_the_cpus(prepare):
    evaluation_checks.inceptions_operations_are_the_cpus(prepare)


@pytest.mark.slow
def test_compiled_networks_compute_the_same():
    compiled_checks.compiled_networks_compute_the_same()


@pytest.mark.slow
@pytest.mark.parametrize("layer", compiled_checks.LAYERS)
def test_compiled_layers_have_the_same_gradients(layer):
    compiled_checks.compiled_layers_have_the_same_gradients(layer)


@pytest.mark.slow
def test_compiled_training_has_the_same_gradients():
    compiled_checks.compiled_training_has_the_same_gradients()

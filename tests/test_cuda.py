"""On a CUDA GPU: networks, guidance, sampling, training and evaluation against the CPU, where possible in float64.

ED_DPM_TEST_DEVICE=cpu runs these tests without a GPU, which shows that they are right themselves.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from benchmarks.gpu import checks
from benchmarks.gpu.checks import CPU, DEVICE, RULES, TOLERANCE, error, evaluate
from evaluations.classifier_features import ClassifierEngine
from evaluations.graphdef import Node
from evaluations.torch_fold import fold_batch_norms
from evaluations.torch_graph import TorchGraph
from guided_diffusion import logger, run_log, samplers, unet
from guided_diffusion.frozen import Frozen
from guided_diffusion.solvers import SAMPLERS
from tests.helpers import (
    CLASSIFIER,
    DIFFUSION,
    MODEL,
    as_arguments,
    clean_environment,
    read_csv,
    read_npz,
)
from tests.parity.cases_models import ENCODER_FLAGS, TINY, UNET_FLAGS, random_inputs, twins
from tests.parity.peer import require_peer
from tests.test_evaluations_classifier import write_classifier
from tests.test_evaluations_recipes import make_images

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


@pytest.mark.skipif(DEVICE.type != "cuda", reason="asks CUDA; elsewhere see tests/test_host_waits.py")
@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("step", [samplers.ddpm_step, samplers.ddim_step])
def test_the_host_does_not_wait_in_a_guided_step(step, dtype):
    checks.host_does_not_wait(step, dtype)


@pytest.fixture
def call(monkeypatch, tmp_path) -> Callable[..., Path]:
    """Runs a script in this process, where CUDA is up already, and returns the folder of its files."""
    monkeypatch.setattr(run_log, "keep_warnings", lambda: None)  # they are pytest's to keep

    def run_here(script: str, log_dir: str, **flags) -> Path:
        monkeypatch.setattr(sys, "argv", [script, *as_arguments(flags | {"log_dir": tmp_path / log_dir})])
        environment = mock.patch.dict(os.environ, clean_environment(), clear=True)
        with environment, logger.scoped_configure(dir=tmp_path / "none", format_strs=[]):
            try:
                importlib.import_module(f"scripts.{script}").main()
            finally:
                if dist.is_initialized():
                    dist.destroy_process_group()
        return tmp_path / log_dir

    return run_here


@pytest.fixture
def guided(checkpoints) -> dict:
    """Flags of classifier_sample."""
    return {
        "model_path": checkpoints["conditional"], "classifier_path": checkpoints["classifier"], "eds": None,
        "num_samples": 7, "batch_size": 3, "timestep_respacing": "4", "classifier_scale": 2.0,
    }  # fmt: skip


def assert_same_images(found: Path, expected: Path) -> None:
    """The same labels, and the same images but for rounding."""
    one, other = (read_npz(folder / "samples_7x8x8x3.npz") for folder in (found, expected))
    assert np.array_equal(one["arr_1"], other["arr_1"])
    difference = np.abs(one["arr_0"].astype(int) - other["arr_0"])
    assert difference.max() <= 1 and (difference > 0).mean() < 0.02
    assert len(set(map(bytes, one["arr_0"]))) == 7


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_images_do_not_depend_on_the_batch_size(call, guided, sampler):
    three, five = (
        call("classifier_sample", str(size), **guided | {"sampler": sampler, "batch_size": size}) for size in (3, 5)
    )
    assert_same_images(five, three)


@pytest.mark.parametrize("launcher", ["fork2", "mpiexec"])
def test_two_processes_sample_on_one_gpu(run, call, guided, launcher, tmp_path):
    """NCCL refuses two ranks on a GPU; Gloo takes its place."""
    torch.backends.cudnn.allow_tf32 = True  # as it is there
    run("classifier_sample", guided | {"log_dir": "two"}, launcher=launcher, timeout=60)
    assert_same_images(tmp_path / "two", call("classifier_sample", "alone", **guided))


def test_the_other_sampling_programs_run(call, images, checkpoints, tmp_path):
    """What they read, draw and write is on the right side."""
    draw = {"num_samples": 3, "batch_size": 2, "timestep_respacing": "3"}
    np.savez(tmp_path / "base.npz", np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8))
    made = [
        call("image_sample", "images", model_path=checkpoints["conditional"], **draw),
        call("super_res_sample", "large", model_path=checkpoints["super_res"],
             base_samples=tmp_path / "base.npz", **draw),
    ]  # fmt: skip
    for folder in made:
        assert len(set(map(bytes, read_npz(folder / "samples_3x8x8x3.npz")["arr_0"]))) == 3
    nll = {"model_path": checkpoints["model"], "data_dir": images, "num_samples": 4, "batch_size": 4}
    bits = read_npz(call("image_nll", "nll", **nll) / "vb_terms.npz")["arr_0"]
    assert bits.shape == (20,) and np.isfinite(bits).all()


@both_networks
def test_losses_and_their_gradients_are_the_cpus(make, labels):
    checks.losses_are_the_cpus(make, labels)


COMMON = DIFFUSION | {"batch_size": 4, "log_interval": 1, "save_interval": 2, "lr": 1e-3}
JOBS = {
    "classifier_train": COMMON | CLASSIFIER | {"ect": None},
    "image_train": COMMON | MODEL | {"class_cond": None, "learn_sigma": None, "dropout": 0.1, "ema_rate": "0.5,0.9"},
}


@pytest.mark.parametrize("script", JOBS)
def test_an_interrupted_training_equals_an_undisturbed_one(call, images, script):
    flags = JOBS[script] | {"data_dir": images}
    # Adam turns the rounding of gradients that vanish into full steps, so it has to be the same every time.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole = call(script, "whole", **flags, iterations=4)
        call(script, "cut", **flags, iterations=2)
        cut = call(script, "cut", **flags, iterations=4)
    finally:
        torch.use_deterministic_algorithms(False)
    assert [float(row["step"]) for row in read_csv(cut / "progress.csv")] == [0, 1, 2, 3]
    names = sorted(path.name for path in whole.glob("*.pt"))
    assert len(names) >= 2
    for name in names:
        one, other = (torch.load(folder / name, map_location=CPU, weights_only=True) for folder in (cut, whole))
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7, msg=lambda text, name=name: f"{name} {text}")
    state = torch.load(max(cut.glob("opt*.pt")), weights_only=True)["state"]
    on_host = {values["step"].device.type for values in state.values()} == {"cpu"}
    assert on_host, "on the device Adam's counts of steps are read back, one by one, at every step"


@pytest.mark.parametrize("name", ["fp16", "bf16"])
@pytest.mark.parametrize("script", JOBS)
def test_training_in_half_precision(call, images, script, name):
    """The loss is finite, the weights move, and float16's loss scale grows."""
    half, loss = {"classifier_use_fp16": None}, "train_loss"
    if script == "image_train":
        half, loss = {"use_fp16": None, "fp16_scale_growth": 0.4}, "loss"
    folder = call(script, "half", **JOBS[script] | half, data_dir=images, iterations=6, amp_dtype=name)
    rows = read_csv(folder / "progress.csv")
    assert len(rows) == 6 and all(np.isfinite(float(row[loss])) for row in rows)
    if name == "fp16":
        scales = [float(row["lg_loss_scale"]) for row in rows]
        assert min(scales) > 4 and (script == "classifier_train" or len(set(scales)) > 1)
    checkpoints = sorted(folder.glob("model*.pt"))
    before, after = (torch.load(checkpoints[i], map_location=CPU, weights_only=True) for i in (0, -1))
    assert all(values.dtype is torch.float32 and values.isfinite().all() for values in after.values())
    assert sum(not torch.equal(before[key], after[key]) for key in after) > 0.9 * len(after)


def test_two_processes_train_on_one_gpu(run, images, tmp_path):
    flags = JOBS["classifier_train"] | {"data_dir": images, "iterations": 3, "log_dir": "run"}
    run("classifier_train", flags, launcher="fork2", timeout=60)
    losses = [float(row["train_loss"]) for row in read_csv(tmp_path / "run" / "progress.csv")]
    assert len(losses) == 3 and np.isfinite(losses).all()


@pytest.mark.parametrize("pool", ["attention", "spatial_v2"])
def test_features_of_a_classifier_are_the_cpus(tmp_path, pool):
    engine = ClassifierEngine(write_classifier(tmp_path, classifier_pool=pool))
    torch.backends.cudnn.allow_tf32 = True  # the engine does without by itself
    images = make_images(0, 5, 16)
    found = vars(engine.compute_activations([images[:3], images[3:]]))
    assert engine.device.type == DEVICE.type
    engine.device = CPU
    engine._model.cpu()
    for name, expected in vars(engine.compute_activations([images])).items():
        assert error(torch.tensor(found[name]), torch.tensor(expected)) < 1e-4, name


@pytest.mark.parametrize("prepare", [dict, fold_batch_norms])
def test_a_graph_of_inceptions_operations_is_the_cpus(prepare):
    random = np.random.default_rng(0)
    statistics = {name: random.uniform(0.5, 2, 8) for name in ("mean", "variance", "beta", "gamma")}
    constants = statistics | {"filter": random.normal(size=(3, 3, 3, 8)) / 5}
    nodes = [Node(name, "Const", (), {"value": value.astype(np.float32)}) for name, value in constants.items()]
    window, by_two = {"padding": b"SAME", "ksize": (1, 3, 2, 1)}, {"strides": (1, 2, 2, 1)}
    norm = {"variance_epsilon": 0.001, "scale_after_normalization": True}
    nodes += [
        Node("x", "Placeholder", (), {}),
        Node("size", "Const", (), {"value": np.array([23, 21])}),
        Node("resized", "ResizeBilinear", ("x", "size"), {}),
        Node("conv", "Conv2D", ("resized", "filter"), window | by_two),
        Node("norm", "BatchNormWithGlobalNormalization", ("conv", *statistics), norm),
        Node("largest", "MaxPool", ("norm",), window | by_two),
        Node("average", "AvgPool", ("largest",), window | {"strides": (1, 1, 1, 1)}),
    ]
    graph, x = prepare({node.name: node for node in nodes}), torch.from_numpy(make_images(1, 3, 32)).float() / 128 - 1
    found, expected = (TorchGraph(graph, ["norm", "average"], ["x"], d).run({"x": x.to(d)}) for d in (DEVICE, CPU))
    for one, other in zip(found, expected, strict=True):
        assert one.device.type == DEVICE.type and error(one, other) < 1e-5


PEERS = {
    "UNetModel": TINY | UNET_FLAGS["as the published 256 model"],
    "EncoderUNetModel": TINY | ENCODER_FLAGS["as the published classifiers"],
}


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_networks_are_the_peers(name, half):
    """In half precision the peer casts weights and ours is autocast: each rounds in its own places."""
    peer, flags = require_peer(), PEERS[name]
    ours, theirs = twins(getattr(unet, name)(**flags), getattr(peer.unet, name)(**flags, use_fp16=half))
    if half:
        theirs.convert_to_fp16()
    x, t = random_inputs(flags)
    labels = {"y": torch.tensor([4, 1])} if "num_classes" in flags else {}
    found = evaluate(Frozen(ours.to(DEVICE), torch.float16 if half else None), x, t, labels)
    expected = evaluate(theirs.eval().to(DEVICE), x, t, labels)
    assert error(found[0], expected[0]) < (2e-2 if half else 1e-5)
    assert error(found[1], expected[1]) < (2e-2 if half else 2e-5)

"""On a CUDA GPU: networks, guidance, sampling, training and evaluation against the CPU, where possible in float64.

ED_DPM_TEST_DEVICE=cpu runs these tests without a GPU, which shows that they are right themselves.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import ed_dpm_patches as patches
from ed_dpm_patches import ClassifierGuidance, ConstantRule, EntropyRule
from ed_dpm_patches.trace import Trace
from evaluations.classifier_features import ClassifierEngine
from evaluations.graphdef import Node
from evaluations.torch_fold import fold_batch_norms
from evaluations.torch_graph import TorchGraph
from guided_diffusion import logger, run_log, samplers, unet
from guided_diffusion.frozen import Frozen
from guided_diffusion.nonfinite import Watch, timesteps_of
from guided_diffusion.sample_noise import PerSampleNoise
from guided_diffusion.script_util import create_classifier, create_gaussian_diffusion, create_model
from guided_diffusion.solvers import SAMPLERS, sampling_loop
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
from tests.test_amp import float64
from tests.test_evaluations_classifier import write_classifier
from tests.test_evaluations_recipes import make_images
from tests.test_guidance import Biased

DEVICE, CPU = torch.device(os.environ.get("ED_DPM_TEST_DEVICE", "cuda")), torch.device("cpu")
pytestmark = [
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.usefixtures("fork_server"),  # from the first test on: by the time it is needed it has started
]

CLASSES = 5
X, NOISE = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
T, Y = torch.tensor([1, 40, 200, 500]), torch.tensor([0, 2, 4, 2])
# Float32 rounds the angles of the timestep embedding, up to 500 rad here, by up to 3e-5; all else by far less.
FLOAT32 = 2e-5
# A few units in the last place (2**-11, 2**-8) over two dozen layers.
TOLERANCE = {None: FLOAT32, torch.float16: 1e-2, torch.bfloat16: 8e-2}


@pytest.fixture(autouse=True)
def without_tf32() -> Iterator[None]:
    """Float32 means float32 in convolutions too (of matrix products that is the default)."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@torch.no_grad()
def perturbed(network: nn.Module) -> nn.Module:
    """Zero-initialised layers would hide everything behind them."""
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return network.eval()


def make_unet() -> nn.Module:
    torch.manual_seed(0)
    return perturbed(create_model(
        8, 64, 1, channel_mult="1,1", learn_sigma=True, class_cond=True, attention_resolutions="4",
        num_head_channels=32, use_scale_shift_norm=True, resblock_updown=True, num_classes=CLASSES,
    ))  # fmt: skip


def make_classifier() -> nn.Module:
    """One whose certainty differs from sample to sample."""
    torch.manual_seed(1)
    network = perturbed(create_classifier(
        8, False, 64, 1, "4", True, True, "attention", num_classes=CLASSES, classifier_num_head_channels=32,
        classifier_channel_mult="1,1",
    ))  # fmt: skip
    network.out[2].c_proj.weight.data.mul_(15)
    return network


both_networks = pytest.mark.parametrize(
    ("make", "labels"), [(make_unet, {"y": Y}), (make_classifier, {})], ids=["unet", "classifier"]
)


def frozen(make: Callable[[], nn.Module], dtype: torch.dtype | None = None, compile: bool = False) -> Frozen:
    return Frozen(make().to(DEVICE), dtype, compile)


def evaluate(network: nn.Module, x: Tensor, t: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Output, and the gradient of its squares for x, where the network is."""
    device = next(network.parameters()).device
    x = x.detach().to(device).requires_grad_(True)
    output = network(x, t.to(device), **{name: values.to(device) for name, values in labels.items()})
    (gradient,) = torch.autograd.grad(output.square().sum(), x)
    return output.detach(), gradient.clone()  # of a CUDA graph it would last until the next replay


def guide(classifier: nn.Module, rule: patches.GuidanceRule, x: Tensor, y: Tensor = Y) -> Tensor:
    device = next(classifier.parameters()).device
    return ClassifierGuidance(classifier, rule)(x.to(device), T.to(device), y=y.to(device))


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value, of the sample where it is worst."""
    found, expected = (values.detach().double().cpu().reshape(len(values), -1) for values in (found, expected))
    assert found.isfinite().all()
    return float(((found - expected).abs().amax(1) / expected.abs().amax(1)).max())


@both_networks
@pytest.mark.parametrize("dtype", ["plain", *TOLERANCE])
def test_networks_compute_what_float64_does(make, labels, dtype):
    with float64(make()) as double:
        expected = evaluate(double, X.double(), T, labels)
    assert expected[0].abs().mean() > 0.05, "an output near zero would hide any error"
    network = make().to(DEVICE) if dtype == "plain" else frozen(make, dtype)
    found = evaluate(network, X, T, labels)
    assert all(values.dtype is torch.float32 for values in found) and found[0].is_contiguous()
    tolerance = TOLERANCE.get(dtype, FLOAT32)
    assert error(found[0], expected[0]) < tolerance
    assert error(found[1], expected[1]) < 2 * tolerance
    assert tolerance == FLOAT32 or error(found[0], expected[0]) > 1e-4, "nothing was computed in low precision"


RULES = [
    ConstantRule(2.0), EntropyRule(2.0), patches.RangeRule(2.0, factor=3.0, until=100),
    patches.TimestepRule(2.0, factor=0.01), patches.GradientNormRule(2.0, factor=50.0, bound=0.9),
]  # fmt: skip
by_name = {"ids": lambda rule: type(rule).__name__}


@pytest.mark.parametrize("rule", RULES, **by_name)
def test_guidance_is_float64s(rule):
    with float64(make_classifier()) as double:
        expected = guide(double, rule, X.double())
    found = guide(frozen(make_classifier), rule, X)
    assert found.dtype is torch.float32 and error(found, expected) < 5 * FLOAT32


@pytest.mark.parametrize("rule", RULES[:2], **by_name)
def test_guidance_of_an_almost_certain_float16_classifier(rule):
    """1 - p_y is about 1e-20: a gradient of log p in float16 would be zero."""
    y, bias = torch.full((4,), 3), torch.zeros(CLASSES)
    bias[3] = -math.log(1e-20)
    with float64(make_classifier()) as double:
        expected = guide(Biased(double, bias.double()), rule, X.double(), y).flatten(1)
    classifier = Biased(frozen(make_classifier, torch.float16), bias.to(DEVICE))
    found = guide(classifier, rule, X, y).double().cpu().flatten(1)
    assert found.isfinite().all()
    lengths = found.norm(dim=1), expected.norm(dim=1)
    assert ((found * expected).sum(1) / lengths[0] / lengths[1]).min() > 0.99
    assert (lengths[0] / lengths[1]).log().abs().max() < 0.1


def sample(model: nn.Module, classifier: nn.Module | None, sampler: str) -> Tensor:
    """Four images from the noise X, with the same noise at every step whatever the device, guided by EDS."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(5)
    diffusion = create_gaussian_diffusion(learn_sigma=True, timestep_respacing="ddim5")
    images = sampling_loop(diffusion, sampler)(
        model,
        tuple(X.shape),
        noise=X.to(device),
        noise_fn=lambda x: torch.randn(x.shape, generator=generator).to(x),
        cond_fn=ClassifierGuidance(classifier, EntropyRule(0.3)) if classifier else None,
        model_kwargs={"y": Y.to(device)},
    )
    return images.cpu()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guided_samples_are_the_cpus(sampler):
    found = sample(frozen(make_unet), frozen(make_classifier), sampler)
    expected = sample(Frozen(make_unet()), Frozen(make_classifier()), sampler)
    assert (found - expected).abs().max() < 1e-3
    assert (found - sample(frozen(make_unet), None, sampler)).abs().max() > 0.05, "the guidance did nothing"


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    def draw(*indices: int) -> tuple[Tensor, Tensor, Tensor]:
        noise = PerSampleNoise(3, indices, DEVICE)
        return noise.choose(1000), noise.normal((3, 8, 8)), noise(torch.zeros(len(indices), 3, 8, 8, device=DEVICE))

    indices = (7, 0, 2**40)
    for together, again, *alone in zip(draw(*indices), draw(*indices), *map(draw, indices), strict=True):
        assert together.device.type == DEVICE.type and together.unique().numel() > 1
        assert torch.equal(together, again) and torch.equal(together, torch.cat(alone))
    assert abs(float(together.mean())) < 0.2 and abs(float(together.std()) - 1) < 0.2


@pytest.mark.skipif(DEVICE.type != "cuda", reason="asks CUDA; elsewhere see tests/test_host_waits.py")
@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("step", [samplers.ddpm_step, samplers.ddim_step])
def test_the_host_does_not_wait_in_a_guided_step(step, dtype):
    """With all that the script has: noise of each sample, a trace, a watch. The first step fills the caches."""
    diffusion = create_gaussian_diffusion(learn_sigma=True, timestep_respacing="ddim5")
    trace, watch = Trace(diffusion, samples=2), Watch(timesteps_of(diffusion))
    guidance = ClassifierGuidance(
        frozen(make_classifier, dtype), EntropyRule(2.0), cap=100.0, observer=trace.observe, see=watch.see
    )
    model = trace.wrap(watch.wrap(frozen(make_unet, dtype)))
    noise, x, labels = PerSampleNoise(0, range(4), DEVICE), X.to(DEVICE), {"y": Y.to(DEVICE)}

    def call(index: int) -> Tensor:
        t = torch.full((4,), index, device=DEVICE)
        with torch.no_grad():
            return step(diffusion, model, x, t, cond_fn=guidance, model_kwargs=labels, noise_fn=noise)["sample"]

    call(4)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = call(3)
        with pytest.raises(RuntimeError, match="synchroniz"):
            found.sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.isfinite().all()


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
    diffusion = create_gaussian_diffusion(learn_sigma=True, rescale_learned_sigmas=True)
    results = []
    for device in (DEVICE, CPU):
        network = make().train().to(device)
        x_start, t, y, noise = (values.to(device) for values in (X.clamp(-1, 1), T, Y, NOISE))
        if labels:
            loss = diffusion.training_losses(network, x_start, t, {"y": y}, noise)["loss"]
        else:
            loss = patches.ect_terms(network(diffusion.q_sample(x_start, t, noise), t), y)["loss"]
        gradients = torch.autograd.grad(loss.mean(), list(network.parameters()))
        results.append((loss, torch.cat([gradient.flatten() for gradient in gradients])[None]))
    (loss, gradient), (expected_loss, expected_gradient) = results
    assert error(loss, expected_loss) < FLOAT32
    assert error(gradient, expected_gradient) < 5 * FLOAT32


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

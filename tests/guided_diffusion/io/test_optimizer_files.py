"""Checkpoints of half-precision training: either side's optimizer file goes on in the other, live with upstream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.upstream import require_upstream
from guided_diffusion.fp16_util import flat_optimizer_state, unflatten_optimizer_state
from guided_diffusion.train_util import TrainLoop
from tests.parity.cases_training import batches
from tests.parity.compare import one_thread
from tests.parity.sides import Ours, process_group, quiet_log
from tests.support.helpers import CLASSIFIER, DIFFUSION

NETWORK = {
    "image_size": 8, "in_channels": 3, "model_channels": 32, "out_channels": 3, "num_res_blocks": 1,
    "attention_resolutions": (2,), "channel_mult": (1, 2), "num_classes": 4, "use_fp16": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def peer():
    with one_thread():
        yield require_upstream()


def make_loop(side, resume: str = "", loop: type | None = None, **options):
    torch.manual_seed(0)
    np.random.seed(0)
    return (loop or side.train_util.TrainLoop)(
        model=side.unet.UNetModel(**NETWORK), diffusion=side.script_util.create_gaussian_diffusion(steps=100),
        data=batches(), batch_size=4, microbatch=-1, lr=1e-3, ema_rate="0.9", log_interval=1, save_interval=1,
        resume_checkpoint=resume, lr_anneal_steps=3, **{"use_fp16": True} | options,
    )  # fmt: skip


def moments(loop) -> dict[str, torch.Tensor]:
    """All values of each of the optimizer's moments, in upstream's order, and the counts of steps."""
    entries = flat_optimizer_state(loop.opt)["state"] if isinstance(loop, TrainLoop) else loop.opt.state_dict()["state"]
    found = {f"{n} {name}": value.detach().reshape(-1) for n, e in entries.items() for name, value in e.items()}
    assert len(found) == 6
    return found


@pytest.fixture(scope="module")
def trained(peer, tmp_path_factory) -> dict[str, Path]:
    """A folder of each side's files after three steps in half precision."""
    folders = {}
    for name, side in (("ours", Ours), ("upstream's", peer)):
        folders[name] = tmp_path_factory.mktemp("trained")
        with process_group(), quiet_log(side, folders[name]):
            make_loop(side).run_loop()
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("writer", ["ours", "upstream's"])
def test_either_side_goes_on_from_the_others_half_precision_files(peer, trained, writer):
    weights = trained[writer] / "model000002.pt"
    state = torch.load(trained[writer] / "opt000002.pt", weights_only=True)
    assert list(state["state"]) == state["param_groups"][0]["params"] == [0, 1]
    assert [entry["exp_avg"].ndim for entry in state["state"].values()] == [1, 2]
    expected = {f"{n} {name}": v.reshape(-1) for n, e in state["state"].items() for name, v in e.items()}
    for side in (Ours, peer):
        with process_group(), quiet_log(side, trained[writer]):
            loop = make_loop(side, str(weights))
            found = moments(loop)
            assert expected.keys() == found.keys()
            assert all(torch.equal(found[name], value) for name, value in expected.items())
            loop.run_step(*next(loop.data))  # and it can be trained on
            if side is Ours:
                assert {float(entry["step"]) for entry in loop.opt.state.values()} == {4}


def test_ours_goes_on_in_the_other_precision_and_from_our_earlier_files(trained, tmp_path):
    """Earlier versions wrote one entry for each parameter, whatever the precision."""
    with process_group(), quiet_log(Ours, tmp_path):
        flat = make_loop(Ours, str(trained["ours"] / "model000002.pt"), use_fp16=False)
        for name in ("model", "ema_0.9_", "opt"):
            source = trained["ours"] / f"{name}000002.pt"
            (tmp_path / source.name).write_bytes(source.read_bytes())
        torch.save(flat.opt.state_dict(), tmp_path / "opt000002.pt")
        single = make_loop(Ours, str(tmp_path / "model000002.pt"))
    assert len(flat.opt.state_dict()["state"]) > 40
    expected, found = moments(flat), moments(single)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_files_keep_requires_grad_as_upstreams(trained, run, tmp_path, images):
    for folder in trained.values():
        for name in ("model000002.pt", "ema_0.9_000002.pt"):
            assert all(value.requires_grad for value in torch.load(folder / name, weights_only=True).values())
    flags = CLASSIFIER | DIFFUSION | {"data_dir": images, "iterations": 1, "log_dir": "out"}
    run("classifier_train", flags | {"classifier_use_fp16": True, "amp_dtype": "bf16"})
    weights = torch.load(tmp_path / "out" / "model000000.pt", weights_only=True)
    assert all(isinstance(value, nn.Parameter) and value.requires_grad for value in weights.values())
    assert len(torch.load(tmp_path / "out" / "opt000000.pt", weights_only=True)["state"]) == 2
    run("classifier_train", flags | {"iterations": 2, "resume_checkpoint": "out/model000000.pt", "log_dir": "more"})
    steps = torch.load(tmp_path / "more" / "opt000001.pt", weights_only=True)["state"].values()
    assert len(steps) > 40


@pytest.mark.parametrize("layers", [nn.Linear(1, 1), nn.Linear(4, 3), nn.Linear(4, 3, bias=False), nn.Linear(1, 3)])
@pytest.mark.parametrize("trained_steps", [0, 2])
def test_flat_and_back(layers, trained_steps):
    """As many parameters as flat entries; also before the first step, and where one never had a gradient."""
    opt = torch.optim.AdamW(layers.parameters())
    for _ in range(trained_steps):
        layers.weight.grad = torch.rand_like(layers.weight)
        opt.step()
    flat = flat_optimizer_state(opt)
    again = unflatten_optimizer_state(opt, flat)
    assert unflatten_optimizer_state(opt, again)["state"].keys() == again["state"].keys()
    opt.load_state_dict(dict(again))
    assert flat_optimizer_state(opt)["state"].keys() == flat["state"].keys()
    for number, entry in flat["state"].items():
        for name, value in entry.items():
            assert torch.equal(flat_optimizer_state(opt)["state"][number][name], value)
    layers.weight.grad = torch.rand_like(layers.weight)
    opt.step()
    assert {float(opt.state[layers.weight]["step"])} == {trained_steps + 1}


class Fork(TrainLoop):
    """A subclass that uses upstream's attributes and methods as forks do."""

    def _load_and_sync_parameters(self):
        super()._load_and_sync_parameters()
        self.calls = [f"resume {self.resume_checkpoint!r} at {self.resume_step}"]

    def _load_optimizer_state(self):
        super()._load_optimizer_state()
        self.calls.append("optimizer")

    def _load_ema_parameters(self, rate):
        self.calls.append(f"average {rate}")
        return super()._load_ema_parameters(rate)

    def run_step(self, batch, cond):
        self.forward_backward(batch, cond)
        if self.mp_trainer.optimize(self.opt):
            self._update_ema()
        self._anneal_lr()
        self.log_step()

    def _update_ema(self):
        self.calls.append("update")
        super()._update_ema()

    def forward_backward(self, batch, cond):
        assert self.sync_cuda == torch.cuda.is_available() and self.use_ddp is False
        self.mp_trainer.zero_grad()
        t, weights = self.schedule_sampler.sample(batch.shape[0], batch.device)
        losses = self.diffusion.training_losses(self.ddp_model, batch, t, model_kwargs=cond)
        self.mp_trainer.backward((losses["loss"] * weights).mean())


def test_subclasses_of_forks(trained, tmp_path):
    source = str(trained["ours"] / "model000002.pt")
    with process_group(), quiet_log(Ours, tmp_path):
        loop = make_loop(Ours, source, Fork)
        loop.run_loop()
    assert loop.calls == [f"resume {source!r} at 2", "optimizer", "average 0.9", "update"]
    assert loop.use_fp16 and loop.mp_trainer.use_fp16 and loop.mp_trainer.lg_loss_scale == 20.0
    state = loop.mp_trainer.master_params_to_state_dict(loop.mp_trainer.master_params)
    again = loop.mp_trainer.state_dict_to_master_params(state)
    assert all(a is b for a, b in zip(again, loop.mp_trainer.model_params, strict=True))

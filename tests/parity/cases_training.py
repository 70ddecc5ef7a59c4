"""Timestep samplers, master parameters, the mixed-precision trainer, TrainLoop and its files."""

from __future__ import annotations

import csv
import tempfile
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from guided_diffusion import fp16_util, logger, resample, script_util, train_util, unet
from tests.parity import cases_diffusion
from tests.parity.cases_models import TINY, twins
from tests.parity.compare import Case, Cases, outcome_of
from tests.parity.peer import load_peer

CASES = Cases()
BITWISE = 0.0

TRAINED = TINY | {
    "num_classes": 4,
    "num_head_channels": 32,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}


class Ours(cases_diffusion.Ours):
    fp16_util = fp16_util
    logger = logger
    resample = resample
    script_util = script_util
    train_util = train_util
    unet = unet


@contextmanager
def process_group():
    """A process group of one, as upstream's training code demands."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def quiet_log(side, folder):
    with side.logger.scoped_configure(dir=str(folder), format_strs=["csv"]):
        yield


@CASES.add("resample: uniform sampler, draws and weights", BITWISE)
def uniform_sampler(peer):
    sides = []
    for side in (Ours, peer):
        sampler = side.resample.create_named_schedule_sampler("uniform", cases_diffusion.make(side))
        np.random.seed(0)
        sides.append([sampler.weights(), *(sampler.sample(n, torch.device("cpu")) for n in (1, 8, 100))])
        sides[-1].append(np.random.rand(3))
    yield "uniform", *sides
    for name in ("", "loss"):
        yield (
            f"refuses {name!r}",
            outcome_of(resample.create_named_schedule_sampler, name, None),
            outcome_of(peer.resample.create_named_schedule_sampler, name, None),
        )


@CASES.add("resample: loss-second-moment, warm-up, history, weights, draws")
def loss_second_moment(peer):
    for options in ({}, {"history_per_term": 3, "uniform_prob": 0.1}):
        sides = []
        for side in (Ours, peer):
            diffusion = cases_diffusion.make(side, steps=6)
            sampler = side.resample.LossSecondMomentResampler(diffusion, **options)
            generator = np.random.default_rng(0)
            np.random.seed(1)
            seen = []
            with process_group():
                for step in range(30):
                    ts = generator.integers(0, 6, 5)
                    losses = generator.random(5)
                    if step % 2:
                        sampler.update_with_all_losses(ts.tolist(), losses.tolist())
                    else:
                        sampler.update_with_local_losses(torch.tensor(ts), torch.tensor(losses).float())
                    seen.append([sampler.weights().copy(), *sampler.sample(4, torch.device("cpu"))])
            sides.append(seen)
        yield f"{options}", *sides


@CASES.add("train_util: resume steps, EMA names", BITWISE)
def small_helpers(peer):
    names = (
        "model000123.pt", "/a/model/model000005.pt", "model12.tar.pt", "/models/ema_0.9999_000010.pt", "",
        "model.pt", "x/model000007", "modelmodel9.pt", "/my_model_dir/opt000003.pt",
    )  # fmt: skip
    for name in names:
        sides = (module.parse_resume_step_from_filename(name) for module in (train_util, peer.train_util))
        yield name, *sides
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "ema_0.99_000012.pt").touch()
        arguments = (
            (f"{folder}/model000012.pt", 12, 0.99),
            (f"{folder}/model000012.pt", 12, 0.9),
            (None, 1, 0.9),
        )
        for given in arguments:
            sides = (module.find_ema_checkpoint(*given) for module in (train_util, peer.train_util))
            yield "find_ema_checkpoint", *(found and str(found) for found in sides)
    yield (
        "find_resume_checkpoint",
        train_util.find_resume_checkpoint(),
        peer.train_util.find_resume_checkpoint(),
    )


@CASES.add("train_util: log_loss_dict, means and quartiles")
def logged_losses(peer):
    sides = []
    for side in (Ours, peer):
        with tempfile.TemporaryDirectory() as folder, quiet_log(side, folder):
            diffusion = cases_diffusion.make(side)
            losses = {"loss": torch.tensor([1.0, 2.0, 4.0, 8.0]), "mse": torch.tensor([0.1, 0.2, 0.3, 0.4])}
            side.train_util.log_loss_dict(diffusion, torch.tensor([0, 11, 39, 38]), losses)
            sides.append({key: float(value) for key, value in side.logger.getkvs().items()})
    yield "log_loss_dict", *sides


class ToyNet(torch.nn.Module):
    """Scalars, vectors and matrices to be trained, with the two methods the trainer calls."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.scale = torch.nn.Parameter(torch.tensor(1.5))
        self.first = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.GroupNorm(2, 4)
        self.second = torch.nn.Conv2d(4, 2, 1, bias=False)
        self.mix = torch.nn.Parameter(torch.randn(2, 2))  # stays in float32

    def forward(self, x):
        h = self.first(x.type(self.first.weight.dtype)).float() * self.scale
        h = self.second(self.norm(h).type(self.second.weight.dtype)).float()
        return torch.einsum("bchw,cd->bdhw", h, self.mix)

    def convert(self, function):
        self.first.apply(function)
        self.second.apply(function)


@CASES.add("fp16_util: groups, master parameters, gradients, state dicts", BITWISE)
def master_parameters(peer):
    sides = []
    for side in (fp16_util, peer.fp16_util):
        model = ToyNet()
        model.convert(side.convert_module_to_f16)
        groups = side.get_param_groups_and_shapes(model.named_parameters())
        masters = side.make_master_params(groups)
        x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
        model(x).square().mean().backward()
        model.norm.bias.grad = None
        side.model_grads_to_master_grads(groups, masters)
        found = {
            "groups": [[name for name, _ in group] + [shape] for group, shape in groups],
            "masters": [m.detach().clone() for m in masters],
            "are parameters": [(type(m).__name__, m.requires_grad) for m in masters],
            "gradients": [m.grad.clone() for m in masters],
            "missing gradient": side.param_grad_or_zeros(model.norm.bias),
            "overflow": [
                bool(side.check_overflow(v)) for v in (1.0, float("inf"), float("-inf"), float("nan"))
            ],
        }
        with torch.no_grad():
            for master in masters:
                master.mul_(1.0009765625)
        found["unflattened"] = [
            list(side.unflatten_master_params(g, m.view(-1)))
            for (g, _), m in zip(groups, masters, strict=True)
        ]
        side.master_params_to_model_params(groups, masters)
        found["model"] = {name: p.detach().clone() for name, p in model.named_parameters()}
        for fp16, given in ((True, masters), (False, list(model.parameters()))):
            state = side.master_params_to_state_dict(model, groups, given, fp16)
            found[f"state dict, fp16 {fp16}"] = dict(state)
            back = side.state_dict_to_master_params(model, state, fp16)
            found[f"and back, fp16 {fp16}"] = list(back)
        side.zero_master_grads(masters)
        side.zero_grad(model.parameters())
        found["zeroed"] = [m.grad is None for m in masters] + [
            p.grad for p in model.parameters() if p.grad is not None
        ]
        sides.append(found)
    yield "fp16_util", *sides


def compare_trainer(peer, fp16: bool):
    """Five steps of a real model; in half precision the first two overflow on purpose.

    The half-precision run takes plain gradient steps and compares the whole change of every weight: Adam
    would turn the round-off of half-precision gradients near zero into steps of full size.
    """
    flags = TRAINED | {"num_classes": None, "use_fp16": fp16}
    models = twins(unet.UNetModel(**flags), peer.unet.UNetModel(**flags))
    sides = []
    for side, model in zip((Ours, peer), models, strict=True):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        trainer = side.fp16_util.MixedPrecisionTrainer(
            model=model, use_fp16=fp16, fp16_scale_growth=0.25, initial_lg_loss_scale=10.0
        )
        optimizer = (
            torch.optim.SGD(trainer.master_params, lr=0.1)
            if fp16
            else torch.optim.AdamW(trainer.master_params, lr=1e-3, weight_decay=0.1)
        )
        generator = torch.Generator().manual_seed(0)
        seen = []
        with tempfile.TemporaryDirectory() as folder, quiet_log(side, folder):
            for step in range(5):
                trainer.zero_grad()
                x = torch.randn(2, 3, 8, 8, generator=generator)
                loss = model(x, torch.tensor([1, 700])).square().mean()
                trainer.backward(loss * (float("inf") if fp16 and step < 2 else 1.0))
                took_step = trainer.optimize(optimizer)
                logged = {key: float(value) for key, value in side.logger.getkvs().items()}
                if fp16 and step < 2:  # nothing but the scale is defined on a skipped step
                    logged = {"lg_loss_scale": logged["lg_loss_scale"]}
                seen.append([bool(took_step), float(trainer.lg_loss_scale), logged])
                side.logger.dumpkvs()
        state = trainer.master_params_to_state_dict(trainer.master_params)
        sides.append(
            {
                "log": seen,
                "change": {name: state[name].detach() - value for name, value in before.items()},
                "saved dtypes": {name: str(value.dtype) for name, value in state.items()},
                "model dtypes": [str(p.dtype) for p in model.parameters()],
                "master shapes": [tuple(p.shape) for p in trainer.master_params],
                "and back": [tuple(p.shape) for p in trainer.state_dict_to_master_params(state)],
            }
        )
    yield "trainer", *sides


CASES.append(Case("MixedPrecisionTrainer in float32, five steps", partial(compare_trainer, fp16=False)))
CASES.append(
    Case("MixedPrecisionTrainer in half precision, five steps", partial(compare_trainer, fp16=True), 5e-3)
)


def batches(seed: int = 0, size: int = 4):
    """An endless seeded supply of (images, labels)."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        labels = torch.randint(0, 4, (size,), generator=generator)
        yield torch.randn(size, 3, 8, 8, generator=generator), {"y": labels}


def train(side, peer, folder, resume: str = "", **options) -> dict:
    """Run one side's TrainLoop into `folder`; the contents of its files and its log."""
    model, _ = twins(side.unet.UNetModel(**TRAINED), peer.unet.UNetModel(**TRAINED))
    diffusion = side.script_util.create_gaussian_diffusion(
        steps=100, learn_sigma=True, timestep_respacing="20"
    )
    settings = {
        "model": model, "diffusion": diffusion, "data": batches(), "batch_size": 4, "microbatch": -1,
        "lr": 1e-3, "ema_rate": "0.9,0.9999", "log_interval": 1, "save_interval": 2,
        "resume_checkpoint": resume, "weight_decay": 0.05, "lr_anneal_steps": 5,
    } | options  # fmt: skip
    name = settings.pop("sampler", None)
    if name:
        settings["schedule_sampler"] = side.resample.create_named_schedule_sampler(name, diffusion)
    torch.manual_seed(0)
    np.random.seed(0)
    with process_group(), quiet_log(side, folder):
        side.train_util.TrainLoop(**settings).run_loop()
    return contents(Path(folder))


def contents(folder: Path) -> dict:
    """Every checkpoint as plain nested values, and the rows of progress.csv as numbers."""
    found = {}
    for path in sorted(folder.glob("*.pt")):
        loaded = torch.load(path, weights_only=True)
        found[path.name] = plain(loaded)
    with (folder / LOG).open(newline="") as file:
        rows = [{key: row[key] for key in sorted(row)} for row in csv.DictReader(file)]
    found[LOG] = [{key: float(value) if value else None for key, value in row.items()} for row in rows]
    return found


def plain(value):
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.detach() if isinstance(value, torch.Tensor) else value


LOG = "progress.csv"
LOOPS = {
    "defaults": {},
    "microbatches of 1": {"microbatch": 1},
    "microbatches of 3 and 1": {"microbatch": 3},
    "a single EMA rate, saving every 3 steps": {"ema_rate": 0.99, "save_interval": 3},
    "loss-second-moment": {"sampler": "loss-second-moment"},
    "last step not on the interval": {"lr_anneal_steps": 4, "save_interval": 10},
}


@lru_cache(maxsize=1)  # the two cases of one setting come one after the other
def trained(name: str) -> tuple[dict, dict]:
    peer = load_peer()
    with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as theirs:
        return train(Ours, peer, ours, **LOOPS[name]), train(peer, peer, theirs, **LOOPS[name])


def compare_checkpoints(_peer, name: str):
    ours, theirs = ({k: v for k, v in found.items() if k != LOG} for found in trained(name))
    yield "files", sorted(ours), sorted(theirs)
    for file in theirs:
        yield file, ours.get(file), theirs[file]


def compare_log(_peer, name: str):
    yield LOG, *(found[LOG] for found in trained(name))


for name in LOOPS:
    CASES.append(Case(f"TrainLoop, {name}: checkpoints", partial(compare_checkpoints, name=name)))
    CASES.append(Case(f"TrainLoop, {name}: progress.csv", partial(compare_log, name=name)))


@CASES.add("TrainLoop: each side resumes from the other's files")
def exchanged_files(peer):
    """Files of either side, resumed by both: the four continuations agree."""
    for writer in (Ours, peer):
        with tempfile.TemporaryDirectory() as first:
            train(writer, peer, first, lr_anneal_steps=3)
            results = []
            for reader in (Ours, peer):
                with tempfile.TemporaryDirectory() as second:
                    results.append(train(reader, peer, second, resume=f"{first}/model000002.pt"))
        yield f"written by {'ours' if writer is Ours else 'the peer'}", *results


@CASES.add("checkpoint files: either side's load_state_dict reads the other's")
def checkpoint_files(peer):
    from guided_diffusion import dist_util

    with tempfile.TemporaryDirectory() as folder:
        train(Ours, peer, Path(folder), lr_anneal_steps=1)
        for name in ("model000000.pt", "ema_0.9_000000.pt", "opt000000.pt"):
            path = f"{folder}/{name}"
            ours = dist_util.load_state_dict(path, map_location="cpu")
            theirs = peer.dist_util.load_state_dict(path, map_location="cpu")
            yield f"ours: {name}", plain(dict(ours)), plain(dict(theirs))
            if not name.startswith("opt"):
                peer.unet.UNetModel(**TRAINED).load_state_dict(theirs, strict=True)
    with tempfile.TemporaryDirectory() as folder:
        train(peer, peer, Path(folder), lr_anneal_steps=1)
        for name in ("model000000.pt", "ema_0.9_000000.pt", "opt000000.pt"):
            path = f"{folder}/{name}"
            ours = dist_util.load_state_dict(path, map_location="cpu")
            theirs = peer.dist_util.load_state_dict(path, map_location="cpu")
            yield f"the peer's: {name}", plain(dict(ours)), plain(dict(theirs))
            if not name.startswith("opt"):
                unet.UNetModel(**TRAINED).load_state_dict(ours, strict=True)

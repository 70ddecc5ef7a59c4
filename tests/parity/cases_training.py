"""Timestep samplers, master parameters, the mixed-precision trainer, TrainLoop and its files."""

from __future__ import annotations

import csv
import tempfile
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.upstream import load_upstream
from guided_diffusion import resample, train_util, unet
from tests.parity import cases_diffusion
from tests.parity.cases_models import TRAINED, twins
from tests.parity.compare import Case, Cases, outcome_of
from tests.parity.sides import Ours, process_group, quiet_log

CASES = Cases()
BITWISE = 0.0


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


def batches(seed: int = 0, size: int = 4):
    """An endless seeded supply of (images, labels)."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        labels = torch.randint(0, 4, (size,), generator=generator)
        yield torch.randn(size, 3, 8, 8, generator=generator), {"y": labels}


def train(side, peer, folder, resume: str = "", **options) -> dict:
    """Run one implementation's TrainLoop in `folder`; return the contents of its files and its log."""
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
    peer = load_upstream()
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
    """Both resume the files of both; the four continuations agree."""
    for writer in (Ours, peer):
        with tempfile.TemporaryDirectory() as first:
            train(writer, peer, first, lr_anneal_steps=3)
            results = []
            for reader in (Ours, peer):
                with tempfile.TemporaryDirectory() as second:
                    results.append(train(reader, peer, second, resume=f"{first}/model000002.pt"))
        yield f"written by {'ours' if writer is Ours else 'upstream'}", *results


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
            yield f"upstream's: {name}", plain(dict(ours)), plain(dict(theirs))
            if not name.startswith("opt"):
                unet.UNetModel(**TRAINED).load_state_dict(ours, strict=True)

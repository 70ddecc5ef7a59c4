"""What a program makes of the weights it is given: of another training, nested, of other flags, of a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.upstream import UpstreamUnavailable, load_upstream
from guided_diffusion.config.configs import ClassifierConfig
from guided_diffusion.errors import InputError
from guided_diffusion.io import checkpoint
from guided_diffusion.runs.best_checkpoint import BestCheckpoint, best_weights, share_of_start
from guided_diffusion.runs.checkpoint_folder import CheckpointFolder
from guided_diffusion.script_util import build_classifier
from guided_diffusion.training.init_weights import init_weights
from tests.support.helpers import CLASSIFIER, DIFFUSION, MODEL, SUPER_RES, Run, make_checkpoint, make_images

TRAIN = {"iterations": 2, "batch_size": 4, "save_interval": 2, **DIFFUSION}
JOBS = {
    "image_train": TRAIN | MODEL | {"class_cond": "True"},
    "super_res_train": TRAIN | SUPER_RES | {"class_cond": "True"},
    "classifier_train": TRAIN | CLASSIFIER,
}
KINDS = {"image_train": "model", "super_res_train": "super_res", "classifier_train": "classifier"}
ROWS = {"image_train": "label_emb.weight", "super_res_train": "label_emb.weight"}  # of a class


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


@pytest.fixture
def three(tmp_path) -> Path:
    return make_images(tmp_path / "images", names=["cat", "dog", "fox"])


@pytest.fixture
def train(run, three):
    def call(script: str, log_dir: str, fails: bool = False, **flags) -> Run:
        return run(script, JOBS[script] | {"data_dir": three, "log_dir": log_dir} | flags, fails=fails)

    return call


def large(folder: Path, script: str, **flags) -> Path:
    """A checkpoint for 1000 classes as upstream leaves it: without config.json; with an optimizer's state."""
    options = {"config_json": False, "num_classes": 1000} | flags
    if KINDS[script] != "classifier":
        options |= {"class_cond": True} | flags
    path = make_checkpoint(folder, KINDS[script], **options)
    if KINDS[script] == "classifier":
        network = build_classifier(ClassifierConfig(**CLASSIFIER, num_classes=1000))
        torch.save(torch.optim.AdamW(network.parameters()).state_dict(), folder / "opt000000.pt")
    return path.rename(folder / "model000000.pt")


@pytest.mark.slow
@pytest.mark.parametrize("script", JOBS)
def test_fine_tuning_of_a_thousand_classes(train, tmp_path, script):
    """Upstream's own command: there a network has 1000 classes whatever the folder has."""
    start = large(tmp_path / "start", script)
    printed = train(script, "out", resume_checkpoint=start).stdout
    assert f"1000 classes as in {start}; {tmp_path / 'images'} has 3" in printed
    out = tmp_path / "out"
    config = json.loads((out / "config.json").read_text())
    assert (config["num_classes"], config["class_names"]) == (1000, ["cat", "dog", "fox"])
    newest = max(out.glob("model*.pt"))
    if script in ROWS:
        found, before = weights(newest)[ROWS[script]], weights(start)[ROWS[script]]
        assert torch.equal(found[3:], before[3:]), "no image has these labels"
        assert (found[:3] != before[:3]).any(dim=1).all()
    start.unlink()
    assert "already complete" in train(script, "out", resume_checkpoint=start).stdout
    assert "already complete" in train(script, "out").stdout, "its own checkpoints know the number, too"


def test_a_checkpoint_of_upstreams_and_back(train, tmp_path):
    """Upstream's network with its 1000 classes, fine-tuned on three, fits upstream's network again."""
    try:
        peer = load_upstream()
    except UpstreamUnavailable as reason:
        pytest.skip(str(reason))
    network = peer.unet.UNetModel(
        image_size=8, in_channels=3, model_channels=32, out_channels=3, num_res_blocks=1, attention_resolutions=(2,),
        channel_mult=(1, 2), num_heads=1, use_scale_shift_norm=True, num_classes=peer.script_util.NUM_CLASSES,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():  # zero-initialised layers too, or no gradient would reach the labels
            parameter.add_(torch.randn_like(parameter) * 0.02)
    (tmp_path / "start").mkdir()
    torch.save(dict(network.named_parameters()), tmp_path / "start" / "model010000.pt")
    train("image_train", "out", resume_checkpoint=tmp_path / "start" / "model010000.pt", iterations=10002)
    before = network.label_emb.weight.detach().clone()
    network.load_state_dict(weights(tmp_path / "out" / "model010002.pt"))
    assert torch.equal(network.label_emb.weight[3:], before[3:])
    assert not torch.equal(network.label_emb.weight[:3], before[:3])


@pytest.mark.slow
def test_names_that_the_checkpoint_knows_keep_their_numbers(train, tmp_path):
    notes = {"class_names": ["ant", "cat", "dog", "fox"], "seen_classes": [0, 1]}
    start = make_checkpoint(tmp_path / "start", "model", class_cond=True, notes=notes)
    train("image_train", "out", resume_checkpoint=start)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["class_names"] == notes["class_names"] and "seen_classes" not in config, "all are seen now"
    found, before = (weights(path)["label_emb.weight"] for path in (tmp_path / "out" / "model000002.pt", start))
    assert torch.equal(found[0], before[0]) and not torch.equal(found[3], before[3]), "there is no ant"

    other = make_checkpoint(tmp_path / "other", "model", class_cond=True, notes={"class_names": ["ant", "bee"]})
    printed = train("image_train", "anew", resume_checkpoint=other).stdout
    assert f"its classes are numbered anew: class 0 is 'cat', but 'ant' in {other}" in printed
    config = json.loads((tmp_path / "anew" / "config.json").read_text())
    assert config["class_names"] == ["cat", "dog", "fox"]


def test_resuming_what_cannot_hold_the_classes(train, tmp_path):
    small = make_checkpoint(tmp_path / "small", "model", class_cond=True, num_classes=2)
    (line,) = train("image_train", "out", True, resume_checkpoint=small).error_lines
    assert f"{small}: made for 2 classes" in line and "has 3; --init_from" in line
    bare = make_checkpoint(tmp_path / "bare", "model")
    (line,) = train("image_train", "out", True, resume_checkpoint=bare).error_lines
    assert "found a network without labels" in line and f"--init_from {bare}" in line
    (line,) = train("image_train", "out", True, resume_checkpoint=bare, init_from=bare).error_lines
    assert "--init_from: found together with --resume_checkpoint" in line


# Where nothing is learned, the weights are those that a run begins with.
STILL = {"lr": 0, "iterations": 1}


def test_more_classes_by_init_from(train, tmp_path):
    start = make_checkpoint(tmp_path / "start", "classifier", num_classes=2, notes={"class_names": ["dog", "ant"]})
    printed = train("classifier_train", "out", init_from=start, **STILL).stdout
    assert "kept 1 = dog" in printed and "newly initialised 0 = cat, 2 = fox" in printed
    found, before = weights(tmp_path / "out" / "model000000.pt"), weights(start)
    for key, values in found.items():
        if key in ("out.2.c_proj.weight", "out.2.c_proj.bias"):
            assert len(values) == 3 and torch.equal(values[1], before[key][0])
        else:
            assert torch.equal(values, before[key]), key
    start.unlink()
    assert "already complete" in train("classifier_train", "out", init_from=start, **STILL).stdout


@pytest.mark.slow
def test_first_classes_and_none_by_init_from(train, tmp_path):
    bare = make_checkpoint(tmp_path / "bare", "model")
    printed = train("image_train", "first", init_from=bare, **STILL).stdout
    assert "rows of label_emb.weight: kept none; newly initialised 0 = cat, 1 = dog, 2 = fox" in printed
    found, before = weights(tmp_path / "first" / "model000000.pt"), weights(bare)
    assert found.pop("label_emb.weight").shape[0] == 3
    assert found.keys() == before.keys() and all(torch.equal(found[key], before[key]) for key in before)
    printed = train("image_train", "none", init_from=tmp_path / "first", class_cond="False", **STILL).stdout
    assert "taking model000000.pt" in printed and "without label_emb.weight" in printed
    assert "label_emb.weight" not in weights(tmp_path / "none" / "model000000.pt")


class TestMismatch:
    """A checkpoint without config.json that the flags do not fit."""

    @pytest.mark.parametrize(
        ("kind", "made", "flags", "says"),
        [
            ("model", {"class_cond": True, "num_classes": 3}, {"class_cond": True}, "made with --num_classes 3"),
            ("model", {"class_cond": True, "num_classes": 3}, {}, "made with --class_cond True --num_classes 3"),
            ("model", {}, {"class_cond": True}, "made with --class_cond False"),
            ("model", {"learn_sigma": True}, {}, "made with --learn_sigma True"),
            ("model", {}, {"learn_sigma": True}, "made with --learn_sigma False"),
            ("model", {"in_channels": 1, "learn_sigma": True}, {}, "made with --in_channels 1 --learn_sigma True"),
            ("model", {"num_channels": 64}, {}, "made with --num_channels 64"),
            ("model", {"num_res_blocks": 2}, {}, "made with --num_res_blocks 2"),
            ("model", {"resblock_updown": True}, {}, "made with --resblock_updown True"),
            ("model", {"use_scale_shift_norm": False}, {}, "made with --use_scale_shift_norm False"),
            ("model", {"attention_resolutions": "4,8", "learn_sigma": True}, {"resblock_updown": True},
             "made with --resblock_updown False --learn_sigma True"),
            ("model", {"attention_resolutions": "4,8"}, {},
             "compare --attention_resolutions, --channel_mult and --image_size with those of its training"),
            ("classifier", {}, {}, ": found a classifier, expected a diffusion model"),
            ("super_res", {}, {}, ": found a super-resolution model, expected a diffusion model"),
        ],
    )
    def test_the_flag_is_named(self, run, tmp_path, kind, made, flags, says):
        path = make_checkpoint(tmp_path / "bare", kind, config_json=False, **made)
        chosen = MODEL | DIFFUSION | {"model_path": path, "num_samples": 2, "timestep_respacing": "2"} | flags
        (line,) = run("image_sample", chosen | {"log_dir": "out"}, fails=True).error_lines
        assert line.endswith(says), line

    @pytest.mark.parametrize("pool", ["adaptive", "attention", "spatial", "spatial_v2"])
    def test_a_classifiers_classes(self, tmp_path, pool):
        path = make_checkpoint(tmp_path, "classifier", classifier_pool=pool, num_classes=7)
        network = build_classifier(ClassifierConfig(**CLASSIFIER, classifier_pool=pool, num_classes=5))
        with pytest.raises(InputError, match="made with --num_classes 7$"):
            checkpoint.load_weights(network, path)


@pytest.mark.parametrize(
    ("wrap", "says"),
    [
        (lambda state: {f"module.{key}": value for key, value in state.items()}, "leaving out 'module.'"),
        (lambda state: {f"module._orig_mod.{key}": v for key, v in state.items()}, "leaving out '_orig_mod.'"),
        (lambda state: {"model": state, "step": 3}, "found model, step; taking the weights under 'model'"),
        (lambda state: {"model": {"a": torch.zeros(1)}, "ema": state}, "taking the weights under 'ema'"),
        (lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}}, "under 'state_dict'; leaving"),
    ],
)
def test_wrapped_weights(tmp_path, caplog, wrap, says):
    state = weights(make_checkpoint(tmp_path, "model"))
    torch.save(wrap(state), tmp_path / "wrapped.pt")
    found = checkpoint.read_state_dict(tmp_path / "wrapped.pt")
    assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)
    assert f"{tmp_path / 'wrapped.pt'}: " in caplog.text and says in caplog.text
    assert checkpoint.read_shapes(tmp_path / "wrapped.pt") == {key: value.shape for key, value in state.items()}


def test_odd_shapes_are_no_traceback(tmp_path):
    both = ("time_embed.0.weight", "input_blocks.0.0.weight")
    for kept in (both, (*both, "label_emb.weight", "output_blocks.0.0.x", "out.2.weight"), (*both, "out.2.bias")):
        torch.save({name: torch.tensor(1.0) for name in kept}, tmp_path / "odd.pt")
        with pytest.raises(InputError, match="does not fit|found a diffusion model"):
            checkpoint.load_weights(build_classifier(ClassifierConfig(**CLASSIFIER)), tmp_path / "odd.pt")
        state = build_classifier(ClassifierConfig(**CLASSIFIER)).state_dict()
        with pytest.raises(InputError, match="does not fit|found a diffusion model"):
            torch.save(state | {"out.2.c_proj.bias": torch.tensor(1.0)}, tmp_path / "odd.pt")
            init_weights(build_classifier(ClassifierConfig(**CLASSIFIER)), str(tmp_path / "odd.pt"), None)


def test_nonsense_in_place_of_class_names_is_one_line(tmp_path):
    path = make_checkpoint(tmp_path, "classifier", notes={"class_names": 5})
    with pytest.raises(InputError, match="class_names that are no list of up to 4 names"):
        init_weights(build_classifier(ClassifierConfig(**CLASSIFIER)), str(path), None)


class TestFolders:
    def test_the_slowest_average_that_has_moved(self, tmp_path):
        for name in ("model", "ema_0.9999_", "ema_0.5_", "ema_0.9_", "opt"):
            (tmp_path / f"{name}000150.pt").touch()
        assert share_of_start("ema_0.9999_000150.pt") == pytest.approx(0.985, abs=1e-3)
        assert share_of_start("model000150.pt") == 0
        assert best_weights(tmp_path) == str(tmp_path / "ema_0.9_000150.pt")
        for path in tmp_path.glob("ema_0.[59]_*"):
            path.unlink()
        assert best_weights(tmp_path) == str(tmp_path / "model000150.pt")
        (tmp_path / "model050000.pt").touch()
        (tmp_path / "ema_0.9999_050000.pt").touch()
        assert best_weights(tmp_path) == str(tmp_path / "ema_0.9999_050000.pt")

    def test_the_best_by_a_value_of_the_log(self, tmp_path):
        folder, best = CheckpointFolder(tmp_path), BestCheckpoint("val_ce_q1", {"val_acc@1": True, "val_ce": False})
        for number, values in enumerate([[3.0], [2.0, 1.0], [0.5, 2.6], []]):  # their mean counts
            for value in values:
                best.see({"val_ce_q1": value})
            best.see({"val_ce": 0.0})  # of all noise levels
            state = {"steps_done": number + 1, "loop": {"best": best.update(number)}}
            folder.save(number, {f"model{number:06d}.pt": {"w": torch.zeros(1)}}, state)
        assert best.update(4) == {"name": "val_ce_q1", "value": 1.5, "number": 1}
        assert best_weights(tmp_path) == str(tmp_path / "model000001.pt")
        resumed = BestCheckpoint("val_ce_q1", {"val_ce": False}, best.update(4))
        resumed.see({"val_ce_q1": 1.6})
        assert resumed.update(5)["number"] == 1
        other = BestCheckpoint("val_acc@1", {"val_acc@1": True}, best.update(4))
        for number, value in enumerate((0.1, 0.3, 0.2)):
            other.see({"val_acc@1": value})
            assert other.update(number)["number"] == min(number, 1)
        (tmp_path / "model000001.pt").unlink()
        assert best_weights(tmp_path) == str(tmp_path / "model000003.pt"), "the newest that is there"

    def test_other_names(self, tmp_path):
        assert best_weights(tmp_path) is None
        (tmp_path / "256x256_diffusion.pt").touch()
        assert best_weights(tmp_path) == str(tmp_path / "256x256_diffusion.pt")
        (tmp_path / "64x64_diffusion.pt").touch()
        with pytest.raises(InputError, match=r"holds 256x256_diffusion.pt, 64x64_diffusion.pt; expected the name of"):
            best_weights(tmp_path)

    @pytest.mark.slow
    def test_from_training_to_samples_by_folder(self, train, run, tmp_path):
        """The end of training names the file; a folder as --model_path takes it; an average that is too young warns."""
        out = tmp_path / "model"
        printed = train("image_train", "model", ema_rate="0.9999,0.1", iterations=3).stdout
        assert f"to sample from: {out}/ema_0.1_000002.pt" in printed
        printed = train("classifier_train", "guide").stdout
        last = f"to guide with (--classifier_path): {tmp_path / 'guide'}/model000001.pt"
        assert printed.splitlines()[-1] == last == train("classifier_train", "guide").stdout.splitlines()[-1]
        printed = train("classifier_train", "judge", noised="False").stdout.splitlines()
        assert printed[-1] == f"to judge with (the evaluator's --features): {tmp_path / 'judge'}/model000001.pt"
        draw = {"num_samples": 2, "batch_size": 2, "timestep_respacing": "2", "log_dir": "samples"}
        flags = draw | {"model_path": out, "classifier_path": tmp_path / "guide"}
        printed = run("classifier_sample", flags).stdout
        assert f"--model_path {out}: taking ema_0.1_000002.pt" in printed
        assert f"--classifier_path {tmp_path / 'guide'}: taking model000001.pt" in printed
        manifest = json.loads((tmp_path / "samples" / "run.json").read_text())
        assert manifest["model_path"] == f"{out}/ema_0.1_000002.pt"

        for name in ("model", "ema_0.9999_", "ema_0.1_"):  # training went on: what was begun keeps its file
            shutil.copy(out / f"{name}000002.pt", out / f"{name}000009.pt")
        for path in out.glob("state*.json"):
            path.unlink()
        printed = run("classifier_sample", flags).stdout
        assert "already complete" in printed and "ema_0.1_000002.pt, as when the run here began" in printed

        young = draw | {"model_path": out / "ema_0.9999_000002.pt", "log_dir": "young"}
        printed = run("image_sample", young).stdout
        assert "at step 2 is still 100.0 % the weights that training began with" in printed
        assert f"better sample from {out}/model000002.pt" in printed

    @pytest.mark.slow
    def test_a_folder_to_resume(self, train, tmp_path):
        train("image_train", "first")
        printed = train("image_train", "second", resume_checkpoint=tmp_path / "first", iterations=4).stdout
        assert "taking model000002.pt" in printed and "resuming from" in printed
        assert (tmp_path / "second" / "model000004.pt").is_file()
        shutil.rmtree(tmp_path / "first")
        (tmp_path / "first").mkdir()
        again = train("image_train", "second", resume_checkpoint=tmp_path / "first", iterations=4)
        assert "already complete" in again.stdout, "its own checkpoints come first"

    def test_the_last_step_once_more(self, train, tmp_path):
        """The number of a classifier's file is that of its last step, which upstream takes again."""
        train("classifier_train", "first")
        start = tmp_path / "first" / "model000001.pt"
        printed = train("classifier_train", "second", resume_checkpoint=start).stdout
        assert f"warning: --resume_checkpoint {start}: the checkpoint is at step 1, of --iterations 2" in printed
        assert f"or --init_from {start} to begin anew with its weights" in printed and "finished: 1 step in" in printed

    def test_an_average_to_resume(self, train, tmp_path):
        train("image_train", "first", ema_rate="0.5,0.9")
        start = tmp_path / "first" / "ema_0.5_000002.pt"
        printed = train("image_train", "second", resume_checkpoint=start).stdout
        assert f"warning: --resume_checkpoint {start}: an average of weights; training begins with" in printed
        assert "model000002.pt beside it resumes at step 2" in printed

    def test_a_damaged_newest_is_passed_over(self, train, tmp_path):
        train("classifier_train", "run", save_interval=1, iterations=3)
        (tmp_path / "run" / "opt000002.pt").write_bytes(b"")
        before = sorted(path.name for path in (tmp_path / "run").iterdir())
        assert best_weights(tmp_path / "run") == str(tmp_path / "run" / "model000001.pt")
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before, "nothing is set aside"

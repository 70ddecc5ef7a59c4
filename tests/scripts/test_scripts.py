"""The seven programs end to end on tiny images: alone, through mpiexec, through torchrun."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.gpu import program_checks
from tests.support.helpers import (
    CLASSIFIER,
    DIFFUSION,
    MODEL,
    ROOT,
    SCRIPTS,
    UNET,
    Run,
    Runner,
    as_arguments,
    make_checkpoint,
    make_images,
    read_csv,
    read_npz,
)

TRAIN = {"batch_size": 4, "log_interval": 1, **DIFFUSION}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "channels"), [("mpiexec", 3), ("torchrun", 3), ("python", 1)]
)  # fmt: skip
def test_classifier_from_training_to_evaluation(run, tmp_path, launcher, channels):
    images = make_images(tmp_path / "images", channels=channels)
    classifier = CLASSIFIER | TRAIN | {"data_dir": images, "in_channels": channels, "save_interval": 2, "ect": None}
    run("classifier_train", classifier | {"iterations": 3, "log_dir": "first"}, launcher=launcher)
    if launcher == "mpiexec":
        resume = {"resume_checkpoint": "first/model000002.pt", "iterations": 4, "log_dir": "second"}
        run("classifier_train", classifier | resume, launcher=launcher)
        assert (tmp_path / "second" / "model000003.pt").is_file()
        rows = read_csv(tmp_path / "second" / "progress.csv")
        assert [float(row["step"]) for row in rows] == [2, 3]
        assert all(np.isfinite(float(row["train_ce"])) for row in rows)
    trained = max(tmp_path.glob("*/model*.pt"))

    model = make_checkpoint(tmp_path / "model", "model", in_channels=channels)
    flags = {
        "eds": None, "model_path": model, "classifier_path": trained, "num_samples": 6, "batch_size": 2,
        "timestep_respacing": "5", "log_dir": "samples",
    }  # fmt: skip
    ended = run("classifier_sample", flags, launcher=launcher)
    samples = tmp_path / "samples" / f"samples_6x8x8x{channels}.npz"
    arrays = read_npz(samples)
    assert arrays["arr_0"].shape == (6, 8, 8, channels) and arrays["arr_0"].dtype == np.uint8
    assert arrays["arr_1"].dtype == np.int64 and set(arrays["arr_1"]) <= set(range(4))
    assert len(set(map(bytes, arrays["arr_0"]))) == 6
    assert ended.stdout.count("guidance scale: median") == 1, "rank 0 alone sums up"
    assert "of 30 evaluations" in ended.stdout, "over all ranks"

    evaluator = ROOT / "evaluations" / "evaluator.py"
    if not evaluator.is_file():
        pytest.skip("evaluations/evaluator.py is not there")
    pixels = [np.asarray(Image.open(path)).reshape(8, 8, channels) for path in sorted(images.glob("*.png"))]
    np.savez(tmp_path / "reference.npz", np.stack(pixels))
    judged = run(evaluator, [str(tmp_path / "reference.npz"), str(samples), "--features", str(trained)])
    values = dict(line.split(": ") for line in judged.stdout.splitlines())
    assert {"Inception Score", "FID", "sFID", "Precision", "Recall"} <= set(values)
    assert all(np.isfinite(float(value)) for value in values.values())


@pytest.mark.slow
def test_diffusion_model_from_training_to_samples(run, tmp_path, images):
    flags = MODEL | TRAIN | {"data_dir": images, "class_cond": None, "learn_sigma": True, "ema_rate": "0.5,0.9"}
    run("image_train", flags | {"iterations": 3, "save_interval": 2, "log_dir": "first"}, launcher="fork2")
    assert {path.name for path in (tmp_path / "first").glob("*.pt")} == {
        f"{name}_{step}.pt" if "ema" in name else f"{name}{step}.pt"
        for name in ("model", "opt", "ema_0.5", "ema_0.9")
        for step in ("000000", "000002")
    }
    draw = {"num_samples": 5, "batch_size": 2, "timestep_respacing": "5", "log_dir": "samples"}
    run("image_sample", {"model_path": "first/ema_0.9_000002.pt", **draw}, launcher="mpiexec")
    arrays = read_npz(tmp_path / "samples" / "samples_5x8x8x3.npz")
    assert list(arrays) == ["arr_0", "arr_1"] and arrays["arr_1"].dtype == np.int64, "class_cond: with labels"


def test_samples_of_an_unconditional_model_have_no_labels(run, tmp_path, checkpoints):
    flags = {"model_path": checkpoints["model"], "num_samples": 3, "use_ddim": None, "timestep_respacing": "ddim5"}
    run("image_sample", flags | {"log_dir": "samples"})
    assert list(read_npz(tmp_path / "samples" / "samples_3x8x8x3.npz")) == ["arr_0"]


@pytest.mark.slow
def test_super_resolution_from_training_to_samples(run, tmp_path, images):
    sizes = {"large_size": 8, "small_size": 4, "learn_sigma": True, "class_cond": None}
    run(
        "super_res_train",
        UNET | TRAIN | sizes | {"data_dir": images, "iterations": 2, "log_dir": "train"},
        launcher="fork2",
    )
    base = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "base.npz", base, np.array([0, 1, 3]))
    flags = {"model_path": "train/model000000.pt", "base_samples": "base.npz", "timestep_respacing": "5"}
    results = []
    for launcher in ("fork", "fork2"):
        run("super_res_sample", flags | {"num_samples": 5, "batch_size": 2, "log_dir": launcher}, launcher=launcher)
        arrays = read_npz(tmp_path / launcher / "samples_5x8x8x3.npz")
        assert list(arrays) == ["arr_0"], "no labels from super resolution"
        results.append(arrays["arr_0"])
    told = run("super_res_sample", flags | {"num_samples": 1, "use_ddim": None, "labels": "folder", "log_dir": "told"})
    assert "--use_ddim: not used, upstream's upsampler ignores it; --sampler ddim samples with DDIM" in told.stdout
    assert "--labels folder: not read, base.npz has its labels in arr_1" in told.stdout
    assert np.array_equal(*results), "sample i comes from image i whatever the number of processes"


@pytest.mark.slow
def test_base_samples_may_be_a_folder(run, tmp_path, images):
    """As the evaluator takes it: the files of convert.py in the order of their numbers, or the names of training."""
    sizes = {"large_size": 8, "small_size": 4, "learn_sigma": True, "class_cond": None}
    run("super_res_train", UNET | TRAIN | sizes | {"data_dir": images, "iterations": 1, "log_dir": "train"})
    base = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    base[0, 0, 0] = 255
    labels = np.array([3, 0, 1])
    np.savez(tmp_path / "base.npz", base, labels)
    (tmp_path / "drawn").mkdir()  # a sampler's run folder stands for its npz file, the grid beside it is none
    np.savez(tmp_path / "drawn" / "samples_3x4x4x3.npz", base, labels)
    Image.fromarray(base[0]).save(tmp_path / "drawn" / "grid.png")
    for number, pixels in enumerate(base):
        for name in (f"numbered/{labels[number]}_{number}.png", f"named/a{number}/c{labels[number]}_x.png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name)
    flags = {"model_path": "train/model000000.pt", "timestep_respacing": "2", "num_samples": 3, "batch_size": 3}
    results = []
    for number, pixels in enumerate(base):
        path = tmp_path / "clear" / f"{labels[number]}_{number}.png"
        path.parent.mkdir(exist_ok=True)
        white = (pixels == 255).all(axis=-1, keepdims=True)
        hidden = [np.where(white, 0, pixels), np.where(white, 0, 255)]  # black behind what is to be seen as white
        Image.fromarray(np.concatenate(hidden, axis=-1).astype(np.uint8)).save(path)
    for name in ("base.npz", "numbered", "named", "drawn", "clear"):
        run("super_res_sample", flags | {"base_samples": name, "log_dir": f"from-{name}", "alpha": "white"})
        results.append(read_npz(tmp_path / f"from-{name}" / "samples_3x8x8x3.npz")["arr_0"])
    assert all(np.array_equal(results[0], other) for other in results[1:])
    Image.fromarray(base[0]).save(tmp_path / "numbered" / "0_1.png")
    again = run("super_res_sample", flags | {"base_samples": "numbered", "log_dir": "from-numbered"}, fails=True)
    assert "--base_images" in again.error_lines[0]


@pytest.mark.slow
def test_nll(run, tmp_path, images, checkpoints):
    flags = {"model_path": checkpoints["model"], "data_dir": images, "num_samples": 8, "random_flip": False}
    run("image_nll", flags | {"batch_size": 4, "log_dir": "alone"})
    run("image_nll", flags | {"batch_size": 2, "log_dir": "two"}, launcher="fork2")
    for name in ("vb", "mse", "xstart_mse"):
        alone, two = (read_npz(tmp_path / run_dir / f"{name}_terms.npz") for run_dir in ("alone", "two"))
        assert list(alone) == ["arr_0"] and alone["arr_0"].shape == (20,)
        assert np.isfinite(alone["arr_0"]).all() and (alone["arr_0"] >= 0).all()
        assert two["arr_0"].shape == (20,)
    told = (tmp_path / "two" / "log.txt").read_text()
    assert re.search(r"done 8 samples: bpd=\d", told)


def test_nll_says_what_a_signal_stops(run, tmp_path, images, checkpoints):
    flags = as_arguments({"model_path": checkpoints["model"], "data_dir": images, "num_samples": 4, "log_dir": "out"})
    program, script = ROOT / "tests" / "support" / "interrupted_program.py", str(SCRIPTS / "image_nll.py")
    stopped = run(program, [script, "bound:2", "SIGTERM", "0", *flags], fails=True)
    assert stopped.statuses == [143] and "Traceback" not in stopped.stderr
    assert "stopped by SIGTERM; nothing is written before all images are evaluated" in stopped.stdout
    assert json.loads((tmp_path / "out" / "status.json").read_text())["state"] == "stopped"


@pytest.fixture(scope="module")
def guided(fork_server, tmp_path_factory, checkpoints):
    """Runs classifier_sample in a folder of its own; returns the folder and the run."""

    def sample(launcher: str = "fork", **changes) -> tuple[Path, Run]:
        folder = tmp_path_factory.mktemp("guided")
        flags = {
            "model_path": checkpoints["conditional"], "classifier_path": checkpoints["classifier"], "eds": None,
            "num_samples": 7, "batch_size": 3, "timestep_respacing": "4", "classifier_scale": 2.0,
            "log_dir": "out",
        } | changes  # fmt: skip
        return folder, Runner(fork_server, folder)("classifier_sample", flags, launcher=launcher)

    return sample


@pytest.fixture(scope="module")
def plain_run(guided):
    return guided(trace="trace.npz", save_images=None)


def arrays_of(folder: Path, count: int = 7) -> dict[str, np.ndarray]:
    return read_npz(folder / "out" / f"samples_{count}x8x8x3.npz")


class TestOutput:
    def test_folder(self, plain_run):
        folder, _ = plain_run
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        names = {"samples_7x8x8x3.npz", "samples_7x8x8x3.png", "run.json", "log.txt", "status.json"}
        names |= {"guidance_scale_7x8x8x3.json"}
        assert found - {"out/progress.csv"} == {"trace.npz"} | {f"out/{name}" for name in names}

    def test_arrays(self, plain_run):
        arrays = arrays_of(plain_run[0])
        assert list(arrays) == ["arr_0", "arr_1"]
        assert arrays["arr_0"].dtype == np.uint8 and arrays["arr_0"].shape == (7, 8, 8, 3)
        assert arrays["arr_1"].dtype == np.int64 and arrays["arr_1"].shape == (7,)

    def test_grid(self, plain_run):
        folder, _ = plain_run
        grid = np.asarray(Image.open(folder / "out" / "samples_7x8x8x3.png"))
        assert grid.shape == (8, 64, 3)
        tiles = grid.reshape(8, 8, 8, 3).swapaxes(0, 1)
        assert np.array_equal(tiles[:7], arrays_of(folder)["arr_0"]) and not tiles[7].any()

    def test_summary_line(self, plain_run):
        (line,) = [line for line in plain_run[1].stdout.splitlines() if line.startswith("guidance scale:")]
        scale = read_npz(plain_run[0] / "trace.npz")["scale"]
        found = re.fullmatch(
            r"guidance scale: median (\S+), 99.9 % (\S+), maximum (\S+); "
            r"of 28 evaluations 0 capped, 0 non-finite",
            line,
        )
        assert float(found[1]) == pytest.approx(np.median(scale), rel=0.02)
        assert float(found[3]) == pytest.approx(scale.max(), rel=1e-3)

    def test_paths_are_absolute(self, plain_run):
        folder, ended = plain_run
        for path in ("out/samples_7x8x8x3.npz", "out/samples_7x8x8x3.png", "trace.npz"):
            assert str(folder / path) in ended.stdout

    def test_run_json_says_what_was_sampled(self, plain_run, checkpoints):
        saved = json.loads((plain_run[0] / "out" / "run.json").read_text())
        assert saved["eds"] is True and saved["guidance"] == "entropy", "the rule that acted"
        (command,) = saved["commands"]
        assert "classifier_sample.py --" in command and "--eds" in command
        assert saved["classifier_scale"] == 2.0 and saved["seed"] == 0
        assert saved["image_size"] == 8 and saved["num_channels"] == 32, "the architecture of config.json"
        assert saved["diffusion_steps"] == 20 and saved["noise_schedule"] == "cosine"
        assert saved["num_classes"] == 4 and saved["class_cond"] is True

    def test_errors_none_and_progress_on_stderr(self, plain_run):
        assert "7/7" in plain_run[1].stderr and "error" not in plain_run[1].stderr


class TestRandomness:
    def test_two_processes_make_the_same_samples(self, guided, plain_run):
        folder, ended = guided("fork2", trace="trace.npz")
        expected, found = arrays_of(plain_run[0]), arrays_of(folder)
        assert all(np.array_equal(expected[name], found[name]) for name in expected)
        alone, two = read_npz(plain_run[0] / "trace.npz"), read_npz(folder / "trace.npz")
        assert all(np.array_equal(alone[name], two[name]) for name in alone)
        assert ended.stdout.count("guidance scale:") == 1 and "of 28 evaluations" in ended.stdout
        assert ended.stderr.count("7/7") == 1, "progress on rank 0 alone"

    def test_another_batch_size(self, guided, plain_run):
        expected, found = arrays_of(plain_run[0]), arrays_of(guided(batch_size=5)[0])
        assert np.array_equal(expected["arr_1"], found["arr_1"])
        difference = np.abs(expected["arr_0"].astype(int) - found["arr_0"])
        assert difference.max() <= 1 and (difference > 0).mean() < 0.005, "the same but for rounding"

    def test_seed(self, guided, plain_run):
        expected, found = arrays_of(plain_run[0]), arrays_of(guided(seed=1)[0])
        assert (expected["arr_0"] != found["arr_0"]).reshape(7, -1).any(axis=1).all()

    @pytest.mark.slow
    def test_scale_and_eds_have_an_effect(self, guided, plain_run):
        expected = arrays_of(plain_run[0])["arr_0"]
        for changes in ({"eds": False, "classifier_scale": 50}, {"classifier_scale": 0}, {"classifier_scale": 50}):
            folder, ended = guided(**changes)
            assert not np.array_equal(arrays_of(folder)["arr_0"], expected)
            assert ("guidance scale:" in ended.stdout) == (changes["classifier_scale"] != 0)

    def test_classes_in_turn(self, guided):
        labels = arrays_of(guided(classes="1,3", balanced=None)[0])["arr_1"]
        assert labels.tolist() == [1, 3, 1, 3, 1, 3, 1]

    def test_classes_at_random(self, guided):
        assert set(arrays_of(guided(classes="2", num_samples=4)[0], 4)["arr_1"]) == {2}


class TestCheckpointConfig:
    def test_training_records_what_it_made(self, run, tmp_path, images):
        flags = CLASSIFIER | TRAIN | {"data_dir": images, "iterations": 1, "ect": None, "log_dir": "train", "seed": 3}
        run("classifier_train", flags)
        saved = json.loads((tmp_path / "train" / "config.json").read_text())
        expected = CLASSIFIER | DIFFUSION | {
            "num_classes": 4, "class_names": ["c0", "c1", "c2", "c3"], "in_channels": 3, "ect": True,
            "ect_weight": 0.2, "classifier_pool": "attention", "seed": 3, "noised": True,
        }  # fmt: skip
        assert {name: saved[name] for name in expected} == expected
        weights = torch.load(tmp_path / "train" / "model000000.pt", weights_only=True)
        assert weights["out.2.c_proj.weight"].shape[0] == 4, "as many outputs as classes"

    def test_num_classes_may_be_more_than_the_folder_has(self, run, tmp_path, images):
        flags = CLASSIFIER | TRAIN | {"data_dir": images, "iterations": 1, "num_classes": 6, "log_dir": "train"}
        ended = run("classifier_train", flags)
        assert "--num_classes 6" in ended.stdout + ended.stderr
        assert json.loads((tmp_path / "train" / "config.json").read_text())["num_classes"] == 6

    def test_a_contradiction_is_named(self, run, checkpoints):
        flags = {"model_path": checkpoints["model"], "image_size": 16, "learn_sigma": False, "log_dir": "out"}
        (line,) = run("image_sample", flags, fails=True).error_lines
        assert "--image_size 16 (the checkpoint has 8)" in line
        clash = {"noise_schedule": "linear", "learn_sigma": False, "log_dir": "out"}
        (line,) = run("image_sample", {"model_path": checkpoints["model"], **clash}, fails=True).error_lines
        assert "--noise_schedule linear (the checkpoint has cosine)" in line
        assert "--learn_sigma False (the checkpoint has True)" in line

    def test_flags_do_without_config(self, run, tmp_path):
        bare = make_checkpoint(tmp_path / "bare", "model", config_json=False)
        flags = MODEL | DIFFUSION | {"model_path": bare, "num_samples": 2, "timestep_respacing": "3"}
        run("image_sample", flags | {"log_dir": "out"})
        assert (tmp_path / "out" / "samples_2x8x8x3.npz").is_file()


@pytest.fixture(scope="module")
def logs(fork_server, tmp_path_factory, images) -> dict[str, list[dict]]:
    """Rows of progress.csv without the constraint, with the default, and with a strong one."""
    folder = tmp_path_factory.mktemp("ect")
    run = Runner(fork_server, folder)
    flags = CLASSIFIER | DIFFUSION | {
        "data_dir": images, "val_data_dir": images, "iterations": 30, "batch_size": 12, "lr": 2e-3,
        "log_interval": 10, "eval_interval": 5,
    }  # fmt: skip
    variants = {"plain": {}, "default": {"ect": None}, "strong": {"entropy_constraint_loss_weight": 5}}
    for name, changes in variants.items():
        run("classifier_train", flags | changes | {"log_dir": name})
    return {name: read_csv(folder / name / "progress.csv") for name in variants}


class TestEct:
    @pytest.mark.slow
    def test_the_loss_is_what_it_says(self, logs):
        for name, weight in {"plain": 0, "default": 0.2, "strong": 5}.items():
            for row in logs[name]:
                for part in ("train", "val"):
                    loss, ce, ect = (float(row[f"{part}_{term}"]) for term in ("loss", "ce", "ect"))
                    assert loss == pytest.approx(ce + weight * ect, rel=1e-4)

    def test_the_first_step_is_the_same_for_all(self, logs):
        assert len({row["train_ce"] for row in (rows[0] for rows in logs.values())}) == 1

    def test_the_constraint_keeps_predictions_uncertain(self, logs):
        last = {name: float(rows[-1]["train_ect"]) for name, rows in logs.items()}
        assert last["strong"] < 0.5 * last["plain"]
        assert last["default"] != last["plain"]

    def test_logged_by_quartile_of_noise(self, logs):
        terms = ("loss", "ce", "ect", "entropy_ratio", "acc@1")
        expected = {f"{part}_{term}_q{q}" for part in ("train", "val") for term in terms for q in range(4)}
        assert expected <= set(logs["default"][-1])
        assert {"step", "samples", "grad_norm", "param_norm"} <= set(logs["default"][-1])
        assert "train_acc@5" not in logs["default"][-1], "of 4 classes the label is always among 5"
        for q in range(4):
            entries = [float(row[f"train_ce_q{q}"]) for row in logs["default"][1:]]
            assert np.isfinite(entries).all()

    def test_ect_off_wins_over_its_weight(self, run, tmp_path, images):
        flags = CLASSIFIER | TRAIN | {"data_dir": images, "iterations": 1, "ect": False, "ect_weight": 3}
        ended = run("classifier_train", flags | {"log_dir": "out"})
        assert "plain cross entropy" in ended.stdout


@pytest.mark.parametrize("rule", ["constant", "range", "timestep", "gradnorm", "entropy"])
def test_every_guidance_rule_samples(rule, run, checkpoints, tmp_path):
    """The rules of Table 4 by name; their formulas are tested in ed_dpm_patches/test_guidance.py."""
    flags = {
        "model_path": checkpoints["model"], "classifier_path": checkpoints["classifier"], "guidance": rule,
        "guidance_factor": 3.0, "guidance_until": 10, "classifier_scale": 2.0, "timestep_respacing": "ddim5",
        "use_ddim": True, "num_samples": 4, "batch_size": 4, "log_dir": tmp_path / "out",
    }  # fmt: skip
    line = next(line for line in run("classifier_sample", flags).stdout.splitlines() if "guidance scale" in line)
    maximum = float(line.split("maximum ")[1].split(";")[0])
    expected = {"constant": 2.0, "range": 6.0, "timestep": 2.0 * 3.0 * 20, "gradnorm": 6.0}
    assert maximum == pytest.approx(expected[rule], rel=1e-3) if rule in expected else maximum >= 2.0


def test_eds_and_another_rule_contradict_each_other(run, checkpoints, tmp_path):
    flags = {"model_path": checkpoints["model"], "classifier_path": checkpoints["classifier"], "eds": True}
    ended = run("classifier_sample", flags | {"guidance": "range", "log_dir": tmp_path / "out"}, fails=True)
    assert "--guidance: found range together with --eds" in ended.error_lines[0]


class TestSameRun:
    """What makes another run of a command in the same folder, and what may come later."""

    FLAGS = {
        "timestep_respacing": "ddim5", "use_ddim": True, "classifier_scale": 2.0, "num_samples": 6, "batch_size": 2,
        "log_dir": "out",
    }  # fmt: skip

    @pytest.fixture
    def sample(self, run, checkpoints):
        flags = self.FLAGS | {"model_path": checkpoints["model"], "classifier_path": checkpoints["classifier"]}
        return lambda **changes: run("classifier_sample", {k: v for k, v in (flags | changes).items() if v != ""})

    @pytest.mark.slow
    def test_the_same_files_elsewhere(self, sample, run, checkpoints, tmp_path):
        sample(eds=True)
        shutil.copytree(checkpoints["model"].parent, tmp_path / "copy")
        moved = {"eds": True, "model_path": "copy/model.pt"}
        assert "already complete" in sample(**moved).stdout
        sample(**moved, num_samples=8)
        commands = json.loads((tmp_path / "out" / "run.json").read_text())["commands"]
        assert len(commands) == 3 and commands[1].count("copy/model.pt") == 1
        flags = self.FLAGS | {"classifier_path": checkpoints["classifier"], "model_path": checkpoints["conditional"]}
        (line,) = run("classifier_sample", flags | {"eds": True}, fails=True).error_lines
        assert f"--model_path {checkpoints['conditional']} has other contents than copy/model.pt when the run" in line

    @pytest.mark.slow
    def test_a_rule_by_either_name(self, sample, tmp_path):
        sample(eds=True)
        assert "already complete" in sample(guidance="entropy").stdout
        manifest = tmp_path / "out" / "run.json"
        saved = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(saved | {"guidance": "constant"}))  # as earlier versions wrote it
        assert "already complete" in sample(eds=True).stdout
        manifest.write_text(json.dumps(saved | {"eds": False}))
        assert "already complete" in sample(eds=True).stdout

    @pytest.mark.slow
    def test_a_trace_or_a_grid_asked_for_later(self, sample, tmp_path):
        sample()
        told = sample(trace="trace.npz", save_images=True)
        assert "already complete" in told.stdout and (tmp_path / "out" / "samples_6x8x8x3.png").is_file()
        assert "trace.npz: not there; it is made only with the samples: use another --log_dir for it" in told.stdout
        sample(num_samples=8, trace="trace.npz")
        assert read_npz(tmp_path / "trace.npz")["scale"].shape == (8, 5)
        expected = arrays_of(tmp_path, 8)
        sample(num_samples=9)  # and left out
        sample(num_samples=10, trace="trace.npz", trace_samples=1)
        assert all(np.array_equal(arrays_of(tmp_path, 10)[name][:8], expected[name]) for name in expected)
        assert read_npz(tmp_path / "trace.npz")["scale"].shape == (10, 5)
        (tmp_path / "of_another.npz").write_bytes(b"other")
        told = sample(num_samples=10, trace="of_another.npz", trace_samples=1)
        assert "of_another.npz: of other samples; it is made only with the samples" in told.stdout

    @pytest.mark.slow
    def test_the_scale_report_outlives_interruptions(self, sample, run, checkpoints, tmp_path):
        whole = sample(log_dir="whole", num_samples=9)
        expected = json.loads((tmp_path / "whole" / "guidance_scale_9x8x8x3.json").read_text())
        assert expected["samples"] == 9 and expected["evaluations"] == 45
        assert sum(expected["histogram"].values()) == 45 and expected["minimum"] == pytest.approx(2.0)
        sample(num_samples=4)
        line = "of 45 evaluations"
        for _ in range(2):  # also where everything is there already
            assert line in sample(num_samples=9).stdout and line in whole.stdout
            found = json.loads((tmp_path / "out" / "guidance_scale_9x8x8x3.json").read_text())
            assert found == expected


@pytest.mark.parametrize("units", [{}, {"avx512_bf16": True}])
def test_mixed_precision_in_the_fastest_arithmetic(monkeypatch, tmp_path, units):
    """On a CPU that computes in float32 alone the same images; the run's record has what it was computed in."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags, half = program_checks.guided(tmp_path), {"use_fp16": True, "classifier_use_fp16": True, "amp_dtype": "auto"}
    full, found = (program_checks.call("classifier_sample", tmp_path / name, **flags | more)
                   for name, more in (("full", {}), ("found", half)))  # fmt: skip
    name = "bf16" if units else "fp32"
    assert json.loads((found / "run.json").read_text())["amp_dtype"] == name
    log = (found / "log.txt").read_text()
    assert log.count(f"--amp_dtype {name}: ") == 2 and "10 times" not in log
    same = [np.array_equal(*(read_npz(next(run.glob("samples_*.npz")))["arr_0"] for run in (full, found)))]
    assert same == [not units]

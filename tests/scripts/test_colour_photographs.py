"""The pipeline on real 32x32 colour photographs: train with --ect, sample with --eds, evaluate.

The photographs (files named class_index.jpg in a zip) are not in the repository; the test takes them from
../shared/data/cifar10_test.zip, or from the zip that CIFAR10_ZIP names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.support.helpers import ROOT, SCRIPTS, clean_environment

ARCHIVE = Path(os.environ.get("CIFAR10_ZIP", ROOT.parent / "shared/data/cifar10_test.zip"))
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
TINY_CLASSIFIER = [
    "--image_size", "32", "--classifier_width", "32", "--classifier_depth", "1",
    "--classifier_num_head_channels", "32", "--classifier_attention_resolutions", "8", "--batch_size", "16",
]  # fmt: skip
TINY_MODEL = [
    "--image_size", "32", "--num_channels", "32", "--num_res_blocks", "1", "--num_heads", "1",
    "--attention_resolutions", "8", "--learn_sigma", "True", "--batch_size", "16",
]  # fmt: skip

pytestmark = pytest.mark.skipif(not ARCHIVE.is_file(), reason=f"photographs not at hand: no {ARCHIVE}")


def run(*command: object) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, env=clean_environment()
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_train_sample_evaluate(tmp_path):
    photographs = tmp_path / "photographs"
    with zipfile.ZipFile(ARCHIVE) as archive:
        chosen = [name for name in archive.namelist() if name.endswith(("0.jpg", "5.jpg"))]
        archive.extractall(photographs, chosen)
    launcher = ("mpiexec", "-n", 2, sys.executable)
    classifier_train = (*launcher, SCRIPTS / "classifier_train.py", "--data_dir", photographs, *TINY_CLASSIFIER)

    run(*classifier_train, "--ect", "--iterations", 12, "--log_dir", tmp_path / "ect")
    config = json.loads((tmp_path / "ect/config.json").read_text())
    assert config["class_names"] == CLASSES and config["num_classes"] == 10 and config["ect"]
    run(*classifier_train, "--noised", "False", "--iterations", 12, "--log_dir", tmp_path / "features")
    run(
        *launcher, SCRIPTS / "image_train.py", "--data_dir", photographs, *TINY_MODEL,
        "--iterations", 6, "--ema_rate", "0.9", "--log_dir", tmp_path / "model",
    )  # fmt: skip
    output = run(
        *launcher, SCRIPTS / "classifier_sample.py", "--eds", "--classifier_scale", "2.0", "--use_ddim",
        "--timestep_respacing", "ddim5", "--num_samples", 40, "--batch_size", 10, "--balanced", "--save_images",
        "--model_path", tmp_path / "model/ema_0.9_000006.pt",
        "--classifier_path", tmp_path / "ect/model000011.pt", "--log_dir", tmp_path / "samples",
    )  # fmt: skip
    assert "0 non-finite" in output
    samples = tmp_path / "samples/samples_40x32x32x3.npz"
    with np.load(samples, allow_pickle=False) as arrays:
        assert arrays["arr_0"].shape == (40, 32, 32, 3) and arrays["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(np.bincount(arrays["arr_1"]), np.full(10, 4))

    reference = tmp_path / "reference.npz"
    write_reference(sorted(photographs.glob("*.jpg"))[::10], reference)
    printed = run(
        sys.executable, ROOT / "evaluations/evaluator.py", reference, samples,
        "--features", tmp_path / "features/model000011.pt",
    )  # fmt: skip
    names = [line.split(":")[0] for line in printed.splitlines()]
    assert names == ["Inception Score", "FID", "sFID", "Precision", "Recall", "Accuracy", "Reference accuracy"]
    assert all(np.isfinite(float(line.split(":")[1])) for line in printed.splitlines())


def write_reference(files: list[Path], path: Path) -> None:
    from PIL import Image

    images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    labels = np.array([CLASSES.index(file.name.split("_")[0]) for file in files])
    np.savez(path, images, labels)

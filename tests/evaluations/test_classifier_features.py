"""A guided_diffusion classifier as the feature network."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluations.features.classifier import ClassifierExtractor, match_channels
from guided_diffusion.errors import InputError
from guided_diffusion.io.checkpoint import write_config
from guided_diffusion.nn import timestep_embedding
from tests.support.evaluations import CLASSIFIER_CONFIG, make_images, write_classifier


@pytest.mark.parametrize("pool", ["adaptive", "attention", "spatial", "spatial_v2"])
def test_features_are_those_of_the_definition(tmp_path, pool):
    engine = ClassifierExtractor(write_classifier(tmp_path, classifier_pool=pool))
    images = make_images(0, 5, 16)
    found = engine.compute_activations([images])
    assert {array.dtype for array in vars(found).values()} == {np.dtype(np.float32)}

    model = engine._model.cpu()
    x = torch.from_numpy(images.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    with torch.no_grad():
        emb = model.time_embed(timestep_embedding(torch.zeros(5, dtype=torch.long), 32))
        means, h = [], x
        for block in [*model.input_blocks, model.middle_block]:
            h = block(h, emb)
            means.append(h.mean(dim=(2, 3)))
        logits = model(x, torch.zeros(5, dtype=torch.long))
        pooled = torch.cat(means, 1) if "spatial" in pool else F.silu(model.out[0](h)).mean(dim=(2, 3))
    assert h.shape[2:] == (8, 8)
    np.testing.assert_allclose(found.pool, pooled, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.probabilities, logits.softmax(1), rtol=1e-4, atol=1e-6)
    spatial = found.spatial.reshape(5, 8, 8, 7)  # channel fastest
    np.testing.assert_allclose(spatial, h[:, :7].permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5)
    if "spatial" in pool:  # the features are all that the head sees
        with torch.no_grad():
            again = model.out(torch.from_numpy(found.pool)).softmax(1)
        np.testing.assert_allclose(found.probabilities, again, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pool", ["attention", "spatial_v2"])
def test_batch_size_changes_nothing(tmp_path, pool):
    engine = ClassifierExtractor(write_classifier(tmp_path, classifier_pool=pool))
    images = make_images(1, 7, 16)
    whole = engine.compute_activations([images])
    for size in (1, 3):
        parts = engine.compute_activations([images[begin : begin + size] for begin in range(0, 7, size)])
        for name, array in vars(whole).items():
            np.testing.assert_allclose(getattr(parts, name), array, rtol=1e-4, atol=1e-5, err_msg=name)


def test_half_precision_training_is_judged_in_full_precision(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    images = [make_images(2, 3, 16)]
    full = ClassifierExtractor(write_classifier(tmp_path / "a")).compute_activations(images)
    half = ClassifierExtractor(write_classifier(tmp_path / "b", classifier_use_fp16=True)).compute_activations(
        images
    )
    np.testing.assert_array_equal(full.pool, half.pool)


def test_channels(tmp_path):
    engine = ClassifierExtractor(write_classifier(tmp_path, in_channels=1, num_classes=3))
    grey = make_images(3, 4, 16)[..., :1]
    one = engine.compute_activations([grey])
    same = engine.compute_activations([grey.repeat(3, axis=-1)])
    np.testing.assert_array_equal(one.pool, same.pool)
    assert one.probabilities.shape == (4, 3)
    with pytest.raises(InputError, match="coloured images, expected grey"):
        engine.compute_activations([make_images(3, 4, 16)])
    np.testing.assert_array_equal(match_channels(grey, 3), grey.repeat(3, axis=-1))


def test_image_size(tmp_path):
    engine = ClassifierExtractor(write_classifier(tmp_path))
    engine.check("a.npz", (4, 16, 16, 3))
    with pytest.raises(InputError, match="a.npz: found images of 16x24 pixels, expected 16x16"):
        engine.check("a.npz", (4, 16, 24, 3))


def test_noised_classifier_is_pointed_out(tmp_path, caplog):
    path = write_classifier(tmp_path)
    write_config(tmp_path, {**CLASSIFIER_CONFIG, "noised": True})
    ClassifierExtractor(path)
    assert "trained on noised images" in caplog.text


def _fails(path, match):
    with pytest.raises(InputError, match=match) as caught:
        ClassifierExtractor(path)
    assert "\n" not in str(caught.value)


def test_missing_or_unfit_files(tmp_path):
    _fails(tmp_path / "none.pt", "--features .*none.pt: no such file")
    path = write_classifier(tmp_path)
    write_config(tmp_path, {**CLASSIFIER_CONFIG, "classifier_depth": 2})
    _fails(path, "does not fit the model")
    write_config(tmp_path, {**CLASSIFIER_CONFIG, "classifier_depth": 10**9})
    _fails(path, "found 1000000000 residual blocks")
    write_config(tmp_path, {**CLASSIFIER_CONFIG, "image_size": 2**20})
    _fails(path, "found a network that takes at least .* GiB of this machine")
    write_config(tmp_path, {**CLASSIFIER_CONFIG, "classifier_width": [32]})
    _fails(path, r"config.json beside it has classifier_width \[32\], expected a whole number")
    write_config(tmp_path, {**CLASSIFIER_CONFIG, "image_size": "large"})
    _fails(path, "image_size|config.json")
    write_config(tmp_path, {**CLASSIFIER_CONFIG, "classifier_pool": "none"})
    _fails(path, "classifier_pool|config.json")
    write_config(tmp_path, {key: CLASSIFIER_CONFIG[key] for key in CLASSIFIER_CONFIG if key != "classifier_width"})
    _fails(path, "does not fit the model")
    write_config(tmp_path, {"image_size": 8, "num_channels": 32})
    _fails(path, "--features .*: found a diffusion model, expected a classifier")
    (tmp_path / "config.json").write_text(json.dumps([1]))
    _fails(path, "config.json")
    (tmp_path / "config.json").unlink()
    _fails(path, "config.json: no such file")
    write_config(tmp_path, CLASSIFIER_CONFIG)
    path.write_bytes(b"nothing")
    _fails(path, "model000010.pt")

"""load_model, load_classifier, load_diffusion: the README's library example with every kind of checkpoint."""

from __future__ import annotations

import dataclasses
import re
import shutil

import pytest
import torch

from ed_dpm_patches import ClassifierGuidance, EntropyRule
from guided_diffusion.config.configs import ClassifierConfig, ModelConfig
from guided_diffusion.errors import InputError
from guided_diffusion.sampling import pretrained
from guided_diffusion.sampling.pretrained import load_classifier, load_diffusion, load_model
from guided_diffusion.script_util import build_model
from tests.support.helpers import MODEL, ROOT, make_checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["model", "conditional"])
def test_the_readmes_example(kind, checkpoints, monkeypatch):
    """Word for word, with models that are given the labels and models that are not."""
    section = (ROOT / "README.md").read_text().partition("## As a library")[2]
    code = re.search(r"```python\n(.*?)```", section, flags=re.DOTALL)[1]
    for name, path in re.findall(r"load_(\w+)\(\"([^\"]+)\"", code):
        code = code.replace(path, str(checkpoints["classifier" if name == "classifier" else kind]))
    namespace: dict = {}
    torch.manual_seed(0)
    exec(code.replace("ddim25", "ddim5"), namespace)
    sample, model = namespace["sample"], namespace["model"]
    assert sample.shape[1:] == (3, 8, 8) and sample.isfinite().all()
    assert namespace["guidance"].report.summary()["evaluations"] == 5 * len(sample)
    assert model.config.class_cond == (kind == "conditional") and not model.training
    torch.manual_seed(0)
    exec(code.replace("ddim25", "ddim5").replace("cond_fn=guidance", "cond_fn=None"), namespace)
    assert not torch.equal(namespace["sample"], sample), "the guidance did nothing"


def test_the_network_is_the_checkpoints(checkpoints, tmp_path):
    x, t, y = torch.randn(2, 3, 8, 8), torch.tensor([3, 17]), torch.tensor([1, 2])
    model = load_model(checkpoints["conditional"], device="cpu")
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert MODEL.items() <= {name: getattr(model.config, name) for name in fields}.items()
    network = build_model(model.config, pretrained.DiffusionConfig())
    network.load_state_dict(torch.load(checkpoints["conditional"], weights_only=True))
    torch.testing.assert_close(model(x, t, y), network.eval()(x, t, y))
    assert not any(p.requires_grad for p in model.parameters())
    half = load_model(checkpoints["conditional"], dtype=torch.bfloat16)
    torch.testing.assert_close(half(x, t, y=y), model(x, t, y=y), atol=0.1, rtol=0.1)

    unconditional = load_model(checkpoints["model"])
    assert torch.equal(unconditional(x, t, y=y), unconditional(x, t)), "y is ignored"
    large = load_model(checkpoints["super_res"])
    assert large(x, t, low_res=torch.randn(2, 3, 4, 4)).shape == (2, 6, 8, 8)

    logits = load_classifier(checkpoints["classifier"])(x, t)
    assert logits.shape == (2, 4)
    assert len(load_diffusion(checkpoints["model"], timestep_respacing="5").betas) == 5


def test_without_a_config(tmp_path):
    path = make_checkpoint(tmp_path / "there", "classifier", config_json=False)
    with pytest.raises(InputError, match="model.pt: no config.json beside it; pass the flags"):
        load_classifier(path)
    flags = {
        "image_size": 8, "num_classes": 4, "classifier_width": 32, "classifier_depth": 1,
        "classifier_num_head_channels": 32, "classifier_attention_resolutions": "4",
    }  # fmt: skip
    classifier = load_classifier(path, **flags)
    assert classifier.config == ClassifierConfig(**flags)
    with pytest.raises(InputError, match="does not fit the model"):
        load_classifier(path, **flags | {"classifier_depth": 2})
    with pytest.raises(TypeError, match="classifier_dept: no flag of this network"):
        load_classifier(path, classifier_dept=2)


def test_what_does_not_fit(checkpoints, tmp_path):
    with pytest.raises(InputError, match="found a classifier, expected a diffusion model"):
        load_model(checkpoints["classifier"])
    with pytest.raises(InputError, match="found a diffusion model, expected a classifier"):
        load_classifier(checkpoints["model"])
    with pytest.raises(InputError, match="nowhere.pt: no such file"):
        load_model(tmp_path / "nowhere.pt")
    with pytest.raises(InputError, match=r"contradicts --image_size 16 \(the checkpoint has 8\)"):
        load_model(checkpoints["model"], image_size=16)
    shutil.copy(checkpoints["model"], tmp_path / "model.pt")
    with pytest.raises(InputError, match="does not fit the model"):
        load_model(tmp_path / "model.pt", **MODEL)
    with pytest.raises(InputError, match="--timestep_respacing: found ddim3000"):
        load_diffusion(checkpoints["model"], timestep_respacing="ddim3000")


def test_guidance_of_a_loaded_classifier(checkpoints):
    guidance = ClassifierGuidance(load_classifier(checkpoints["classifier"]), EntropyRule(2.0))
    assert guidance(torch.randn(2, 3, 8, 8), 5, y=[0, 3]).abs().max() > 0

"""Networks of other libraries as classifiers: what they return and take, and what would go wrong in silence."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from ed_dpm_patches import ClassifierGuidance, ConstantRule
from guided_diffusion.models import any_classifier
from guided_diffusion.models.any_classifier import AnyClassifier
from guided_diffusion.models.inference import Frozen
from tests.support.networks import small_classifier

X, T, Y = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4), torch.arange(4) % 3
WEIGHTS = torch.randn(192, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(any_classifier.logger, "warning", found.append)
    return found


def plain(x: Tensor, t: Tensor) -> Tensor:
    return x.flatten(1) @ WEIGHTS


@dataclass
class Output:
    """As Hugging Face's models return it."""

    logits: Tensor
    loss: None = None


class OneArgument(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return plain(images, T)


def guide(classifier) -> Tensor:
    return ClassifierGuidance(classifier, ConstantRule(2.0))(X, T, y=Y)


@pytest.mark.parametrize(
    "classifier",
    [
        lambda x, t: Output(plain(x, t)),
        lambda x, t: {"logits": plain(x, t), "loss": None},
        lambda x, *_, **__: plain(x, None),
        nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval(),
        OneArgument(),
        lambda x: plain(x, T),
    ],
    ids=["object", "mapping", "variadic", "sequential", "module", "function of images"],
)
def test_forms_of_classifiers(warnings, classifier):
    if isinstance(classifier, nn.Sequential):
        classifier[1].weight.data, classifier[1].bias.data = WEIGHTS.T.clone(), torch.zeros(3)
    torch.testing.assert_close(guide(classifier), guide(plain))


def test_a_classifier_without_a_timestep_is_told_once(warnings):
    guidance = ClassifierGuidance(OneArgument(), ConstantRule())
    for _ in range(3):
        guidance(X, T, y=Y)
    (warning,) = warnings
    assert "takes no timestep, so it classifies noised images as if they were clean" in warning


def test_probabilities_in_place_of_logits(warnings):
    guide(lambda x, t: plain(x, t).softmax(dim=1))
    (warning,) = warnings
    assert "every row of its output is in 0..1 and sums to 1, as probabilities do" in warning
    guide(lambda x, t: plain(x, t).log_softmax(dim=1))
    guide(lambda x, t: plain(x, t).softmax(dim=1) * torch.tensor([[1.0], [1.0], [1.0], [1.5]]))
    assert len(warnings) == 1


@pytest.mark.parametrize(
    ("layer", "acts"), [(nn.BatchNorm2d(3), True), (nn.Dropout(0.5), True), (nn.Dropout(0.0), False)]
)
def test_a_network_in_training_mode(warnings, layer, acts):
    network = nn.Sequential(layer, nn.Flatten(), nn.Linear(192, 3))

    def told(network) -> int:
        warnings.clear()
        guide(network)
        return sum("call classifier.eval() first" in warning for warning in warnings)

    assert told(network.train()) == acts
    assert told(network.eval()) == 0


@pytest.mark.parametrize(
    ("classifier", "says"),
    [
        (lambda x, t: (plain(x, t),), "found an output of tuple, expected logits"),
        (lambda x, t: plain(x, t)[:2], r"found an output of shape \(2, 3\), expected logits \[4, classes\]"),
        (lambda x, t: plain(x, t).sum(1), r"found an output of shape \(4,\), expected logits \[4, classes\]"),
        (lambda x, t: {"scores": plain(x, t)}, "found an output of dict, expected logits"),
        (torch.no_grad()(plain), "its logits carry no gradient; is it run under torch.no_grad"),
    ],
)
def test_what_is_no_classifier(classifier, says):
    with pytest.raises(TypeError, match=says):
        guide(classifier)


def test_a_frozen_network_is_called_directly():
    frozen = Frozen(small_classifier())
    assert ClassifierGuidance(frozen, ConstantRule()).classifier is frozen


def test_it_is_called_as_it_is():
    x = X.clone().requires_grad_(True)
    assert torch.equal(AnyClassifier(plain)(x, T), plain(x, T))

"""Our state dicts, flags and guidance work in upstream's own classes."""

import argparse
import math

import pytest
import torch

from benchmarks.upstream import require_upstream
from ed_dpm_patches import ClassifierGuidance, ConstantRule, EntropyRule
from guided_diffusion import script_util, unet
from tests.parity import cases_diffusion
from tests.parity.cases_models import TINY, twins
from tests.parity.compare import one_thread
from tests.parity.sides import Ours

TINY_FLAGS = {
    "model": "--image_size 64 --channel_mult 1,1 --num_channels 32 --num_res_blocks 1 --num_heads 1"
    " --attention_resolutions 32 --class_cond yes --learn_sigma True",
    "sr": "--large_size 64 --small_size 16 --num_channels 32 --num_res_blocks 1 --attention_resolutions 8",
    "classifier": "--image_size 64 --classifier_width 32 --classifier_depth 1"
    " --classifier_attention_resolutions 8",
}
BUILDERS = {
    "model": ("model_and_diffusion_defaults", "create_model_and_diffusion"),
    "sr": ("sr_model_and_diffusion_defaults", "sr_create_model_and_diffusion"),
    "classifier": ("classifier_and_diffusion_defaults", "create_classifier_and_diffusion"),
}
GAMMA = 3.0
CLASSES = 5


@pytest.fixture(scope="module")
def peer():
    with one_thread():
        yield require_upstream()


@pytest.mark.parametrize("kind", TINY_FLAGS)
def test_peer_builder_takes_our_flags_and_our_state_dict(peer, kind, tmp_path):
    defaults, builder = BUILDERS[kind]
    parser = argparse.ArgumentParser()
    script_util.add_dict_to_argparser(parser, getattr(script_util, defaults)())
    args = parser.parse_args(TINY_FLAGS[kind].split())
    torch.manual_seed(0)
    ours, _ = getattr(script_util, builder)(
        **script_util.args_to_dict(args, getattr(script_util, defaults)())
    )
    torch.save(ours.state_dict(), tmp_path / "ours.pt")
    theirs, _ = getattr(peer.script_util, builder)(
        **script_util.args_to_dict(args, getattr(peer.script_util, defaults)().keys())
    )
    theirs.load_state_dict(torch.load(tmp_path / "ours.pt", weights_only=True), strict=True)
    for (name, a), (other, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other and torch.equal(a, b)


@pytest.fixture(scope="module")
def classifiers(peer):
    """(ours, upstream's): encoders with the same weights."""
    flags = TINY | {"out_channels": CLASSES, "pool": "attention", "num_head_channels": 32}
    return twins(unet.EncoderUNetModel(**flags), peer.unet.EncoderUNetModel(**flags))


def plain_guidance(classifier):
    """gamma times the gradient of log p_y, as in the paper upstream implements (Dhariwal & Nichol 2021)."""

    def cond_fn(x, t, y):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            log_p = classifier(x, t).log_softmax(dim=-1)
            return GAMMA * torch.autograd.grad(log_p[range(len(y)), y].sum(), x)[0]

    return cond_fn


def entropy_guidance(classifier):
    """The same times log K / H per sample, written out in the most direct way."""

    def cond_fn(x, t, y):
        with torch.no_grad():
            log_p = classifier(x, t).double().log_softmax(dim=-1)
        entropy = -(log_p.exp() * log_p).sum(dim=-1)
        return (
            plain_guidance(classifier)(x, t, y) * (math.log(CLASSES) / entropy).float()[:, None, None, None]
        )

    return cond_fn


def sample(side, loop, respacing, cond_fn):
    diffusion = cases_diffusion.make(side, respacing=respacing, variance="LEARNED_RANGE", steps=1000)
    torch.manual_seed(0)
    labels = {"y": torch.tensor([4, 0])}
    return getattr(diffusion, loop)(
        cases_diffusion.ToyModel(6), (2, 3, 8, 8), cond_fn=cond_fn, model_kwargs=labels
    )


@pytest.mark.parametrize("loop, respacing", [("p_sample_loop", "8"), ("ddim_sample_loop", "ddim8")])
@pytest.mark.parametrize("rule, reference", [(ConstantRule, plain_guidance), (EntropyRule, entropy_guidance)])
def test_our_guidance_guides_the_peers_process(peer, classifiers, loop, respacing, rule, reference):
    ours, theirs = (classifier.eval() for classifier in classifiers)
    guidance = ClassifierGuidance(theirs, rule(GAMMA))
    guided = sample(peer, loop, respacing, guidance)
    expected = sample(peer, loop, respacing, reference(theirs))
    torch.testing.assert_close(guided, expected, rtol=1e-5, atol=1e-5)
    unguided = sample(peer, loop, respacing, None)
    assert (guided - unguided).abs().max() > 0.01, "the guidance did nothing"
    at_home = sample(Ours, loop, respacing, ClassifierGuidance(ours, rule(GAMMA)))
    torch.testing.assert_close(at_home, guided, rtol=1e-5, atol=1e-5)


def test_peers_guide_and_process_take_each_others_parts(peer, classifiers):
    """A plain cond_fn on upstream's classifier guides our process as it guides upstream's."""
    _, theirs = classifiers
    for loop, respacing in (("p_sample_loop", "8"), ("ddim_sample_loop", "ddim8")):
        sides = [sample(s, loop, respacing, plain_guidance(theirs)) for s in (Ours, peer)]
        torch.testing.assert_close(*sides, rtol=1e-5, atol=1e-5)

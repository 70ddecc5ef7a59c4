"""The fused attention of evaluation against the unfused one of training, and against the textbook in float64."""

from __future__ import annotations

import pytest
import torch

from guided_diffusion.models.attention import AttentionPool2d, QKVAttention, QKVAttentionLegacy, fuse_attention
from tests.support.networks import small_classifier


def textbook(qkv: torch.Tensor, heads: int, legacy: bool) -> torch.Tensor:
    """softmax(q k / sqrt(C)) v, head by head, in float64: [B, 3*H*C, L] -> [B, H*C, L]."""
    batch, width, length = qkv.shape
    channels = width // (3 * heads)
    parts = qkv.double().reshape(batch, *((heads, 3) if legacy else (3, heads)), channels, length)
    q, k, v = (parts[:, :, i] if legacy else parts[:, i] for i in range(3))
    weights = torch.softmax(torch.einsum("bhct,bhcs->bhts", q, k) / channels**0.5, dim=-1)
    return torch.einsum("bhts,bhcs->bhct", weights, v).reshape(batch, heads * channels, length)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [QKVAttention, QKVAttentionLegacy])
def test_attention_is_the_textbooks(kind, training):
    qkv = torch.randn(3, 3 * 4 * 16, 49, generator=torch.Generator().manual_seed(0))
    found = kind(4).train(training)(qkv)
    torch.testing.assert_close(found.double(), textbook(qkv, 4, kind is QKVAttentionLegacy), rtol=1e-5, atol=1e-5)


def test_pooling_reads_out_the_mean_token():
    """Only that token has a query; the result is the first column of full attention over all tokens."""
    torch.manual_seed(0)
    pool = AttentionPool2d(4, 64, 32, 10)
    x = torch.randn(2, 64, 4, 4)
    tokens = x.flatten(2)
    tokens = torch.cat([tokens.mean(-1, keepdim=True), tokens], dim=-1) + pool.positional_embedding
    full = pool.c_proj(textbook(pool.qkv_proj(tokens), 2, legacy=False).float())[..., 0]
    torch.testing.assert_close(pool(x), full, rtol=1e-4, atol=1e-5)


def test_a_network_says_the_same_in_training_and_evaluation():
    """Output and input gradient; there is no dropout in it, so the kernel is the only difference."""
    classifier = small_classifier()
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, 10, 500, 999])
    results = []
    for training in (True, False):
        x_in = x.clone().requires_grad_(True)
        logits = classifier.train(training)(x_in, t)
        results.append((logits, torch.autograd.grad(logits.square().sum(), x_in)[0]))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_fused_training_has_the_same_gradients():
    """Of all parameters; the unfused kernel is upstream's, bit by bit (tests/parity)."""
    x, t = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 10, 500, 999])
    gradients = []
    for prepare in (lambda network: network, fuse_attention):
        classifier = prepare(small_classifier().requires_grad_(True)).train()
        loss = torch.nn.functional.cross_entropy(classifier(x, t), torch.arange(4))
        gradients.append(torch.autograd.grad(loss, list(classifier.parameters())))
    assert any(not torch.equal(one, other) for one, other in zip(*gradients, strict=True))  # another kernel indeed
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)

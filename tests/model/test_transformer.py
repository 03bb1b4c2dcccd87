"""The network: properties that hold for any weights, and PyTorch's own layers as the reference."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.configuration import TransformerConfig
from model.contract import parameter_count
from model.modalities.sources import text_sizes
from model.networks.layers import Attention, Dropout, EncoderLayer, padding_mask
from model.networks.transformer import Transformer
from model.saved.folder import build
from model.vocabulary import PAD

SOURCE = torch.tensor([[5, 6, 7, 8, 2], [9, 4, 2, PAD, PAD], [2, PAD, PAD, PAD, PAD]])
TARGET = torch.tensor([[1, 5, 6, 7], [1, 8, 2, PAD], [1, 4, 4, 4]])
TOLERANCE = 1e-5
"""fp32: the same sums of values near 1, in a different order."""


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(layers=2, width=32, heads=4, dropout=0.3)
    built = build(config, text_sizes(11, 12))
    assert isinstance(built, Transformer)
    return built.eval()


@torch.no_grad()
def test_cached_steps_equal_one_pass(model: Transformer) -> None:
    source = {"text": SOURCE}
    whole = model(source, TARGET).logits
    memory, cache = model.encode(source), model.empty_cache(len(SOURCE))
    for position in range(TARGET.shape[1]):
        tokens, seen = TARGET[:, position : position + 1], torch.zeros(3, 1, position + 1)
        logits, cache = model.step(tokens, torch.tensor(position), seen, memory, cache)
        torch.testing.assert_close(logits[:, 0], whole[:, position], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_a_row_alone_has_the_logits_it_has_in_a_batch(model: Transformer) -> None:
    batch = model({"text": SOURCE}, TARGET).logits
    for row in range(len(SOURCE)):
        length = int((SOURCE[row] != PAD).sum())
        alone = model({"text": SOURCE[row : row + 1, :length]}, TARGET[row : row + 1])
        torch.testing.assert_close(alone.logits[0], batch[row], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_later_tokens_do_not_change_earlier_logits(model: Transformer) -> None:
    changed = TARGET.clone()
    changed[:, 2:] = 3
    before, after = (model({"text": SOURCE}, target).logits for target in (TARGET, changed))
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.equal(before[:, 2:], after[:, 2:])


@torch.no_grad()
def test_attention_equals_pytorchs() -> None:
    torch.manual_seed(1)
    ours, theirs = Attention(24, 3), nn.MultiheadAttention(24, 3, batch_first=True)
    theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
    theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
    theirs.out_proj.load_state_dict(ours.output.state_dict())
    x, memory = torch.randn(2, 4, 24), torch.randn(2, 5, 24)
    present = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.bool)
    expected, _ = theirs(x, memory, memory, key_padding_mask=~present)
    output = ours(x, *ours.keys_values(memory, 2), padding_mask(present))
    torch.testing.assert_close(output, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("norm", ["pre", "post"])
@torch.no_grad()
def test_encoder_layer_equals_pytorchs(norm: Literal["pre", "post"]) -> None:
    torch.manual_seed(2)
    ours = EncoderLayer(
        TransformerConfig(
            width=24, heads=3, feed_forward=48, dropout=0, norm=norm, activation="gelu"
        )
    )
    first = norm == "pre"
    theirs = nn.TransformerEncoderLayer(24, 3, 48, 0.0, F.gelu, batch_first=True, norm_first=first)
    their_attention, our_attention = theirs.self_attn, ours.attention
    parts = our_attention.query, our_attention.key, our_attention.value
    their_attention.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
    their_attention.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    their_attention.out_proj.load_state_dict(our_attention.output.state_dict())
    theirs.linear1.load_state_dict(ours.feed_forward.expand.state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward.contract.state_dict())
    for layer_norm in (ours.attention_norm, ours.feed_forward_norm):
        layer_norm.weight.uniform_(0.5, 1.5)
        layer_norm.bias.uniform_(-0.5, 0.5)
    theirs.norm1.load_state_dict(ours.attention_norm.state_dict())
    theirs.norm2.load_state_dict(ours.feed_forward_norm.state_dict())
    x, present = torch.randn(2, 5, 24), torch.ones(2, 5, dtype=torch.bool)
    expected = theirs.train()(x)  # In training mode: not PyTorch's fused fast path.
    torch.testing.assert_close(ours(x, padding_mask(present)), expected, atol=TOLERANCE, rtol=0)


def test_gradients_reach_every_parameter(model: Transformer) -> None:
    model.train()
    model({"text": SOURCE}, TARGET).logits.logsumexp(-1).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A constant added to every key of a row changes no softmax: the gradient of a key bias is
    # nothing but rounding, which may be 0.
    assert [name for name in without if not name.endswith("key.bias")] == []


def test_embeddings_are_tied(model: Transformer) -> None:
    config = TransformerConfig(layers=1, width=32, heads=4)
    shared = build(config, text_sizes(50, 50, shared=True))
    apart = build(config, text_sizes(50, 50))
    assert parameter_count(apart) - parameter_count(shared) == 50 * 32


def test_dropout_keeps_the_mean_and_the_share() -> None:
    torch.manual_seed(0)
    drop = Dropout(0.3).train()
    x = torch.ones(1000, 1000, requires_grad=True)
    y = drop(x)
    share = round(0.3 * 256) / 256
    assert float((y == 0).float().mean()) == pytest.approx(share, abs=2e-3)  # 4 deviations
    assert float(y.mean()) == pytest.approx(1.0, abs=3e-3)
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, y.detach())
    torch.manual_seed(0)
    assert torch.equal(drop(x), y)
    assert torch.equal(drop.eval()(x), x)

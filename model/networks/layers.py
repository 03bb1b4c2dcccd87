"""The parts of a Transformer: attention, feed-forward, dropout, positions.

Shapes: B batch, T query positions, S key positions, H heads, D width of a head, W = H * D.
Masks are additive, float, 0 where a key is visible and a large negative number where it is not. The
number is finite, so that a row of padding does not turn into NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.configuration import TransformerConfig
from model.vocabulary import MASKED


class Dropout(nn.Module):
    """Inverted dropout (Srivastava et al., 2014) with random bits that are cheap on a CPU.

    PyTorch's CPU kernel draws Bernoulli numbers one by one, which takes longer than the matrix
    products of a small model. Here one random byte decides each element, so that `probability`
    is rounded to a multiple of 1/256 and the scale matches the rounded value exactly. On other
    devices PyTorch's own kernel runs. Seeded by `torch.manual_seed` either way.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.threshold = round(probability * 256)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.threshold == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.probability)
        seed = int(torch.randint(2**62, ()).item())
        count = x.numel()
        words = np.random.SFC64(seed).random_raw((count + 7) // 8)
        draws = torch.from_numpy(words.view(np.uint8)[:count]).view(x.shape)
        keep = draws.ge(self.threshold).to(x.dtype)
        return x * keep.mul_(256 / (256 - self.threshold))


def padding_mask(present: Tensor) -> Tensor:
    """Additive mask (B, 1, 1, S) from `present` (B, S), true where a key exists."""
    return (1.0 - present.to(torch.float32))[:, None, None, :] * MASKED


def causal_mask(length: int, device: torch.device) -> Tensor:
    """Additive mask (1, 1, T, T) that hides later positions."""
    hidden = torch.full((length, length), MASKED, device=device)
    return torch.triu(hidden, diagonal=1)[None, None]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """softmax(query keyᵀ + mask) value, over several heads.

    In bf16 on a CPU it uses plain matrix products, with the softmax in fp32, because PyTorch's own
    kernel takes several times as long for short sequences.

    Args:
        query: (B, T, W), scaled already.
        key: (B, H, S, D), as `value`.
        mask: (B, 1, T, S) or what broadcasts to it.
    """
    query = query.reshape(*query.shape[:2], key.shape[1], -1).transpose(1, 2)  # (B, H, T, D)
    if query.dtype == torch.bfloat16 and query.device.type == "cpu":
        scores = torch.matmul(query, key.transpose(-2, -1)) + mask
        mixed = torch.matmul(torch.softmax(scores, dim=-1).to(value.dtype), value)
    else:
        with torch.autocast(query.device.type, enabled=False):
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask.to(query.dtype), scale=1.0
            )
    return mixed.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Scaled dot-product attention over several heads: Vaswani et al., 2017, section 3.2.

    The projections of keys and of values are separate from the attention itself, so that a decoder
    projects its memory once and keeps the result; and separate from each other, so that heads can
    be distributed over devices by rows of each matrix. The factor 1/√D is part of the query's
    projection, and an exported graph has it precomputed.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads, self.head = heads, width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def split(self, x: Tensor, batch: int) -> Tensor:
        """Splits (B, S, W), or (B · S, W), by heads: (B, H, S, D)."""
        return x.reshape(batch, -1, self.heads, self.head).transpose(1, 2)

    def keys_values(self, x: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, D) of sequences (B, S, W), or (B · S, W)."""
        return self.split(self.key(x), batch), self.split(self.value(x), batch)

    def queries(self, x: Tensor) -> Tensor:
        """Queries of the shape of `x` (..., W), multiplied by 1/√D."""
        scale = self.head**-0.5
        return F.linear(x, self.query.weight * scale, self.query.bias * scale)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Sequences (B, T, W), or (B · T, W) with a mask (B, 1, T, S), attend to `key` and `value`
        (B, H, S, D); same shape out."""
        query = self.queries(x)
        if x.dim() == 2:
            query = query.reshape(-1, mask.shape[2], self.heads * self.head)
        mixed = self.mixed(query, key, value, mask)
        return self.output(mixed.flatten(0, 1) if x.dim() == 2 else mixed)

    def mixed(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """See `attend`."""
        return attend(query, key, value, mask)

    def weights(self, x: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        """How much positions (B · T, W) attend to those of `key` (B, H, S, D) under the mask
        (B, 1, T, S): (B, T, S), the mean over heads, and 1 where the mask hides a position."""
        split = (mask.shape[0], mask.shape[2], self.heads, self.head)
        scores = torch.matmul(self.queries(x).reshape(split).transpose(1, 2), key.transpose(-2, -1))
        scores = scores + mask
        hidden = (mask[:, 0] < 0).to(scores.dtype)
        return torch.softmax(scores, dim=-1).mean(dim=1) + hidden

    def step(
        self, x: Tensor, past: tuple[Tensor, Tensor], seen: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Self-attention of new positions (B · K, W) to `past` keys and values (B, H, P, D) and to
        themselves, under the mask `seen` (B, 1, K, P + K); also returns all keys and values."""
        now = self.keys_values(x, seen.shape[0])
        key, value = torch.cat([past[0], now[0]], dim=2), torch.cat([past[1], now[1]], dim=2)
        return self(x, key, value, seen), (key, value)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
}


class FeedForward(nn.Module):
    """Two linear layers with an activation between them: Vaswani et al., 2017, section 3.3."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.width, config.hidden)
        self.contract = nn.Linear(config.hidden, config.width)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(self.dropout(self.activation(self.expand(x))))


class Layer(nn.Module):
    """Blocks with residual sums, normalised before the block (Xiong et al., 2020) or after the sum
    (Vaswani et al., 2017, section 3.1). The last block is feed-forward."""

    feed_forward_norm: nn.LayerNorm
    feed_forward: FeedForward

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.dropout = Dropout(config.dropout)

    def before(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        """The input of a block."""
        return norm(x) if self.pre_norm else x

    def after(self, norm: nn.LayerNorm, x: Tensor, change: Tensor) -> Tensor:
        """`x` plus the output of a block."""
        x = x + self.dropout(change)
        return x if self.pre_norm else norm(x)

    def fed_forward(self, x: Tensor) -> Tensor:
        """`x` through the last block."""
        changed = self.feed_forward(self.before(self.feed_forward_norm, x))
        return self.after(self.feed_forward_norm, x, changed)


class EncoderLayer(Layer):
    """Self-attention and feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.heads)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        normed = self.before(self.attention_norm, x)
        keys_values = self.attention.keys_values(normed, mask.shape[0])
        mixed = self.attention(normed, *keys_values, mask)
        return self.fed_forward(self.after(self.attention_norm, x, mixed))


class DecoderLayer(Layer):
    """Self-attention, attention to the memory, and feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.self_norm = nn.LayerNorm(config.width)
        self.self_attention = Attention(config.width, config.heads)
        self.cross_norm = nn.LayerNorm(config.width)
        self.cross_attention = Attention(config.width, config.heads)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | tuple[Tensor, Tensor],
        memory_mask: Tensor,
        past: tuple[Tensor, Tensor] | None,
        mask: Tensor,
        watched: Callable[[Tensor], None] = lambda _: None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(B, T, W), or (B · T, W), through the layer; also returns the self-attention's keys and
        values, past first.

        Args:
            memory: sequences (B, S, W), or their keys and values for the attention to the memory.
                Whatever the layer projects, it projects here: while a layer computes, and only
                then, processes that share its weights have all of them.
            watched: called with the input of the attention to the memory.
        """
        normed = self.before(self.self_norm, x)
        if past is None:
            now = self.self_attention.keys_values(normed, x.shape[0])
            mixed = self.self_attention(normed, *now, mask)
        else:
            mixed, now = self.self_attention.step(normed, past, mask)
        x = self.after(self.self_norm, x, mixed)
        normed = self.before(self.cross_norm, x)
        watched(normed)
        if isinstance(memory, Tensor):
            # Its gradients from this layer are added to each other before those of other layers
            # are, as where processes share the layer's weights: the order shows in the last bit.
            memory = memory.view_as(memory)
            memory = self.cross_attention.keys_values(memory, len(memory))
        x = self.after(self.cross_norm, x, self.cross_attention(normed, *memory, memory_mask))
        return self.fed_forward(x), now

"""A model as its graphs are made from it: ONNX Runtime's operators in the place of PyTorch's.

Models are written for PyTorch alone. While a graph is traced, `lowered` puts subclasses in the
place of some of their classes, which compute the same and are written for ONNX Runtime: attention
as its one operator, products of two dimensions, which take their bias along, and no choice that
depends on the data, because a graph cannot branch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.contract import EncoderDecoder
from model.networks.gemini import Gemini
from model.networks.layers import Attention, EncoderLayer, attend
from model.networks.transformer import Transformer


@contextlib.contextmanager
def lowered(model: EncoderDecoder) -> Iterator[None]:
    """The model computes as its graphs will, for as long as this lasts; its weights stay where
    they are."""
    modules = [module for module in model.modules() if type(module) is Attention]
    kind = type(model)
    bases = [lower for network, lower in LOWERED if isinstance(model, network)]
    try:
        for module in modules:
            module.__class__ = GraphAttention
        if bases:
            model.__class__ = type(f"Graph{kind.__name__}", (*bases, kind), {})
        yield
    finally:
        model.__class__ = kind
        for module in modules:
            module.__class__ = Attention


def fused_operator(g: Any, inputs: Sequence[Any], past: Sequence[Any], heads: int) -> Any:
    """ONNX Runtime's operator for attention, in a graph: of `past` keys and values too, where they
    are given, and then it gives all keys and values back."""
    nothing = g.op("prim::Constant")
    nothing.setType(torch._C.OptionalType.ofTensor())
    query, key, value, mask = inputs
    return g.op(
        "com.microsoft::MultiHeadAttention",
        *(query, key, value, nothing, nothing, mask, *past),
        num_heads_i=heads,
        scale_f=1.0,
        outputs=1 + len(past),
    )


class FusedAttention(torch.autograd.Function):
    """`attend` as the one operator that ONNX Runtime has for it."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, heads: int
    ) -> Tensor:
        return attend(query, key, value, mask)

    @staticmethod
    def symbolic(g: Any, query: Any, key: Any, value: Any, mask: Any, heads: int) -> Any:
        found = fused_operator(g, (query, key, value, mask), (), heads)
        return found.setType(query.type())


class FusedStep(torch.autograd.Function):
    """One step of self-attention that appends to keys and values, as the one operator that ONNX
    Runtime has for it."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        past: Tensor,
        old: Tensor,
        heads: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        def split(x: Tensor) -> Tensor:
            return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)

        keys, values = torch.cat([past, split(key)], dim=2), torch.cat([old, split(value)], dim=2)
        return attend(query, keys, values, mask), keys, values

    @staticmethod
    def symbolic(
        g: Any, query: Any, key: Any, value: Any, mask: Any, past: Any, old: Any, heads: int
    ) -> tuple[Any, ...]:
        found = fused_operator(g, (query, key, value, mask), (past, old), heads)
        return tuple(
            output.setType(like.type())
            for output, like in zip(found, (query, past, old), strict=True)
        )


class GraphAttention(Attention):
    """Attention with fused operators."""

    def keys_values(self, x: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        # Two products, because a graph would copy the parts of one.
        pairs = zip(self.key_value.weight.chunk(2), self.key_value.bias.chunk(2), strict=True)
        key, value = (F.linear(x, weight, bias) for weight, bias in pairs)
        return self.split(key, batch), self.split(value, batch)

    def mixed(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        fused: Any = FusedAttention.apply
        found: Tensor = fused(query, key, value, mask, self.heads)
        return found

    def step(
        self, x: Tensor, past: tuple[Tensor, Tensor], seen: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        width = self.heads * self.head
        scale = self.head**-0.5
        weight = torch.cat([self.query.weight * scale, self.key_value.weight])
        bias = torch.cat([self.query.bias * scale, self.key_value.bias])
        whole = F.linear(x, weight, bias).reshape(-1, seen.shape[2], 3 * width)
        fused: Any = FusedStep.apply
        mixed, key, value = fused(*whole.split(width, dim=2), seen, *past, self.heads)
        return self.output(mixed.flatten(0, 1)), (key, value)


class GraphTransformer(Transformer):
    """Encoder layers over one sequence of all rows."""

    def encode_through(self, layers: Iterable[EncoderLayer], x: Tensor, mask: Tensor) -> Tensor:
        shape = x.shape
        # With a mask for every query, which ONNX Runtime's operator wants, made once for all.
        flat, whole = x.flatten(0, 1), mask.expand(-1, -1, shape[1], -1)
        return super().encode_through(layers, flat, whole).reshape(shape)


class GraphGemini(Gemini):
    """All modalities, and both branches."""

    def is_worth_reading(self, present: Tensor) -> bool:
        return True

    def branches(self, several: Tensor) -> tuple[bool, bool]:
        return True, False


LOWERED: tuple[tuple[type, type], ...] = (
    (Gemini, GraphGemini),
    (Transformer, GraphTransformer),
)
"""Networks, and what stands in their place; a model may be several of them."""

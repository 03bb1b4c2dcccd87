"""A model in the form that is exported: ONNX Runtime's operators instead of PyTorch's.

Models are written for PyTorch alone. During export, `lowered` replaces some of their classes by
equivalent subclasses that are written for ONNX Runtime: attention as its single operator, products
of weights that are computed once, two-dimensional matrix products, which include their bias, and no
branch that depends on the data, because a graph cannot branch.

PyTorch knows shapes and types of ONNX Runtime's operators, not their results: a lowered model is
only for `torch.export`, and the values that it computes are wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.contract import EncoderDecoder
from model.networks.gemini import Gemini
from model.networks.layers import Attention, DecoderLayer, EncoderLayer
from model.networks.transformer import Transformer


@contextlib.contextmanager
def lowered(model: EncoderDecoder) -> Iterator[None]:
    """The model has its lowered form inside this context; its weights stay where they are."""
    kind = type(model)
    networks = [lower for network, lower in NETWORKS if isinstance(model, network)]
    stepping = {
        layer.self_attention for layer in model.modules() if isinstance(layer, DecoderLayer)
    }
    swapped: list[tuple[nn.Module, type[nn.Module], Iterable[str]]] = []
    try:
        for module in list(model.modules()):
            own = type(module)
            lower: Any = LAYERS.get(own)  # not a user's subclass
            if lower is None:
                continue
            if module in stepping:
                lower = GraphStepAttention
            module.__class__ = lower
            products = lower.products(module)
            swapped.append((module, own, products))
            for name, product in products.items():
                module.register_buffer(name, product, persistent=False)
        if networks:
            model.__class__ = type(f"Graph{kind.__name__}", (*networks, kind), {})
        yield
    finally:
        model.__class__ = kind
        for module, own, names in swapped:
            for name in names:
                delattr(module, name)
            module.__class__ = own


class GraphAttention(Attention):
    """Attention as `com.microsoft::MultiHeadAttention`, with 1/√D in the query's weights."""

    query_weight: Tensor
    query_bias: Tensor

    @torch.no_grad()
    def products(self) -> dict[str, Tensor]:
        """Products of weights, by their names in a graph."""
        scale = self.head**-0.5
        return {"query_weight": self.query.weight * scale, "query_bias": self.query.bias * scale}

    def queries(self, x: Tensor) -> Tensor:
        return F.linear(x, self.query_weight, self.query_bias)

    def mixed(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention",
            (query, key, value, None, None, mask),
            attrs={"num_heads": self.heads, "scale": 1.0},
            dtype=query.dtype,
            shape=query.shape,
            version=1,
        )


class GraphStepAttention(GraphAttention):
    """A decoder's self-attention: queries, keys and values of a step as one product, and one
    operator that appends to keys and values, and attends."""

    step_weight: Tensor
    step_bias: Tensor

    @torch.no_grad()
    def products(self) -> dict[str, Tensor]:
        query = super().products()
        weights = query["query_weight"], self.key.weight, self.value.weight
        biases = query["query_bias"], self.key.bias, self.value.bias
        return {"step_weight": torch.cat(weights), "step_bias": torch.cat(biases)}

    def step(
        self, x: Tensor, past: tuple[Tensor, Tensor], seen: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        width = self.heads * self.head
        whole = F.linear(x, self.step_weight, self.step_bias)
        query, key, value = whole.reshape(-1, seen.shape[2], 3 * width).split(width, dim=2)
        batch, heads, before, head = past[0].shape
        grown = batch, heads, before + seen.shape[2], head
        mixed, keys, values = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::MultiHeadAttention",
            (query, key, value, None, None, seen, *past),
            attrs={"num_heads": self.heads, "scale": 1.0},
            dtypes=[query.dtype] * 3,
            shapes=[query.shape, grown, grown],
            version=1,
        )
        return self.output(mixed.flatten(0, 1)), (keys, values)


class GraphTransformer(Transformer):
    """Encoder layers over one sequence of all rows."""

    def encode_through(self, layers: Iterable[EncoderLayer], x: Tensor, mask: Tensor) -> Tensor:
        shape = x.shape
        # ONNX Runtime's operator needs a mask for every query; it is made once for all layers.
        flat, whole = x.flatten(0, 1), mask.expand(-1, -1, shape[1], -1)
        return super().encode_through(layers, flat, whole).reshape(shape)


class GraphGemini(Gemini):
    """Computes all modalities and both branches."""

    def is_worth_reading(self, present: Tensor) -> bool:
        return True

    def branches(self, several: Tensor) -> tuple[bool, bool]:
        return True, False


class GraphLstm(nn.LSTM):
    """ONNX's LSTM instead of PyTorch's, which would become a loop over positions."""

    @torch.no_grad()
    def products(self) -> dict[str, Tensor]:
        """The weights of each layer as ONNX's operator needs them: (directions, 4 · hidden, ...),
        gates in the order input, output, forget, cell, and both biases as one vector."""
        if self.proj_size:
            raise ValueError("ONNX has no LSTM with proj_size")
        directions = ("", "_reverse") if self.bidirectional else ("",)
        tensors = {}
        for layer in range(self.num_layers):
            for kind in ("weight_ih", "weight_hh"):
                parts = [getattr(self, f"{kind}_l{layer}{direction}") for direction in directions]
                tensors[f"graph_{kind}.{layer}"] = torch.stack([*map(_onnx_gates, parts)])
            if self.bias:
                biases = [
                    torch.cat(
                        [
                            _onnx_gates(getattr(self, f"{kind}_l{layer}{direction}"))
                            for kind in ("bias_ih", "bias_hh")
                        ]
                    )
                    for direction in directions
                ]
                tensors[f"graph_bias.{layer}"] = torch.stack(biases)
        return {name.replace(".", "_"): tensor for name, tensor in tensors.items()}

    def forward(  # type: ignore[override]
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        directions = 2 if self.bidirectional else 1
        x = x.transpose(0, 1) if self.batch_first else x
        ends = []
        for layer in range(self.num_layers):
            of_layer = slice(layer * directions, (layer + 1) * directions)
            begin = (None, None) if state is None else (state[0][of_layer], state[1][of_layer])
            length, batch = x.shape[:2]
            y, *end = torch.onnx.ops.symbolic_multi_out(
                "LSTM",
                (
                    x,
                    getattr(self, f"graph_weight_ih_{layer}"),
                    getattr(self, f"graph_weight_hh_{layer}"),
                    getattr(self, f"graph_bias_{layer}") if self.bias else None,
                    None,
                    *begin,
                ),
                attrs={
                    "hidden_size": self.hidden_size,
                    "direction": "bidirectional" if self.bidirectional else "forward",
                },
                dtypes=[x.dtype] * 3,
                shapes=[
                    (length, directions, batch, self.hidden_size),
                    *[(directions, batch, self.hidden_size)] * 2,
                ],
            )
            ends.append(end)
            x = y.transpose(1, 2).flatten(2)  # (length, batch, directions · hidden)
        hidden, cell = (torch.cat(parts) for parts in zip(*ends, strict=True))
        return x.transpose(0, 1) if self.batch_first else x, (hidden, cell)


def _onnx_gates(weight: Tensor) -> Tensor:
    """PyTorch's order is input, forget, cell, output."""
    enter, forget, cell, leave = weight.chunk(4)
    return torch.cat([enter, leave, forget, cell])


LAYERS: dict[type[nn.Module], Any] = {Attention: GraphAttention, nn.LSTM: GraphLstm}
"""Layers and their replacements, wherever a model has them."""
NETWORKS: tuple[tuple[type[nn.Module], type[nn.Module]], ...] = (
    (Gemini, GraphGemini),
    (Transformer, GraphTransformer),
)
"""Networks and their replacements; a model may be an instance of several."""

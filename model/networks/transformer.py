"""The Transformer encoder–decoder: tied embeddings, text in and text out.

Vaswani et al., 2017, with the normalisation before each block (Xiong et al., 2020) or after its
sum. Independent of training, decoding and ONNX; see `model.contract` for what they may use.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.configuration import TransformerConfig
from model.contract import HISTORY, EncoderDecoder, Output, Tensors
from model.modalities.embedding import sinusoids
from model.modalities.known import modalities_in
from model.modalities.sources import Sizes
from model.names import ATTENTION
from model.networks.layers import (
    DecoderLayer,
    Dropout,
    EncoderLayer,
    causal_mask,
    padding_mask,
)
from model.vocabulary import PAD


def last_norm(config: TransformerConfig) -> nn.Module:
    """What follows the last layer: nothing if blocks are normalised after their sum."""
    return nn.LayerNorm(config.width) if config.norm == "pre" else nn.Identity()


class Transformer(EncoderDecoder):
    """See the module. Memory: `cross_key.N`, `cross_value.N` (B, H, S, D) for each decoder layer
    and `mask` (B, 1, 1, S). Cache: `self_key.N`, `self_value.N` (B, H, T, D).
    """

    positions: Tensor
    encoder: Sequence[EncoderLayer]
    decoder: Sequence[DecoderLayer]

    def __init__(self, config: TransformerConfig, sizes: Sizes) -> None:
        super().__init__()
        self.check(sizes)
        width = config.width
        self.config, self.max_length = config, config.max_length
        self.embedding_scale = math.sqrt(width)
        self.target_embedding = nn.Embedding(sizes["target"], width)
        if sizes["shared"]:
            self.source_embedding = self.target_embedding
        else:
            self.source_embedding = nn.Embedding(sizes["source"], width)
        self.register_buffer("positions", sinusoids(config.max_length, width), persistent=False)
        self.dropout = Dropout(config.dropout)
        self.encoder = nn.ModuleList(  # type: ignore[assignment]
            EncoderLayer(config) for _ in range(config.layers)
        )
        self.encoder_norm = last_norm(config)
        self.decoder = nn.ModuleList(  # type: ignore[assignment]
            DecoderLayer(config) for _ in range(config.decoder_layers or config.layers)
        )
        self.decoder_norm = last_norm(config)
        self.output_bias = nn.Parameter(torch.zeros(sizes["target"]))
        self.reset_parameters()

    def layers(self) -> Sequence[nn.Module]:
        return *self.encoder, *self.decoder

    def check(self, sizes: Sizes) -> None:
        """Raises `ValueError` for what this network cannot take."""
        if modalities_in(sizes) != ("text",) or sizes["tasks"] > 1:
            raise ValueError(
                "this model takes text of one task; for other modalities or several tasks say "
                "model: {use: gemini}"
            )

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices; embeddings normal with deviation 1/√width, scaled up in use.

        The matrices of keys and of values are drawn as if they were one matrix with twice as many
        outputs in Glorot and Bengio's formula (as in PyTorch's own attention).
        """
        for name, parameter in self.named_parameters():
            if "embedding" in name:
                nn.init.normal_(parameter, std=self.config.width**-0.5)
            elif name.endswith((".key.weight", ".value.weight")):
                bound = math.sqrt(3.0) * math.sqrt(2.0 / (sum(parameter.shape) + len(parameter)))
                nn.init.uniform_(parameter, -bound, bound)
            elif parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def embed(self, table: nn.Embedding, ids: Tensor) -> Tensor:
        """Ids (B, T) to vectors (B, T, W) with their positions."""
        index = torch.arange(ids.shape[1], device=ids.device)
        vectors = table(ids) * self.embedding_scale
        return self.dropout(vectors + self.positions[index])

    def encode_through(self, layers: Iterable[EncoderLayer], x: Tensor, mask: Tensor) -> Tensor:
        """Sequences (B, S, W) with a mask (B, 1, 1, S) or (B, 1, S, S) through layers."""
        for layer in layers:
            x = layer(x, mask)
        return x

    def encode_hidden(self, source: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The encoder's last layer (B, S, W) and the padding mask (B, 1, 1, S)."""
        ids = source["text"]
        mask = padding_mask(ids != PAD)
        x = self.embed(self.source_embedding, ids)
        return self.encoder_norm(self.encode_through(self.encoder, x, mask)), mask

    def logits(self, x: Tensor) -> Tensor:
        """States (..., W) to (..., vocabulary), through the target embedding's own weights."""
        return F.linear(x, self.target_embedding.weight, self.output_bias)

    def forward(self, source: Mapping[str, Tensor], target: Tensor) -> Output:
        hidden, mask = self.encode_hidden(source)
        x = self.told(self.embed(self.target_embedding, target), source)
        states = self.decode(hidden, mask, x)
        return Output(self.logits(states), states=states)

    def decode(self, hidden: Tensor, memory_mask: Tensor, x: Tensor) -> Tensor:
        """The decoder's states (B, T, W) of embedded targets `x` (B, T, W)."""
        # Padding stands at the end, so the causal mask alone keeps real positions from seeing it.
        mask = causal_mask(x.shape[1], x.device)
        for layer in self.decoder:
            x, _ = layer(x, hidden, memory_mask, None, mask)
        states: Tensor = self.decoder_norm(x)
        return states

    def encode(self, source: Mapping[str, Tensor]) -> Tensors:
        return self.memory(*self.encode_hidden(source))

    def memory(self, hidden: Tensor, mask: Tensor) -> Tensors:
        memory = {"mask": mask}
        flat = hidden.flatten(0, 1)
        for index, layer in enumerate(self.decoder):
            key, value = layer.cross_attention.keys_values(flat, hidden.shape[0])
            memory[f"cross_key.{index}"], memory[f"cross_value.{index}"] = key, value
        return memory

    def empty_cache(self, batch: int) -> Tensors:
        head = self.config.width // self.config.heads
        empty = self.output_bias.new_zeros(batch, self.config.heads, 0, head)
        names = (f"self_{part}.{n}" for n in range(len(self.decoder)) for part in ("key", "value"))
        return dict.fromkeys(names, empty)

    def step(
        self, tokens: Tensor, position: Tensor, seen: Tensor, memory: Tensors, cache: Tensors
    ) -> tuple[Tensor, Tensors]:
        x = self.told(self.embed_step(tokens, position), memory)
        return self.decode_step(x, seen, memory, cache)

    def embed_step(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Ids (B, K) of one position to vectors (B, K, W)."""
        return self.target_embedding(tokens) * self.embedding_scale + self.positions[position]

    def decode_step(
        self, x: Tensor, seen: Tensor, memory: Tensors, cache: Tensors
    ) -> tuple[Tensor, Tensors]:
        """Logits (B, K, vocabulary) and cache after one embedded token (B, K, W) of each
        hypothesis."""
        hypotheses = x.shape[1]
        # Two-dimensional matrix products with their bias are one operator in ONNX Runtime.
        x = x.reshape(-1, self.config.width)
        seen, mask = seen[:, None], memory["mask"].expand(-1, -1, hypotheses, -1)
        grown: Tensors = {}
        asking: list[Tensor] = []
        for n, layer in enumerate(self.decoder):
            cross = memory[f"cross_key.{n}"], memory[f"cross_value.{n}"]
            past = cache[f"self_key.{n}"], cache[f"self_value.{n}"]
            x, now = layer(x, cross, mask, past, seen, asking.append)
            grown[f"self_key.{n}"], grown[f"self_value.{n}"] = now
        if self.attentive:
            read = self.decoder[-1].cross_attention
            grown[ATTENTION] = read.weights(asking[-1], cross[0], mask)
        x = self.decoder_norm(x)
        logits = self.logits(x).reshape(-1, hypotheses, len(self.output_bias))
        return self.wished(logits, x.reshape(-1, hypotheses, self.config.width), memory, grown)

    def example_source(self, batch: int, length: int) -> Tensors:
        return {"text": torch.full((batch, length), 4, dtype=torch.long)}

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        axes = {"text": {1: "tokens"}, "mask": {3: "source"}}
        for n in range(len(self.decoder)):
            for part in ("key", "value"):
                axes[f"cross_{part}.{n}"] = {2: "source"}
                axes[f"self_{part}.{n}"] = {2: HISTORY}
        return axes

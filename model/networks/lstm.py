"""A recurrent encoder–decoder with attention, text in and text out.

A bidirectional LSTM encoder (Hochreiter and Schmidhuber, 1997) and an LSTM decoder with general
attention and input feeding (Luong et al., 2015, sections 3.1 and 3.3); the decoder begins with a
projection of the encoder's mean (Bahdanau et al., 2015, appendix A.2.2, project its last state).
Independent of the Transformer: it shows what the contract requires of a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from model.configuration import LstmConfig
from model.contract import EncoderDecoder, Output, Tensors
from model.modalities.known import modalities_in
from model.modalities.sources import Sizes
from model.names import ATTENTION
from model.networks.layers import Dropout
from model.vocabulary import MASKED, PAD


def reversed_rows(x: Tensor, lengths: Tensor) -> Tensor:
    """(B, S, ...) with the first `lengths` positions of each row reversed, the rest unchanged."""
    index = torch.arange(x.shape[1], device=x.device)[None, :]
    turned = lengths[:, None] - 1 - index
    places = torch.where(turned >= 0, turned, index)
    return torch.gather(x, 1, places[:, :, None].expand_as(x))


class Lstm(EncoderDecoder):
    """See the module. Memory: `keys` and `values` (B, S, W), `mask` (B, S), and `start.N` (B, W),
    the state that each layer begins with. Cache: `hidden.N` and `cell.N` (B, W) for each layer, and
    `context` (B, W), the last attentional state."""

    forwards: Sequence[nn.LSTM]
    backwards: Sequence[nn.LSTM]
    cells: Sequence[nn.LSTMCell]

    def __init__(self, config: LstmConfig, sizes: Sizes) -> None:
        super().__init__()
        if modalities_in(sizes) != ("text",) or sizes["tasks"] > 1:
            raise ValueError(
                "lstm takes text of one task; for other modalities or several tasks say "
                "model: {use: gemini}"
            )
        width, half = config.width, config.width // 2
        self.config, self.max_length = config, config.max_length
        self.target_embedding = nn.Embedding(sizes["target"], width)
        shared = bool(sizes["shared"])
        self.source_embedding = (
            self.target_embedding if shared else nn.Embedding(sizes["source"], width)
        )

        def lstm(_: int) -> nn.LSTM:
            return nn.LSTM(width, half, batch_first=True)

        # One direction each: the second reads rows reversed by their own length, so that padding
        # never comes before the content.
        self.forwards = nn.ModuleList(map(lstm, range(config.layers)))  # type: ignore[assignment]
        self.backwards = nn.ModuleList(map(lstm, range(config.layers)))  # type: ignore[assignment]
        self.cells = nn.ModuleList(  # type: ignore[assignment]
            nn.LSTMCell(2 * width if layer == 0 else width, width) for layer in range(config.layers)
        )
        self.starts = nn.ModuleList(nn.Linear(width, width) for _ in range(config.layers))
        self.key = nn.Linear(width, width, bias=False)
        self.combine = nn.Linear(2 * width, width)
        self.dropout = Dropout(config.dropout)
        self.output_bias = nn.Parameter(torch.zeros(sizes["target"]))
        for name, parameter in self.named_parameters():
            if "embedding" in name:
                nn.init.normal_(parameter, std=width**-0.5)

    def encode(self, source: Mapping[str, Tensor]) -> Tensors:
        present = source["text"] != PAD
        lengths = present.sum(dim=1)
        x = self.dropout(self.source_embedding(source["text"]))
        for ahead, back in zip(self.forwards, self.backwards, strict=True):
            left, _ = ahead(x)
            right, _ = back(reversed_rows(x, lengths))
            x = self.dropout(torch.cat([left, reversed_rows(right, lengths)], dim=2))
        mask = (1.0 - present.to(torch.float32)) * MASKED
        weight = present.to(x.dtype)[:, :, None]
        mean = (x * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
        starts = {f"start.{n}": torch.tanh(start(mean)) for n, start in enumerate(self.starts)}
        return {"keys": self.key(x), "values": x, "mask": mask, **starts}

    def empty_cache(self, batch: int) -> Tensors:
        zeros = self.output_bias.new_zeros(batch, 1, self.config.width)
        names = (f"{part}.{n}" for n in range(self.config.layers) for part in ("hidden", "cell"))
        return {**dict.fromkeys(names, zeros), "context": zeros}

    def step(
        self, tokens: Tensor, position: Tensor, seen: Tensor, memory: Tensors, cache: Tensors
    ) -> tuple[Tensor, Tensors]:
        # The first cache is empty, and does not depend on the source.
        first = (position == 0).to(cache["context"].dtype)
        begun = {
            name: value + first * memory[f"start.{name.removeprefix('hidden.')}"][:, None]
            if name.startswith("hidden.")
            else value
            for name, value in cache.items()
        }
        x = self.told(self.target_embedding(tokens), memory)
        state, grown = self.advance(x, memory, begun)
        return self.wished(self.logits(state), state, memory, grown)

    def advance(self, x: Tensor, memory: Tensors, cache: Tensors) -> tuple[Tensor, Tensors]:
        """One step from embedded tokens (B, K, W): the attentional states (B, K, W), and the
        cache."""
        grown: Tensors = {}
        shape = x.shape
        x = torch.cat([self.dropout(x), cache["context"]], dim=2)
        for n, cell in enumerate(self.cells):
            before = (cache[f"{part}.{n}"].reshape(-1, shape[2]) for part in ("hidden", "cell"))
            hidden, cell_state = cell(x.reshape(-1, x.shape[2]), tuple(before))
            grown[f"hidden.{n}"], grown[f"cell.{n}"] = (
                hidden.reshape(shape),
                cell_state.reshape(shape),
            )
            x = self.dropout(hidden.reshape(shape))
        scores = torch.matmul(x, memory["keys"].transpose(1, 2)) + memory["mask"][:, None]
        weights = torch.softmax(scores, dim=2)
        if self.attentive:
            hidden = (memory["mask"] < 0).to(weights.dtype)
            grown[ATTENTION] = weights + hidden[:, None]
        attended = torch.matmul(weights, memory["values"])
        state = torch.tanh(self.combine(torch.cat([attended, x], dim=2)))
        return state, {**grown, "context": state}

    def logits(self, state: Tensor) -> Tensor:
        """(..., W) to (..., vocabulary), through the target embedding's own weights."""
        weight = self.target_embedding.weight
        return nn.functional.linear(self.dropout(state), weight, self.output_bias)

    def forward(self, source: Mapping[str, Tensor], target: Tensor) -> Output:
        memory = self.encode(source)
        starts = {f"hidden.{n}": memory[f"start.{n}"][:, None] for n in range(self.config.layers)}
        cache = self.empty_cache(len(target)) | starts
        embedded = self.told(self.target_embedding(target), source)
        states = []
        for position in range(target.shape[1]):
            state, cache = self.advance(embedded[:, position : position + 1], memory, cache)
            states.append(state)
        joined = torch.cat(states, dim=1)
        return Output(self.logits(joined), states=joined)

    def example_source(self, batch: int, length: int) -> Tensors:
        return {"text": torch.full((batch, length), 4, dtype=torch.long)}

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        length = {1: "source"}
        states = {name: {1: "hypotheses"} for name in self.empty_cache(1)}
        return {"text": {1: "tokens"}, "keys": length, "values": length, "mask": length, **states}

"""What a model must offer so that train, export and generate can use it without knowing more.

A model is an `EncoderDecoder`: it scores targets in one pass (`forward`), encodes a source once
(`encode`) and takes one decoding step at a time with a cache (`step`). Everything is a dictionary
of named tensors with the batch as the first axis, because those names become the names of the
ONNX graphs' inputs and outputs, and because the decoding loop drops and reorders rows.

The contract knows nothing of text or subwords: a source is a dictionary from modality to tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

Tensors = dict[str, Tensor]


class EncoderDecoder(nn.Module, ABC):
    """Base class of every model.

    Subclasses are made with `(config, vocabulary)`: the `model.configuration.ModelConfig` that
    names them, and sizes `{"source": int, "target": int, "shared": int}`.
    """

    max_length: int
    """Longest source or target in tokens, EOS counted."""

    @abstractmethod
    def forward(self, source: Mapping[str, Tensor], target: Tensor) -> Tensor:
        """Logits (batch, target, vocabulary) of each next token, given the tokens before it.

        `target` (batch, target) starts with BOS and is padded with PAD.
        """

    @abstractmethod
    def encode(self, source: Mapping[str, Tensor]) -> Tensors:
        """The memory of a source: all that `step` needs of it, each tensor (batch, ...)."""

    @abstractmethod
    def empty_cache(self, batch: int) -> Tensors:
        """The cache before the first step: each tensor (batch, ...), with no positions yet."""

    @abstractmethod
    def step(
        self, tokens: Tensor, position: Tensor, memory: Tensors, cache: Tensors
    ) -> tuple[Tensor, Tensors]:
        """One decoding step: logits (batch, vocabulary) and the cache with this step added.

        `tokens` (batch,) are the ids decoded last, BOS at first; `position` () counts from 0.
        """

    @abstractmethod
    def example_source(self, batch: int, length: int) -> Tensors:
        """A source of the right names, types and shapes, for tracing the export."""

    @abstractmethod
    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """For every tensor that crosses a graph's border, its axes of free size and their names.

        The batch axis, 0, is understood and not listed.
        """


def parameter_count(model: nn.Module) -> int:
    """Trainable parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

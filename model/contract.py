"""What a model must offer so that train, export and generate can use it without knowing more.

A model is an `EncoderDecoder`: it scores targets in one pass (`forward`), encodes a source once
(`encode`) and takes one decoding step at a time with a cache (`step`). Everything is a dictionary
of named tensors with the batch as the first axis, because those names become the names of the
ONNX graphs' inputs and outputs, and because the decoding loop drops and reorders rows.

A source is a dictionary of tensors; its keys depend on what the model was made for:

    text          (batch, tokens) int64 subword ids, PAD where a row is shorter or has no text
    image, ...    (batch, positions, features) float32, normalised, for each other modality, under
                  its name; image_length, ... (batch,) int64
    task          (batch,) int64, only where there are several tasks
    wish          (batch, values + wishes) float32, only in training; see `model.wish_embedding`

A length of 0 means that the row lacks the modality. No array has an axis of size 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from model.future import FutureHead
from model.names import MET, WISH
from model.wish_embedding import WishEmbedding
from model.wishes import Wishes

Tensors = dict[str, Tensor]
HISTORY = "past"
"""Name of the axis along which a cache tensor grows; see `EncoderDecoder.empty_cache`."""


class Output(NamedTuple):
    """What `forward` returns."""

    logits: Tensor
    """(batch, target, vocabulary) of each next token, given the tokens before it."""
    divergence: Tensor | None = None
    """(batch, latent) KL of posterior from prior in nats, in training with a latent variable."""
    states: Tensor | None = None
    """(batch, target, width) from which the logits were made; only a model that has them can learn
    wishes."""


class EncoderDecoder(nn.Module, ABC):
    """Base class of every model.

    Subclasses are built with `(config, sizes)`: the `model.configuration.ModelConfig` that names
    them, and `model.modalities.sources.Sizes`.
    """

    max_length: int
    """Longest source or target in positions, EOS counted."""
    latent: int = 0
    """Dimensions of the latent variable; 0 for none."""
    attentive: bool = False
    """Whether `step` also returns `attention` (batch, hypotheses, source), in its cache: how much
    each hypothesis attends to each position of the memory. It sums to 1; positions of padding have
    1, as if they had been read."""

    embedding_scale: float = 1.0
    """What the network multiplies the embeddings of target tokens by."""

    def __init__(self) -> None:
        super().__init__()
        self.wish_embedding: WishEmbedding | None = None
        """What wishes add to the decoder's input, if the model learns them with everything else."""
        self.future: FutureHead | None = None
        """The head that weighs wishes instead, once it is trained: see `model.future`. `step` then
        also returns `met` (batch, hypotheses) in its cache."""

    @property
    def wishes(self) -> Wishes:
        """Those that the model knows. If there are any, the memory has a `wish` (batch, values),
        which the caller makes."""
        knows = self.wish_embedding or self.future
        return Wishes() if knows is None else knows.wishes

    def layers(self) -> Sequence[nn.Module]:
        """Modules that every forward pass goes through, one after the other, and that use their
        weights in their own `forward` alone: processes which share a model have all weights of one
        of them at a time. For none, they have all weights of the model at a time."""
        return ()

    @abstractmethod
    def forward(self, source: Mapping[str, Tensor], target: Tensor) -> Output:
        """Scores each next token, given those before it.

        `target` (batch, target) starts with BOS and is padded with PAD. A latent
        variable is drawn from the posterior in training, and is the prior's mean otherwise.
        """

    @abstractmethod
    def encode(self, source: Mapping[str, Tensor]) -> Tensors:
        """The memory of a source: everything that `step` needs of it, each tensor (batch, ...).

        With a latent variable also `prior_mean` and `prior_deviation` (batch, latent). From them
        the caller makes the `latent` (batch, latent), which replaces them in `step`.
        """

    def posterior(self, source: Mapping[str, Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior means and divergences, each (batch, latent); only with a latent variable."""
        raise NotImplementedError

    @abstractmethod
    def empty_cache(self, batch: int) -> Tensors:
        """The cache before the first step, for one hypothesis of each source.

        There are two kinds of tensors. A history (batch, ...) has a position for every token of
        every hypothesis of the source, none at first, along the axis that `dynamic_axes` names
        HISTORY. A state (batch, hypotheses, ...) has one for each hypothesis.
        """

    @abstractmethod
    def step(
        self, tokens: Tensor, position: Tensor, seen: Tensor, memory: Tensors, cache: Tensors
    ) -> tuple[Tensor, Tensors]:
        """One decoding step of one or more hypotheses of every source, which share its memory.

        Returns logits (batch, hypotheses, vocabulary) and the cache: new states, and histories with
        this step's positions appended, in the order of the hypotheses.

        Args:
            tokens: (batch, hypotheses) last decoded ids, BOS at first.
            position: () number of tokens decoded before.
            seen: (batch, hypotheses, history + hypotheses) float, added to the attention scores:
                0 for positions of a hypothesis's own past and for this one, `MASKED` for those of
                others. So nothing is copied when hypotheses diverge.
        """

    def told(self, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """Embedded targets (batch, target, width) with what was wished for. A network that can be
        told wishes calls this in `forward`, with the source, and in `step`, with the memory."""
        if self.wish_embedding is None or WISH not in given:
            return x
        return x + self.embedding_scale * self.wish_embedding(given[WISH])

    def wished(
        self, logits: Tensor, states: Tensor, memory: Tensors, cache: Tensors
    ) -> tuple[Tensor, Tensors]:
        """The result of a step whose wishes, if there are any, have their weight.

        Args:
            logits: (batch, hypotheses, vocabulary), made from `states` (batch, hypotheses, width).
        """
        if self.future is None:
            return logits, cache
        added, met = self.future(states, memory[WISH])
        return logits + added, {**cache, MET: met}

    @abstractmethod
    def example_source(self, batch: int, length: int) -> Tensors:
        """A source with the right names, types and shapes, for tracing the export: every row has
        every modality that the model was made for."""

    @abstractmethod
    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """For every input and output tensor of a graph, its axes of free size and their names.

        The batch axis, 0, is always free and is not listed.
        """


def parameter_count(model: nn.Module) -> int:
    """Trainable parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

"""The options of models and of training, as a user writes them. Imports no torch.

A model is registered by its configuration, which names the network it is for. So a pipeline can be
checked and planned without loading the network.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["auto", "fp32", "bf16"]
Schedule = Literal["inverse-sqrt", "cosine", "plateau", "constant"]
LARGEST_WIDTH = 65_536
"""Four times that of the largest models: a typing error is told before any memory is taken."""


class ModelConfig(BaseModel):
    """Base of every model's options: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    network: ClassVar[str]
    """"module:Class" of the `model.contract.EncoderDecoder` that takes this configuration."""

    max_length: Annotated[int, Field(ge=8, description="longest sequence, in tokens")] = 512


class TransformerConfig(ModelConfig):
    """A Transformer encoder–decoder with tied embeddings."""

    network: ClassVar[str] = "model.networks.transformer:Transformer"

    layers: Annotated[
        int, Field(ge=1, le=1000, description="encoder layers, and decoder layers")
    ] = 3
    decoder_layers: Annotated[
        int | None, Field(ge=1, le=1000, description="decoder layers, if different")
    ] = None
    width: Annotated[
        int, Field(ge=2, le=LARGEST_WIDTH, description="width of embeddings and layers")
    ] = 256
    heads: Annotated[int, Field(ge=1, description="attention heads; must divide width")] = 4
    feed_forward: Annotated[
        int | None,
        Field(ge=1, le=8 * LARGEST_WIDTH, description="hidden width; 4 × width if not given"),
    ] = None
    dropout: Annotated[float, Field(ge=0, lt=1, description="dropout after each block")] = 0.1
    norm: Annotated[
        Literal["pre", "post"], Field(description="normalise before each block, or after its sum")
    ] = "pre"
    activation: Annotated[
        Literal["relu", "silu", "gelu"], Field(description="activation in feed-forward blocks")
    ] = "relu"

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} must divide width: {self.width}")
        return self

    @property
    def hidden(self) -> int:
        """Hidden width of the feed-forward blocks."""
        return self.feed_forward or 4 * self.width


class GeminiConfig(TransformerConfig):
    """From text, images and audio, alone or together, to text; with a latent variable if asked."""

    network: ClassVar[str] = "model.networks.gemini:Gemini"

    latent: Annotated[
        int,
        Field(
            ge=0,
            description="dimensions of a variational latent; 0 for none: for several outputs, "
            "select in generate is better",
        ),
    ] = 0


class LstmConfig(ModelConfig):
    """A recurrent encoder–decoder with attention, for text."""

    network: ClassVar[str] = "model.networks.lstm:Lstm"

    layers: Annotated[int, Field(ge=1, description="encoder layers, and decoder layers")] = 1
    width: Annotated[
        int, Field(ge=2, le=LARGEST_WIDTH, multiple_of=2, description="width of the states")
    ] = 256
    dropout: Annotated[float, Field(ge=0, lt=1, description="dropout between layers")] = 0.2


class TrainingConfig(BaseModel):
    """The options of the training loop. The defaults suit a small corpus on a CPU."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: Annotated[
        int,
        Field(ge=0, description="updates of the weights; 0 with start: for a head of wishes alone"),
    ] = 1000
    batch_tokens: Annotated[
        int, Field(ge=16, description="batch size: most padded tokens, on either side")
    ] = 2048
    accumulate: Annotated[int, Field(ge=1, description="batches for one update")] = 1
    parts: Annotated[
        Literal[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024],
        Field(
            description="into how many parts, or a multiple, an update is cut: as many processes, "
            "or fewer, then compute the same bytes"
        ),
    ] = 1
    optimizer: Annotated[
        Literal["adamw", "muon"],
        Field(
            description="muon: Muon for the matrices of linear layers, AdamW for the rest; learns "
            "more from each step, which takes longer where batches are small"
        ),
    ] = "adamw"
    learning_rate: Annotated[float, Field(gt=0, description="highest learning rate")] = 1e-3
    schedule: Annotated[Schedule, Field(description="how the rate falls after warm-up")] = (
        "inverse-sqrt"
    )
    warmup: Annotated[int, Field(ge=0, description="steps of linear warm-up")] = 200
    weight_decay: Annotated[float, Field(ge=0, description="decoupled decay")] = 0.01
    betas: Annotated[tuple[float, float], Field(description="AdamW's betas")] = (0.9, 0.98)
    label_smoothing: Annotated[
        float, Field(ge=0, lt=1, description="probability spread evenly over all tokens")
    ] = 0.1
    clip_norm: Annotated[
        float, Field(ge=0, description="largest gradient norm; 0 switches clipping off")
    ] = 1.0
    mix: Annotated[
        dict[str, Annotated[float, Field(gt=0, le=1)]],
        Field(
            description="each task's share of batch_tokens in every step, and of the loss; if not "
            "given, rows are drawn from all tasks"
        ),
    ] = {}
    kl_weight: Annotated[float, Field(ge=0, description="weight of the latent's KL term")] = 1.0
    kl_anneal: Annotated[int, Field(ge=0, description="steps over which kl_weight grows")] = 200
    free_bits: Annotated[
        float, Field(ge=0, description="free bits: KL divergence (nats) per dimension at no cost")
    ] = 0.01
    validate_every: Annotated[int, Field(ge=1, description="steps between validations")] = 200
    select: Annotated[
        Literal["score", "loss"],
        Field(
            description="validation value that selects the best weights; score is BLEU, or "
            "accuracy for tasks with labels, averaged over tasks"
        ),
    ] = "score"
    patience: Annotated[
        int | None, Field(ge=1, description="validations without a better value before stopping")
    ] = None
    average: Annotated[int, Field(ge=1, description="best checkpoints to average")] = 1
    checkpoint_every: Annotated[int, Field(ge=1, description="steps between checkpoints")] = 100
    precision: Annotated[
        Precision, Field(description="auto is bf16 if the device supports it, else fp32")
    ] = "auto"

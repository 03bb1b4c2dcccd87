"""What the exporter and the session agree on: names, and `graphs.json`. Imports nothing heavy."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

DESCRIPTION = "graphs.json"
FORMAT: Literal[2] = 2
WISHING: Literal[3] = 3
TELLING: Literal[4] = 4
"""The format number rises when the session must know more: format 2 has no wishes; 3 has, and steps
tell how likely they are met; 4 has wishes, and steps do not tell this."""
ENCODER, STEP = "encoder.onnx", "step.onnx"
KEEP, REORDER = "keep.onnx", "reorder.onnx"
"""Graphs that select rows of memory and cache, and hypotheses of a recurrent model's states, by
number; for devices whose memory NumPy cannot access."""
ROWS = "rows"
TOKENS, POSITION, SEEN, LOGITS = "tokens", "position", "seen", "logits"
GROWN = "next."
"""Prefix of a cache tensor's name, for the grown tensor that the step graph returns."""
COUNT, FEW, BEST = "choice.count", "choice.few", "choice.best"
VALUES, NORMALIZER = "choice.values", "choice.normalizer"
"""See `exports.making.choice`."""


LARGEST = 1 << 28
"""Numbers of a row that a tensor of the cache has at most, before it grows."""


class Description(BaseModel):
    """What the graphs of a folder take and give: `graphs.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[2, 3, 4] = FORMAT
    source: tuple[str, ...]
    """Inputs of the encoder."""
    encoded: tuple[str, ...]
    """Outputs of the encoder."""
    memory: tuple[str, ...]
    """What every step takes of them."""
    cache: dict[str, tuple[Annotated[int, Field(ge=0)], ...]]
    """What steps pass on, to its shape without the batch."""
    histories: tuple[str, ...]
    """Those of the cache that grow with every step."""
    latent: Annotated[int, Field(ge=0)]
    """Width of the latent variable; 0 for none."""
    attentive: bool
    """Whether steps give attention."""
    wishes: dict[str, tuple[str, ...]] = {}
    """The wishes that steps take, and the values of each; see `model.wishes`."""
    vocabulary: Annotated[int, Field(ge=1)]
    blocks: Annotated[int, Field(ge=1)]
    """See `exports.making.choice`."""
    floats: Literal["float32", "float16", "bfloat16"]
    """NumPy's or ONNX's name of the type of memory and cache."""
    max_length: Annotated[int, Field(ge=1)]
    opset: int

    @field_validator("cache")
    @classmethod
    def _small(cls, cache: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """A description can be damaged, and memory is taken by it."""
        for name, shape in cache.items():
            if math.prod(shape) > LARGEST:
                raise ValueError(f"{name} has {math.prod(shape):,} numbers a row")
        return cache

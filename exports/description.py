"""What the exporter and the session agree on: names, and `graphs.json`. Imports nothing heavy."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

DESCRIPTION, FORMAT = "graphs.json", 2
"""The format number rises when the session must know more."""
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


class Description(BaseModel):
    """What the graphs of a folder take and give: `graphs.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = FORMAT
    source: tuple[str, ...]
    """Inputs of the encoder."""
    encoded: tuple[str, ...]
    """Outputs of the encoder."""
    memory: tuple[str, ...]
    """What every step takes of them."""
    cache: dict[str, tuple[int, ...]]
    """What steps pass on, to its shape without the batch."""
    histories: tuple[str, ...]
    """Those of the cache that grow with every step."""
    latent: int
    """Width of the latent variable; 0 for none."""
    attentive: bool
    """Whether steps give attention."""
    vocabulary: int
    blocks: int
    """See `exports.making.choice`."""
    floats: str
    """NumPy's or ONNX's name of the type of memory and cache."""
    max_length: int
    opset: int

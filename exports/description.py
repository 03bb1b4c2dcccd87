"""Names that the exporter and the session agree on. Imports nothing."""

DESCRIPTION, FORMAT = "graphs.json", 2
"""The format grows with what the session must know."""
ENCODER, STEP = "encoder.onnx", "step.onnx"
KEEP, REORDER = "keep.onnx", "reorder.onnx"
"""Rows of memory and cache, and hypotheses of what a recurrent model carries, by their numbers;
for devices whose memory NumPy cannot reach."""
ROWS = "rows"
TOKENS, POSITION, SEEN, LOGITS = "tokens", "position", "seen", "logits"
GROWN = "next."
"""Put before a cache tensor's name where the step graph gives it back grown."""
COUNT, FEW, BEST = "choice.count", "choice.few", "choice.best"
VALUES, NORMALIZER = "choice.values", "choice.normalizer"
"""See `exports.making.choice`."""

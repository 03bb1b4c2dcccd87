"""Names that the exporter and the session agree on. Imports nothing."""

DESCRIPTION = "graphs.json"
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
"""See `exports.choice`."""

"""Names that the exporter and the session agree on. Imports nothing."""

DESCRIPTION = "graphs.json"
TOKENS, POSITION, LOGITS = "tokens", "position", "logits"
GROWN = "next."
"""Put before a cache tensor's name where the step graph gives it back grown."""

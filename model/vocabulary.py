"""Numbers that networks and decoding share. Imports no torch."""

PAD, BOS, EOS, UNK = 0, 1, 2, 3
MASKED = -1e9
"""Added to an attention score that must not count: exp(-1e9) is exactly 0 in fp32, and -1e9 fits in
bf16."""

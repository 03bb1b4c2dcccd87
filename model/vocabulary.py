"""Numbers that networks and those who decode with them share. Imports no torch."""

PAD, BOS, EOS, UNK = 0, 1, 2, 3
MASKED = -1e9
"""Added to a score of attention that must not count: exp(-1e9) is exactly 0 in fp32, and fits in
bf16."""

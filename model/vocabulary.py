"""Token ids that every vocabulary shares. Apart from the networks, so that no torch comes along."""

PAD, BOS, EOS, UNK = 0, 1, 2, 3

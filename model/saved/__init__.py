"""Models on disk: folders of our own, tensors, Marian checkpoints."""

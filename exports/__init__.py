"""ONNX graphs, their parity with PyTorch, and decoding. Knows nothing of pipelines or stages."""

"""ONNX graphs from models, in all precisions, behind the parity gate. Imports torch."""

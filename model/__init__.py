"""The networks, their text preprocessing and their training.

Plain PyTorch that runs on one device at batch 1. Knows nothing of pipelines, stages or Beam.
"""

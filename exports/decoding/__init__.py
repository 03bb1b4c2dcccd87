"""Decoding over a step protocol: searches, sessions, the translator.

Only `torch_stepper` imports torch.
"""

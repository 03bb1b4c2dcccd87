"""A trained model in the shape of a much larger one, with the same output.

Every vector is repeated several times, and every matrix divides its weights among the copies.
Layers that change nothing are added, and pieces that are never generated. Sums are the same except
for rounding, so a benchmark of the large shape decodes real sentences to their real ends without
training a large model.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from model.configuration import TransformerConfig
from model.modalities.sources import text_sizes
from model.networks.transformer import Transformer
from model.saved.folder import build, load_model
from model.saved.marian import NEVER
from model.saved.tensors import weights


@torch.no_grad()
def widened(folder: Path, layers: int, width: int, heads: int, vocabulary: int) -> Transformer:
    """The Transformer of a model's folder in another shape. `width` and `heads` are the same
    multiple of the model's own."""
    small, config, _ = load_model(folder)
    assert isinstance(small, Transformer) and isinstance(config, TransformerConfig)
    times = width // config.width
    assert times * config.width == width and times * config.heads == heads
    large = build(
        TransformerConfig(layers=layers, width=width, heads=heads, max_length=config.max_length),
        text_sizes(vocabulary, vocabulary),
    )
    assert isinstance(large, Transformer)
    large.positions.copy_(small.positions.repeat(1, times))
    trained = weights(small)
    torch.manual_seed(0)
    for name, parameter in large.named_parameters():
        if name in trained:
            parameter.copy_(_copied(name, trained[name], parameter, times))
        elif "output." in name or "contract." in name:
            parameter.zero_()  # An added layer: its contribution is 0.
    return large.eval()


def _copied(name: str, value: Tensor, target: Tensor, times: int) -> Tensor:
    if name == "output_bias":
        return torch.cat([value, torch.full((len(target) - len(value),), NEVER)])
    if "embedding" in name:
        # The network multiplies embeddings by the root of the width.
        rows = value.repeat(1, times) / times**0.5
        rest = torch.randn(len(target) - len(rows), rows.shape[1]) * rows.std()
        return torch.cat([rows, rest])
    if name.startswith("decoder_norm"):
        # Logits sum over all copies of embeddings, which were scaled down.
        return value.repeat(times) / times**0.5
    return value.repeat(times) if value.dim() == 1 else value.repeat(times, times) / times

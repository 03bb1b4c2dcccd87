"""What stands in the place of a model's classes while its graphs are made."""

from __future__ import annotations

import pytest
import torch

from exports.making.lowering import GraphAttention, lowered
from model.configuration import GeminiConfig, TransformerConfig
from model.contract import EncoderDecoder
from model.modalities.sources import text_sizes
from model.networks.gemini import Gemini
from model.networks.layers import Attention
from model.networks.transformer import Transformer
from model.vocabulary import PAD

SIZES = {**text_sizes(30, 40), "image": 6, "image_columns": 2, "audio": 8, "tasks": 2}


def models() -> list[EncoderDecoder]:
    torch.manual_seed(2)
    text = TransformerConfig(layers=2, width=16, heads=2)
    every = GeminiConfig(layers=1, width=16, heads=2, latent=3, max_length=32)
    return [
        Transformer(text, text_sizes(30, 40)).eval(),
        Transformer(text.model_copy(update={"norm": "post"}), text_sizes(30, 40)).eval(),
        Gemini(every, SIZES).eval(),
    ]


@pytest.mark.parametrize("model", models(), ids=["pre", "post", "gemini"])
@torch.no_grad()
def test_a_lowered_model_computes_the_same_and_is_itself_again(model: EncoderDecoder) -> None:
    source = model.example_source(3, 4)
    source["text"][1, 2:] = PAD
    if "image" in source:  # rows of one modality, of several, and of none of one
        source["image_length"] = torch.tensor([0, 4, 4])
        source["audio_length"] = torch.tensor([4, 0, 4])
    before = {name: type(module) for name, module in model.named_modules()}
    memory = model.encode(source)
    with lowered(model):
        assert any(type(module) is GraphAttention for module in model.modules())
        graph = model.encode(source)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert memory.keys() == graph.keys()
    there = memory["mask"] == 0
    for name, found in memory.items():
        # What stands at positions that are padding is masked, and may be anything.
        present = there.transpose(2, 3) if name.startswith("cross") else torch.ones(())
        torch.testing.assert_close(graph[name] * present, found * present, rtol=0, atol=1e-5)


def test_a_model_is_itself_again_after_an_error() -> None:
    model = models()[2]
    with pytest.raises(KeyError), lowered(model):
        raise KeyError("half way")
    assert type(model) is Gemini
    assert any(type(module) is Attention for module in model.modules())

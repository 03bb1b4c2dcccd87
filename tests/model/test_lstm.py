from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from exports.decoding.greedy import greedy
from exports.decoding.session import SessionStepper
from exports.decoding.torch_stepper import TorchStepper
from exports.making.graphs import export_graphs
from model.configuration import LstmConfig
from model.modalities.sources import text_sizes
from model.networks.lstm import Lstm, reversed_rows
from model.saved.folder import build
from model.vocabulary import EOS, PAD

SOURCE = torch.tensor([[5, 6, 7, 8, EOS], [9, 4, EOS, PAD, PAD], [EOS, PAD, PAD, PAD, PAD]])
TARGET = torch.tensor([[1, 5, 6, 7], [1, 8, 2, PAD], [1, 4, 4, 4]])


@pytest.fixture
def model() -> Lstm:
    torch.manual_seed(0)
    built = build(LstmConfig(layers=2, width=32, dropout=0.3, max_length=32), text_sizes(11, 12))
    assert isinstance(built, Lstm)
    return built.eval()


def test_rows_are_turned_by_their_own_length() -> None:
    x = torch.arange(10.0).reshape(2, 5, 1)
    turned = reversed_rows(x, torch.tensor([3, 5]))[..., 0]
    assert turned.tolist() == [[2, 1, 0, 3, 4], [9, 8, 7, 6, 5]]


@torch.no_grad()
def test_the_encoder_is_pytorchs_bidirectional_lstm(model: Lstm) -> None:
    theirs = torch.nn.LSTM(32, 16, batch_first=True, bidirectional=True)
    ahead, back = model.forwards[0], model.backwards[0]
    for name, parameter in ahead.named_parameters():
        getattr(theirs, name).copy_(parameter)
        getattr(theirs, f"{name}_reverse").copy_(getattr(back, name))
    x = model.source_embedding(SOURCE)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3, 1]), batch_first=True)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    lengths = torch.tensor([5, 3, 1])
    left, _ = ahead(x)
    right, _ = back(reversed_rows(x, lengths))
    outputs = torch.cat([left, reversed_rows(right, lengths)], dim=2)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(outputs[row, :length], expected[row, :length])


@torch.no_grad()
def test_cached_steps_equal_one_pass_and_batches_do_not_matter(model: Lstm) -> None:
    whole = model({"text": SOURCE}, TARGET).logits
    memory, cache = model.encode({"text": SOURCE}), model.empty_cache(3)
    for position in range(4):
        tokens, seen = TARGET[:, position : position + 1], torch.zeros(3, 1, position + 1)
        logits, cache = model.step(tokens, torch.tensor(position), seen, memory, cache)
        torch.testing.assert_close(logits[:, 0], whole[:, position], atol=1e-5, rtol=0)
    for row in range(3):
        length = int((SOURCE[row] != PAD).sum())
        alone = model({"text": SOURCE[row : row + 1, :length]}, TARGET[row : row + 1]).logits
        torch.testing.assert_close(alone[0], whole[row], atol=1e-5, rtol=0)


def test_gradients_reach_every_parameter(model: Lstm) -> None:
    model.train()
    model({"text": SOURCE}, TARGET).logits.logsumexp(-1).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_onnx_equals_pytorch(model: Lstm, tmp_path: Path) -> None:
    export_graphs(model, tmp_path)
    for rows in (np.arange(3), np.array([1])):
        source, limits = {"text": SOURCE.numpy()[rows]}, np.full(len(rows), 12)
        ours = greedy(TorchStepper(model), source, limits)
        theirs = greedy(SessionStepper(tmp_path), source, limits)
        assert [row.tokens for row in ours] == [row.tokens for row in theirs]


def test_what_it_cannot_take_is_refused() -> None:
    with pytest.raises(ValueError, match="use: gemini"):
        build(LstmConfig(), {**text_sizes(11, 12), "image": 12})

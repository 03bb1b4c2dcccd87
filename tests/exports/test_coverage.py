"""The coverage penalty (Wu et al., 2016, equation 14), compared with attention computed by hand
and with a search of all targets."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exports.decoding.beam_search import BeamSearch, beam_search
from exports.decoding.device import open_stepper
from exports.decoding.forced import force
from exports.decoding.hypotheses import Hypothesis
from exports.decoding.session import SessionStepper
from exports.decoding.stepper import Stepper
from exports.decoding.torch_stepper import TorchStepper
from exports.making.graphs import export_graphs
from exports.making.half_precision import halve_graphs
from model.configuration import LstmConfig, ModelConfig, TransformerConfig
from model.contract import EncoderDecoder
from model.modalities.sources import text_sizes
from model.saved.folder import build
from model.vocabulary import BOS, EOS, PAD

VOCABULARY, ROWS = 7, 12
CONFIGS: dict[str, ModelConfig] = {
    "transformer": TransformerConfig(layers=2, width=16, heads=2, max_length=24),
    "lstm": LstmConfig(width=16, max_length=24),
}
WORDS = [token for token in range(VOCABULARY) if token != EOS]
TARGETS = [[*words, EOS] for n in range(4) for words in itertools.product(WORDS, repeat=n)]


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> EncoderDecoder:
    torch.manual_seed(11)
    built = build(CONFIGS[request.param], text_sizes(20, VOCABULARY)).eval()
    built.attentive = True
    bias = built.get_parameter("output_bias")
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if parameter.dim() > 1 and "norm" not in name:
                parameter.mul_(2.5)  # Attends to some positions more than to others.
        bias[EOS] = 1.0
    return built


@pytest.fixture(scope="module")
def source() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    text = random.integers(4, 20, (ROWS, 8))
    for row, length in zip(text, random.integers(1, 8, ROWS), strict=True):
        row[length:] = PAD
        row[length] = EOS
    return {"text": text}


def search(
    stepper: Stepper, source: dict[str, np.ndarray], beam: BeamSearch, limit: int = 6
) -> list[list[Hypothesis]]:
    return beam_search(stepper, source, np.full(len(source["text"]), limit), beam)


def along(stepper: Stepper, source: dict[str, np.ndarray], targets: np.ndarray) -> list[np.ndarray]:
    """Attention (rows, source) at every step of given targets (rows, tokens)."""
    state, attention = stepper.start(source), []
    last = np.full((len(targets), 1), BOS)
    for position in range(targets.shape[1]):
        _, state = stepper.step(state, last, position)
        attention.append(stepper.told(state, "attention")[:, 0])
        last = targets[:, position : position + 1]
    return attention


def test_attention_is_softmax_by_hand(source: dict[str, np.ndarray]) -> None:
    """In one pass over the whole target, without a cache, from the inputs of the last layer."""
    torch.manual_seed(1)
    model: Any = build(CONFIGS["transformer"], text_sizes(20, VOCABULARY)).eval()
    model.attentive = True
    captured: list[Any] = []
    cross_attention = model.decoder[-1].cross_attention
    cross_attention.register_forward_pre_hook(lambda module, inputs: captured.append(inputs))
    targets = np.random.default_rng(2).integers(4, VOCABULARY, (ROWS, 5))
    stepped = along(TorchStepper(model), source, targets)
    captured.clear()
    with torch.no_grad():
        start = torch.full((ROWS, 1), BOS)
        text = torch.from_numpy(source["text"])
        model({"text": text}, torch.cat([start, torch.from_numpy(targets[:, :-1])], dim=1))
        x, key, _, _ = captured[0]
        query = cross_attention.query(x).reshape(ROWS, 5, 2, 8).permute(0, 2, 1, 3)
        scores = (query @ key.transpose(2, 3) / 8**0.5).numpy()
    padding = source["text"] == PAD
    scores[np.broadcast_to(padding[:, None, None], scores.shape)] = -np.inf
    weights = np.exp(scores - scores.max(axis=3, keepdims=True))
    expected = (weights / weights.sum(axis=3, keepdims=True)).mean(axis=1)
    expected[np.broadcast_to(padding[:, None], expected.shape)] = 1
    np.testing.assert_allclose(np.stack(stepped, axis=1), expected, atol=1e-5)


def test_onnx_attends_as_pytorch(
    model: EncoderDecoder, graphs: Path, source: dict[str, np.ndarray]
) -> None:
    targets = np.random.default_rng(2).integers(4, VOCABULARY, (ROWS, 5))
    ours, theirs = TorchStepper(model), SessionStepper(graphs)
    padding = source["text"] == PAD
    pairs = zip(along(ours, source, targets), along(theirs, source, targets), strict=True)
    for our_attention, their_attention in pairs:
        np.testing.assert_allclose(our_attention, their_attention, atol=1e-5)
        np.testing.assert_allclose(np.where(padding, 0, our_attention).sum(axis=1), 1, atol=1e-5)
        assert (our_attention[padding] == 1).all()


def test_padding_counts_as_read_in_half_precision(
    graphs: Path, source: dict[str, np.ndarray], tmp_path: Path
) -> None:
    halve_graphs(graphs, tmp_path, "fp16")
    targets = np.random.default_rng(2).integers(4, VOCABULARY, (ROWS, 5))
    exact, low = SessionStepper(graphs), open_stepper(tmp_path)
    pairs = zip(along(exact, source, targets), along(low, source, targets), strict=True)
    for exact_attention, low_attention in pairs:
        assert (low_attention[source["text"] == PAD] == 1).all()
        np.testing.assert_allclose(exact_attention, low_attention, atol=0.02)


@pytest.mark.parametrize("weight", [0.2, 1.0])
def test_the_best_are_those_of_all_targets(
    model: EncoderDecoder, source: dict[str, np.ndarray], weight: float
) -> None:
    stepper = TorchStepper(model)
    beam = BeamSearch(size=1600, best=5, stop="bound", coverage=weight)
    changed = 0
    for row in range(5):
        row_source = {"text": source["text"][row : row + 1]}
        forced = force(stepper, row_source, TARGETS, of_row=len(TARGETS))
        scores, plain = [], []
        for target, score in zip(TARGETS, forced, strict=True):
            attended = np.sum(along(stepper, row_source, np.array([target])), axis=0)[0]
            penalty = np.log(np.minimum(attended, 1)).sum()
            plain.append(score.score / score.tokens)
            scores.append(score.score / score.tokens + weight * penalty)
        order = np.argsort(-np.array(scores))[:5]
        changed += list(order) != list(np.argsort(-np.array(plain))[:5])
        (hypotheses,) = search(stepper, row_source, beam, limit=4)
        assert [[*h.tokens, EOS] for h in hypotheses] == [TARGETS[number] for number in order]
        beam_scores = [beam.score_of(hypothesis) for hypothesis in hypotheses]
        np.testing.assert_allclose(beam_scores, np.array(scores)[order], atol=1e-3)
    assert changed


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_a_row_does_not_depend_on_its_batch(
    model: EncoderDecoder, graphs: Path, source: dict[str, np.ndarray], kind: str
) -> None:
    stepper: Stepper = TorchStepper(model) if kind == "torch" else SessionStepper(graphs)
    beam = BeamSearch(4, best=2, coverage=0.5)
    together = search(stepper, source, beam)
    assert any(hypotheses[0].coverage < -0.1 for hypotheses in together)
    for row in range(ROWS):
        length = int((source["text"][row] != PAD).sum())
        (alone,) = search(stepper, {"text": source["text"][row : row + 1, :length]}, beam)
        assert [h.tokens for h in alone] == [h.tokens for h in together[row]]
        for single, batched in zip(alone, together[row], strict=True):
            assert single.coverage == pytest.approx(batched.coverage, abs=1e-3)


def test_it_takes_attention(
    model: EncoderDecoder, source: dict[str, np.ndarray], tmp_path: Path
) -> None:
    model.attentive = False
    try:
        export_graphs(model, tmp_path)
        for stepper in (TorchStepper(model), SessionStepper(tmp_path)):
            with pytest.raises(ValueError, match="exported with attention: true"):
                search(stepper, source, BeamSearch(2, coverage=0.1))
    finally:
        model.attentive = True

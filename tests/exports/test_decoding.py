"""Decoding: the same tokens through PyTorch and ONNX Runtime, alone and in any batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from exports.decoding.batches import in_batches
from exports.decoding.device import open_stepper
from exports.decoding.forced import force
from exports.decoding.greedy import greedy
from exports.decoding.hypotheses import Hypothesis
from exports.decoding.session import ProviderError, SessionStepper
from exports.decoding.torch_stepper import TorchStepper
from exports.making.parity import Parity, ParityError, logits_along, same_logits, same_tokens
from model.batching import Ragged
from model.configuration import TransformerConfig
from model.contract import EncoderDecoder
from model.modalities.sources import text_sizes
from model.modalities.target import text_limits
from model.saved.folder import build
from model.vocabulary import BOS, EOS


@pytest.fixture(scope="module")
def model() -> EncoderDecoder:
    torch.manual_seed(3)
    config = TransformerConfig(layers=2, width=32, heads=4, max_length=64)
    built = build(config, text_sizes(40, 40)).eval()
    bias = built.get_parameter("output_bias")
    with torch.no_grad():
        # Depends on its source and ends earlier than a fresh model would, so that rows finish at
        # different steps.
        bias[EOS] = 1.5
        for name, parameter in built.named_parameters():
            if "source_embedding" in name or "cross" in name:
                parameter.mul_(2)
    return built


@pytest.fixture(scope="module")
def source() -> Ragged:
    random = np.random.default_rng(0)
    return Ragged.of(
        [[*random.integers(4, 40, random.integers(1, 30)).tolist(), EOS] for _ in range(120)]
    )


def decode(stepper: object, source: Ragged, batch_tokens: int) -> list[Hypothesis]:
    limits = text_limits(source.lengths, 64)

    def batch(rows: np.ndarray) -> list[Hypothesis]:
        return greedy(stepper, {"text": source.padded(rows)}, limits[rows])  # type: ignore[arg-type]

    return in_batches(source.lengths, batch_tokens, batch)


def test_rows_finish_at_different_steps(model: EncoderDecoder, source: Ragged) -> None:
    lengths = [len(row.tokens) for row in decode(TorchStepper(model), source, 500)]
    assert len(set(lengths)) > 20 and min(lengths) < 5 and max(lengths) > 50


def test_onnx_decodes_the_tokens_of_pytorch(
    model: EncoderDecoder, graphs: Path, source: Ragged
) -> None:
    ours, theirs = (
        decode(TorchStepper(model), source, 500),
        decode(SessionStepper(graphs), source, 500),
    )
    assert [row.tokens for row in ours] == [row.tokens for row in theirs]
    # fp32 sums over up to 40 tokens, in another order.
    assert [row.score for row in ours] == pytest.approx([row.score for row in theirs], abs=1e-3)


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_any_batch_equals_a_batch_of_one(
    model: EncoderDecoder, graphs: Path, source: Ragged, kind: str
) -> None:
    stepper = TorchStepper(model) if kind == "torch" else SessionStepper(graphs)
    alone = decode(stepper, source, 1)
    for batch_tokens in (60, 700, 100_000):
        together = decode(stepper, source, batch_tokens)
        assert [row.tokens for row in together] == [row.tokens for row in alone]
        assert [row.finished for row in together] == [row.finished for row in alone]


@torch.no_grad()
def test_greedy_equals_the_argmax_of_whole_passes(model: EncoderDecoder, source: Ragged) -> None:
    """Without a cache: the whole prefix goes through the model for every token."""
    for row in range(12):
        text = {"text": torch.from_numpy(source.padded(np.array([row])))}
        tokens = [BOS]
        limit = int(text_limits(source.lengths, 64)[row])
        while len(tokens) <= limit:
            best = int(model(text, torch.tensor([tokens])).logits[0, -1].argmax())
            if best == EOS:
                break
            tokens.append(best)
        hypotheses = greedy(
            TorchStepper(model), {"text": source.padded(np.array([row]))}, np.array([limit])
        )
        assert hypotheses[0].tokens == tokens[1:]


def test_translate_and_score_agree(model: EncoderDecoder, graphs: Path, source: Ragged) -> None:
    stepper = SessionStepper(graphs)
    decoded = decode(stepper, source, 500)
    rows = [row for row in range(len(source)) if decoded[row].finished][:20]
    targets = [[*decoded[row].tokens, EOS] for row in rows]
    forced = force(stepper, {"text": source.padded(np.array(rows))}, targets)
    for row, score in zip(rows, forced, strict=True):
        assert score.correct == score.tokens == len(decoded[row].tokens) + 1
        assert score.score == pytest.approx(decoded[row].score, abs=1e-3)


def test_limits_hold(model: EncoderDecoder, source: Ragged) -> None:
    limits = np.array([0, 1, 3])
    batch = {"text": source.padded(np.arange(3))}
    for row, limit in zip(greedy(TorchStepper(model), batch, limits), limits, strict=True):
        assert len(row.tokens) <= limit


def test_the_gate_passes_the_graphs_and_measures(
    model: EncoderDecoder, graphs: Path, source: Ragged
) -> None:
    batches = [({"text": source.padded(np.arange(8))}, np.full(8, 12))]
    steppers = TorchStepper(model), SessionStepper(graphs)
    assert 0 < same_logits(*steppers, batches, 1e-3) < 1e-3
    assert same_tokens(*steppers, batches, 1e-3) == Parity(8, 8)


def biased(graphs: Path, folder: Path, bias: float) -> SessionStepper:
    """Graphs with a higher bias for one token."""
    for file in graphs.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    graph = onnx.load(str(folder / "step.onnx"))
    weight = next(w for w in graph.graph.initializer if w.name.endswith("output_bias"))
    values = numpy_helper.to_array(weight).copy()
    values[7] += bias
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(graph, str(folder / "step.onnx"))
    return SessionStepper(folder)


def test_the_gate_refuses_a_graph_with_one_changed_weight(
    model: EncoderDecoder, graphs: Path, source: Ragged, tmp_path: Path
) -> None:
    batches = [({"text": source.padded(np.arange(8))}, np.full(8, 12))]
    with pytest.raises(ParityError, match=r"of a logit 1.00e-02 .* nothing was published"):
        same_logits(TorchStepper(model), biased(graphs, tmp_path, 0.01), batches, 1e-3)


def test_the_gate_lets_tokens_differ_only_where_they_are_as_good(
    model: EncoderDecoder, graphs: Path, source: Ragged, tmp_path: Path
) -> None:
    """Where two outputs first differ, the model scores its own token higher by some margin. The
    test computes the margin for each row alone, after the tokens that both have generated; later
    tokens do not count."""
    ours, changed = TorchStepper(model), biased(graphs, tmp_path, 0.2)
    margins = []
    for row in range(80):
        batch = {"text": source.padded(np.array([row]))}
        our_tokens, their_tokens = (
            [*greedy(stepper, batch, np.array([12]))[0].tokens, EOS] for stepper in (ours, changed)
        )
        if our_tokens != their_tokens:
            position = next(n for n in range(len(our_tokens)) if our_tokens[n] != their_tokens[n])
            last = list(logits_along(ours, batch, [our_tokens[:position]]))[-1][0]
            margins.append(last[our_tokens[position]] - last[their_tokens[position]])
    assert 0 < max(margins) < 0.2 + 1e-4
    batches = [({"text": source.padded(np.arange(n, n + 40))}, np.full(40, 12)) for n in (0, 40)]
    parity = same_tokens(ours, changed, batches, max(margins) + 1e-4)
    assert parity == Parity(80, 80 - len(margins))
    with pytest.raises(ParityError, match=f"{len(margins)} of 80 rows.* is clear"):
        same_tokens(ours, changed, batches, max(margins) - 1e-4)


def test_graphs_of_another_format_are_told(graphs: Path, tmp_path: Path) -> None:
    for file in graphs.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    text = (tmp_path / "graphs.json").read_text()
    (tmp_path / "graphs.json").write_text(text.replace('"format"', '"formerly"'))
    with pytest.raises(ValueError, match="export it again"):
        open_stepper(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA loads on this machine")
def test_a_provider_that_does_not_load_is_an_error(graphs: Path) -> None:
    with pytest.raises(ProviderError, match="no execution provider of cuda could be used"):
        SessionStepper(graphs, ("cuda",))
    assert SessionStepper(graphs, ("cuda", "cpu")).provider == "cpu"


@pytest.mark.gpu
def test_pytorch_decodes_alike_on_gpu_and_cpu(model: EncoderDecoder, source: Ragged) -> None:
    ours = decode(TorchStepper(model), source, 500)
    theirs = decode(TorchStepper(model.cuda()), source, 500)
    model.cpu()
    same = sum(a.tokens == b.tokens for a, b in zip(ours, theirs, strict=True))
    # TF32 is off by default, so only near ties may differ.
    assert same >= 0.97 * len(source)


@pytest.mark.gpu
def test_onnx_runtime_decodes_alike_on_cuda(graphs: Path, source: Ragged) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this build of ONNX Runtime has no CUDA provider")
    ours, theirs = (
        decode(SessionStepper(graphs), source, 500),
        decode(SessionStepper(graphs, ("cuda",)), source, 500),
    )
    assert sum(a.tokens == b.tokens for a, b in zip(ours, theirs, strict=True)) >= 0.97 * len(
        source
    )

"""8-bit graphs: close to the fp32 graphs, smaller, and rows are independent of their batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from exports.decoding.batches import in_batches
from exports.decoding.beam_search import BeamSearch, beam_search
from exports.decoding.forced import force
from exports.decoding.greedy import greedy
from exports.decoding.hypotheses import Hypothesis
from exports.decoding.session import SessionStepper
from exports.making.graphs import export_graphs
from exports.making.parity import ParityError, precision_loss
from exports.making.quantization import quantize_graphs
from model.batching import Ragged
from model.configuration import LstmConfig, ModelConfig, TransformerConfig
from model.modalities.sources import text_sizes
from model.modalities.target import text_limits
from model.saved.folder import build
from model.vocabulary import BOS, EOS

CONFIGS = {
    "transformer": TransformerConfig(layers=2, width=64, heads=4, max_length=64),
    "lstm": LstmConfig(width=64, max_length=64),
}


@pytest.fixture(scope="module")
def source() -> Ragged:
    random = np.random.default_rng(0)
    return Ragged.of(
        [[*random.integers(4, 40, random.integers(1, 20)).tolist(), EOS] for _ in range(80)]
    )


def decode(stepper: SessionStepper, source: Ragged, batch_tokens: int) -> list[Hypothesis]:
    limits = text_limits(source.lengths, 64)

    def batch(rows: np.ndarray) -> list[Hypothesis]:
        return greedy(stepper, {"text": source.padded(rows)}, limits[rows])

    return in_batches(source.lengths, batch_tokens, batch)


@pytest.fixture(scope="module", params=list(CONFIGS))
def folders(
    request: pytest.FixtureRequest, source: Ragged, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Graphs in fp32 and in int8."""
    config: ModelConfig = CONFIGS[request.param]
    torch.manual_seed(3)
    model = build(config, text_sizes(40, 40)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "norm" not in name:
                parameter.mul_(2)  # Depends on its source, so that rows end at different steps.
        model.get_parameter("output_bias")[EOS] = 3 if request.param == "transformer" else 0
    exact, low = tmp_path_factory.mktemp("fp32"), tmp_path_factory.mktemp("int8")
    export_graphs(model, exact)
    quantize_graphs(exact, low, lambda stepper: decode(stepper, source.take(np.arange(40)), 300))
    return exact, low


def logits(folder: Path, source: Ragged) -> np.ndarray:
    stepper = SessionStepper(folder)
    state = stepper.start({"text": source.padded(np.arange(len(source)))})
    step_logits, _ = stepper.step(state, np.full((len(source), 1), BOS), 0)
    return step_logits[:, 0]


def test_logits_stay_near(folders: tuple[Path, Path], source: Ragged) -> None:
    exact, low = (logits(folder, source) for folder in folders)
    assert not np.array_equal(exact, low)
    assert np.abs(exact - low).max() < 0.1 * exact.std() * 3
    correlation = np.corrcoef(exact.ravel(), low.ravel())[0, 1]
    assert correlation > 0.995


def test_sums_of_two_products_fit_into_16_bits(folders: tuple[Path, Path]) -> None:
    """vpmaddubsw saturates: Intel's manual, volume 2B, PMADDUBSW. ONNX Runtime's quantisation guide
    names it as the reason for `reduce_range`."""
    graphs = [onnx.load(str(folders[1] / name)).graph for name in ("encoder.onnx", "step.onnx")]
    for graph in graphs:
        values = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
        products = [node for node in graph.node if node.op_type == "MatMulIntegerToFloat"]
        largest = [np.abs(values[node.input[1]].astype(int)).max() for node in products]
        assert products and set(largest) == {64}
        assert 2 * 255 * max(largest) < 1 << 15


def test_no_product_with_constants_is_left_in_fp32(folders: tuple[Path, Path]) -> None:
    for name in ("encoder.onnx", "step.onnx"):
        graph = onnx.load(folders[1] / name).graph
        large = {
            value.name
            for value in graph.initializer
            if len(value.dims) == 2 and numpy_helper.to_array(value).dtype == np.float32
        }
        for node in graph.node:
            # Tables of positions are exact; an LSTM operator has its own weights.
            if node.op_type in ("MatMul", "Gemm"):
                assert not large & set(node.input), node.name
        assert any(node.op_type == "MatMulIntegerToFloat" for node in graph.node)


def test_a_row_does_not_depend_on_its_batch(folders: tuple[Path, Path], source: Ragged) -> None:
    stepper = SessionStepper(folders[1])
    alone = decode(stepper, source, 1)
    assert len({len(row.tokens) for row in alone}) > 3
    for batch_tokens in (60, 10_000):
        assert [row.tokens for row in decode(stepper, source, batch_tokens)] == [
            row.tokens for row in alone
        ]


def test_translate_and_score_agree(folders: tuple[Path, Path], source: Ragged) -> None:
    stepper, rows = SessionStepper(folders[1]), np.arange(6)
    batch, limits = {"text": source.padded(rows)}, np.full(6, 9)
    hypotheses = [row[0] for row in beam_search(stepper, batch, limits, BeamSearch(3))]
    targets = [
        [*hypothesis.tokens, EOS] if hypothesis.finished else hypothesis.tokens
        for hypothesis in hypotheses
    ]
    for hypothesis, forced in zip(hypotheses, force(stepper, batch, targets), strict=True):
        assert forced.score == pytest.approx(hypothesis.score, abs=1e-3)


def test_what_was_not_calibrated_for_saturates(folders: tuple[Path, Path], source: Ragged) -> None:
    """Ids that calibration did not see can exceed the ranges; no value wraps around."""
    few = Ragged.of([[4, EOS]] * 2)
    calibrated = folders[1].parent / f"{folders[1].name}-few"
    calibrated.mkdir(exist_ok=True)
    quantize_graphs(folders[0], calibrated, lambda stepper: decode(stepper, few, 300))
    exact, low = (logits(folder, source) for folder in (folders[0], calibrated))
    assert np.isfinite(low).all()
    assert np.corrcoef(exact.ravel(), low.ravel())[0, 1] > 0.8


def test_the_gate_measures_the_mean_loss_and_refuses() -> None:
    exact, low = {"bleu.a": 30.0, "accuracy.b": 98.0}, {"bleu.a": 29.0, "accuracy.b": 98.5}
    assert precision_loss(exact, low, 0.5) == pytest.approx(0.25)
    with pytest.raises(ParityError, match=r"loses 0\.25 .* more than 0\.2 \(bleu\.a 30\.00 to 29"):
        precision_loss(exact, low, 0.2)

"""Stepping with all inputs and outputs bound to a device: the CPU, and CUDA where there is one. It
gives the same tokens as the plain stepper, for any number of steps between two copies back."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from exports.decoding.beam_search import BeamSearch, beam_search
from exports.decoding.constraints import Constraints
from exports.decoding.device import DeviceStepper, open_stepper
from exports.decoding.greedy import greedy
from exports.decoding.hypotheses import Hypothesis
from exports.decoding.sampling import Sampling
from exports.decoding.session import ProviderError, SessionStepper
from exports.decoding.stepper import Source, Stepper
from exports.decoding.torch_stepper import TorchStepper
from exports.making.half_precision import Half, halve_graphs
from exports.making.parity import logits_along
from model.configuration import GeminiConfig, LstmConfig, ModelConfig, TransformerConfig
from model.contract import EncoderDecoder
from model.modalities.sources import text_sizes
from model.saved.folder import build
from model.vocabulary import EOS, PAD

ROWS, VOCABULARY, LONGEST = 24, 40, 48
CONFIGS: dict[str, ModelConfig] = {
    "transformer": TransformerConfig(layers=2, width=32, heads=4, max_length=LONGEST),
    "lstm": LstmConfig(width=32, max_length=LONGEST),
    "gemini": GeminiConfig(layers=2, width=32, heads=4, latent=4, max_length=LONGEST),
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> EncoderDecoder:
    torch.manual_seed(3)
    built = build(CONFIGS[request.param], text_sizes(40, VOCABULARY)).eval()
    bias = built.get_parameter("output_bias")
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if parameter.dim() > 1 and "norm" not in name:
                parameter.mul_(2)  # Depends on its source, so that rows end at different steps.
        bias[EOS] = {"lstm": 0.0, "transformer": 3.0, "gemini": 8.0}[request.param]
    return built


@pytest.fixture(scope="module")
def source() -> Source:
    random = np.random.default_rng(0)
    text = random.integers(4, 40, (ROWS, 20))
    for row, length in zip(text, random.integers(1, 20, ROWS), strict=True):
        row[length:] = PAD
        row[length] = EOS
    return {"text": text}


LIMITS = np.array([0, 1, 7, 8, 9, 17, *[30] * (ROWS - 6)])


def decode(stepper: Stepper, source: Source, stride: int | None = None) -> list[Hypothesis]:
    if stride is not None:
        stepper.stride = stride
    return greedy(stepper, source, LIMITS)


def assert_equal(ours: list[Hypothesis], theirs: list[Hypothesis]) -> None:
    assert [row.tokens for row in ours] == [row.tokens for row in theirs]
    assert [row.finished for row in ours] == [row.finished for row in theirs]
    for our_row, their_row in zip(ours, theirs, strict=True):
        assert len(our_row.gains) == len(their_row.gains)
        # A graph and PyTorch: fp32 sums in a different order.
        np.testing.assert_allclose(our_row.gains, their_row.gains, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 3, 8, 100])
def test_steps_ahead_of_a_look_change_nothing(
    model: EncoderDecoder, graphs: Path, source: Source, stride: int
) -> None:
    expected = decode(SessionStepper(graphs), source)
    assert len({len(row.tokens) for row in expected}) > 5
    assert 3 < sum(row.finished for row in expected) < ROWS
    for stepper in (SessionStepper(graphs), DeviceStepper(graphs), TorchStepper(model)):
        assert_equal(decode(stepper, source, stride), expected)


def test_every_search_finds_the_same(graphs: Path, source: Source) -> None:
    plain, bound = SessionStepper(graphs), DeviceStepper(graphs)
    keys = [str(row) for row in range(ROWS)]
    for rules in (Constraints(), Constraints(minimum=3, no_repeat=2)):
        ours, theirs = (
            beam_search(stepper, source, LIMITS, BeamSearch(4, best=2), rules)
            for stepper in (bound, plain)
        )
        for our_row, their_row in zip(ours, theirs, strict=True):
            assert_equal(our_row, their_row)
        for sampling in (Sampling(temperature=1.0), Sampling(latent_temperature=2.0)):
            assert_equal(
                greedy(bound, source, LIMITS, sampling, keys, rules),
                greedy(plain, source, LIMITS, sampling, keys, rules),
            )


@pytest.mark.parametrize("least", [1, 4, 32])
def test_histories_stay_in_the_room_made_for_them(
    graphs: Path, source: Source, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exports.decoding.device.LEAST_POSITIONS", least)
    plain, bound = SessionStepper(graphs), DeviceStepper(graphs)
    assert_equal(decode(bound, source), decode(plain, source))
    ours, theirs = (
        beam_search(stepper, source, LIMITS, BeamSearch(3)) for stepper in (bound, plain)
    )
    for our_row, their_row in zip(ours, theirs, strict=True):
        assert_equal(our_row, their_row)
    state = bound.start(source)
    states = []
    for position in range(16):
        if position in (7, 8):
            states.append(state := bound.keep(state, np.arange(ROWS - position)))
        tokens = np.full((len(state.seen), 1), 5)
        _, state = bound.best(state, tokens, position, 1)
        states.append(state)
    for name in bound.histories:
        addresses = [state.cache[name].data_ptr() for state in states]
        assert all(address != following for address, following in pairwise(addresses))
        # Buffers of 1, 2, 4, 8 and 16 positions, of 4, 8 and 16, or of 32; two of each.
        assert len(set(addresses)) <= 2 * {1: 5, 4: 3, 32: 1}[least]


def test_the_cpu_takes_the_plain_stepper_and_halves_the_bound_one(
    graphs: Path, tmp_path: Path
) -> None:
    assert type(open_stepper(graphs)) is SessionStepper
    halve_graphs(graphs, tmp_path, "fp16")
    assert type(open_stepper(tmp_path)) is DeviceStepper


def test_half_precision_stays_near(graphs: Path, source: Source, tmp_path: Path) -> None:
    """fp16 has 11 bits, so a logit of a few units is accurate to about a hundredth."""
    halve_graphs(graphs, tmp_path, "fp16")
    exact, low = SessionStepper(graphs), open_stepper(tmp_path)
    tokens = [row.tokens for row in decode(exact, source)]
    pairs = zip(logits_along(exact, source, tokens), logits_along(low, source, tokens), strict=True)
    largest = max(float(np.abs(full - half).max()) for full, half in pairs)
    assert 0 < largest < 0.05
    assert low.floats == "float16"
    for name in ("encoder.onnx", "step.onnx"):
        small, large = ((folder / name).stat().st_size for folder in (tmp_path, graphs))
        assert small < 0.75 * large  # with weights this small, the graph itself is a large part
    same = sum(
        half.tokens == full.tokens
        for half, full in zip(decode(low, source), decode(exact, source), strict=True)
    )
    assert same >= 0.8 * ROWS  # near ties may fall the other way


def test_masked_positions_stay_numbers_in_half_precision(graphs: Path, tmp_path: Path) -> None:
    """A row with only padding, in a batch with a row without padding."""
    halve_graphs(graphs, tmp_path, "fp16")
    text = np.full((2, 9), PAD)
    text[0] = 5
    stepper = open_stepper(tmp_path)
    for logits in logits_along(stepper, {"text": text}, [[4, 5], [6]]):
        assert np.isfinite(logits).all()


def halve(graphs: Path, output: Path, precision: Half) -> None:
    try:
        halve_graphs(graphs, output, precision)
    except ValueError as error:
        assert "no LSTM in bf16" in str(error)
        pytest.skip(str(error))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_types_fit_all_through_the_graphs(graphs: Path, tmp_path: Path, precision: Half) -> None:
    """ONNX's own type inference, and only 16-bit weights except where tokens are chosen."""
    halve(graphs, tmp_path, precision)
    for path in tmp_path.glob("*.onnx"):
        inferred = onnx.shape_inference.infer_shapes(
            onnx.load(str(path)), check_type=True, strict_mode=True
        )
        wide = {
            weight.name
            for weight in inferred.graph.initializer
            if weight.data_type == TensorProto.FLOAT and len(weight.dims)
        }
        assert not wide, path.name


def test_bf16_is_refused_where_nothing_computes_it(graphs: Path, tmp_path: Path) -> None:
    halve(graphs, tmp_path, "bf16")
    with pytest.raises(ProviderError, match="no execution provider of cpu could be used"):
        open_stepper(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA loads on this machine")
def test_tensorrt_that_does_not_load_is_an_error(graphs: Path) -> None:
    with pytest.raises(ProviderError, match="tensorrt: "):
        open_stepper(graphs, ("tensorrt",))
    assert open_stepper(graphs, ("tensorrt", "cpu")).provider == "cpu"


def on_cuda(graphs: Path) -> SessionStepper:
    try:
        return open_stepper(graphs, ("cuda",))
    except ProviderError as error:
        pytest.skip(str(error))


@pytest.mark.gpu
def test_cuda_decodes_alike(graphs: Path, source: Source) -> None:
    stepper = on_cuda(graphs)
    assert type(stepper) is DeviceStepper
    expected = decode(SessionStepper(graphs), source)
    same = sum(
        cuda_row.tokens == cpu_row.tokens
        for cuda_row, cpu_row in zip(decode(stepper, source), expected, strict=True)
    )
    assert same >= 0.9 * ROWS  # TF32 may be on; near ties may differ


@pytest.mark.gpu
def test_cuda_searches_with_beams_alike(graphs: Path, source: Source) -> None:
    beam = BeamSearch(4)
    ours, theirs = (
        beam_search(stepper, source, LIMITS, beam)
        for stepper in (on_cuda(graphs), SessionStepper(graphs))
    )
    same = sum(
        our_row[0].tokens == their_row[0].tokens
        for our_row, their_row in zip(ours, theirs, strict=True)
    )
    assert same >= 0.9 * ROWS


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_cuda_computes_in_16_bits(
    graphs: Path, source: Source, tmp_path: Path, precision: Half
) -> None:
    halve(graphs, tmp_path, precision)
    exact, low = SessionStepper(graphs), on_cuda(tmp_path)
    tokens = [row.tokens for row in decode(exact, source)]
    pairs = zip(logits_along(exact, source, tokens), logits_along(low, source, tokens), strict=True)
    largest = max(float(np.abs(full - half).max()) for full, half in pairs)
    assert largest < (0.1 if precision == "fp16" else 1.0)  # 11 and 8 bits

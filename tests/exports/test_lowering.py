"""The classes that replace a model's own during export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from exports.decoding.device import open_stepper
from exports.decoding.greedy import greedy
from exports.decoding.session import SessionStepper
from exports.description import COUNT, ENCODER, FEW, GROWN, LOGITS, POSITION, SEEN, STEP, TOKENS
from exports.making import graphs
from exports.making.graphs import export_graphs
from exports.making.half_precision import halve_graphs
from exports.making.lowering import GraphAttention, GraphLstm, GraphStepAttention, lowered
from exports.making.quantization import quantize_graphs
from model.configuration import GeminiConfig, LstmConfig, TransformerConfig
from model.contract import EncoderDecoder, Tensors
from model.modalities.sources import text_sizes
from model.names import LATENT, PRIOR_DEVIATION, PRIOR_MEAN
from model.networks.gemini import Gemini
from model.networks.layers import Attention
from model.networks.lstm import Lstm
from model.networks.transformer import Transformer
from model.vocabulary import BOS, MASKED, PAD

SIZES = {**text_sizes(30, 40), "image": 6, "image_columns": 2, "audio": 8, "tasks": 2}
NAMES = ["pre", "post", "gemini", "lstm"]


def models() -> list[EncoderDecoder]:
    torch.manual_seed(2)
    text = TransformerConfig(layers=2, width=16, heads=2)
    every = GeminiConfig(layers=1, width=16, heads=2, latent=3, max_length=32)
    networks: list[EncoderDecoder] = [
        Transformer(text, text_sizes(30, 40)),
        Transformer(text.model_copy(update={"norm": "post"}), text_sizes(30, 40)),
        Gemini(every, SIZES),
        Lstm(LstmConfig(layers=2, width=16), text_sizes(30, 40)),
    ]
    for model in networks:
        for name, parameter in model.named_parameters():
            if "bias" in name:  # zeros at first, which would hide a missing one
                nn.init.normal_(parameter)
    return [model.eval() for model in networks]


def ran(graph: Path, feeds: Mapping[str, Tensor]) -> Tensors:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    inputs = {value.name: feeds[value.name].numpy() for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(names, inputs)), strict=True))


@pytest.mark.parametrize("model", models(), ids=NAMES)
@torch.no_grad()
def test_a_graph_computes_what_pytorch_does_whatever_the_sizes(
    model: EncoderDecoder, tmp_path: Path
) -> None:
    """Any number of rows, positions, hypotheses and past steps; also 1, which tracing would fix."""
    export_graphs(model, tmp_path)
    histories = SessionStepper(tmp_path).histories
    for rows, length, hypotheses in ((3, 4, 2), (1, 1, 1), (1, 3, 4), (2, 1, 1)):
        source = model.example_source(rows, length)
        source["text"][0, 2:] = PAD
        if "image" in source and rows > 1:  # rows of one modality, and of several
            source["image_length"][0] = 0
            source["audio_length"][1] = 0
        memory = model.encode(source)
        graph = ran(tmp_path / ENCODER, source)
        assert memory.keys() == graph.keys()
        unmasked = memory["mask"] == 0
        if unmasked.dim() == 2:
            unmasked = unmasked[:, None, None, :]
        for name, tensor in memory.items():
            # Values at padding positions are masked, and can be anything.
            present = torch.ones(())
            if name.startswith("cross"):
                present = unmasked.transpose(2, 3)
            torch.testing.assert_close(graph[name] * present, tensor * present, rtol=0, atol=2e-5)
        given = {name: memory[name] for name in memory if name not in (PRIOR_MEAN, PRIOR_DEVIATION)}
        if model.latent:
            given[LATENT] = torch.randn(rows, model.latent)
        cache, seen = model.empty_cache(rows), torch.zeros(rows, 1, 0)
        for position in range(3):
            count = hypotheses if position else 1
            if position == 1:  # one hypothesis becomes several, each with a state of its own
                cache = {
                    name: tensor if name in histories else tensor.repeat_interleave(count, dim=1)
                    for name, tensor in cache.items()
                }
                seen = seen.repeat_interleave(count, dim=1)
            own_mask = torch.where(torch.eye(count) == 1, 0.0, MASKED).repeat(rows, 1, 1)
            seen = torch.cat([seen, own_mask], dim=2)
            tokens = torch.randint(BOS, 40, (rows, count))
            step_inputs = {TOKENS: tokens, POSITION: torch.tensor(position), SEEN: seen}
            counts = {COUNT: torch.tensor([2]), FEW: torch.tensor([2])}
            graph = ran(tmp_path / STEP, {**step_inputs, **given, **cache, **counts})
            logits, cache = model.step(tokens, step_inputs[POSITION], seen, given, cache)
            graph_logits = graph[LOGITS].reshape(logits.shape)
            torch.testing.assert_close(graph_logits, logits, rtol=0, atol=2e-5)
            for name, tensor in cache.items():
                torch.testing.assert_close(graph[GROWN + name], tensor, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("rows_first", "options"),
    [(True, {}), (False, {"bidirectional": True, "num_layers": 2}), (True, {"bias": False})],
)
@torch.no_grad()
def test_every_kind_of_lstm_is_onnx_own(
    options: dict[str, Any], rows_first: bool, tmp_path: Path
) -> None:
    lstm = nn.LSTM(5, 4, batch_first=rows_first, **options).eval()
    x, state = torch.randn(3, 6, 5), None
    layers = lstm.num_layers * (1 + lstm.bidirectional)
    for begun in (False, True):
        if begun:
            batch = 3 if rows_first else 6
            state = torch.randn(layers, batch, 4), torch.randn(layers, batch, 4)
        output, ends = lstm(x, state)
        with lowered(lstm):  # type: ignore[arg-type]
            program = torch.export.export(lstm, (x, state))
        exported = torch.onnx.export(program)
        assert exported is not None
        assert all(node.op_type != "Loop" for node in exported.model.graph)
        for actual, expected in zip(exported(x, state), (output, *ends), strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("model", models(), ids=NAMES)
def test_a_model_is_itself_again_even_after_an_error(model: EncoderDecoder) -> None:
    def state() -> tuple[dict[str, type], list[str]]:
        kinds = {name: type(module) for name, module in model.named_modules()}
        return kinds, [name for name, _ in (*model.named_buffers(), *model.named_parameters())]

    before = state()
    with pytest.raises(KeyError), lowered(model):
        kinds = {type(module) for module in model.modules()}
        expected = {GraphLstm} if isinstance(model, Lstm) else {GraphAttention, GraphStepAttention}
        assert expected <= kinds
        raise KeyError("half way")
    assert state() == before


class Hasty(Transformer):
    def encode(self, source: Mapping[str, Tensor]) -> Tensors:
        memory = super().encode(source)
        return memory if source["text"].sum() > 5 else {**memory, "mask": memory["mask"] * 0}


def test_a_model_that_decides_by_the_data_is_told_so(tmp_path: Path) -> None:
    model = Hasty(TransformerConfig(layers=1, width=16, heads=2), text_sizes(30, 40))
    with pytest.raises(
        ValueError, match=r"encoder of \w*Hasty cannot .* must not decide by the data"
    ):
        export_graphs(model, tmp_path)


class Own(Attention):
    pass


def test_a_layer_from_outside_stays_what_it_is() -> None:
    model = models()[0]
    assert isinstance(model, Transformer)
    model.decoder[0].self_attention.__class__ = Own
    with lowered(model):
        assert type(model.decoder[0].self_attention) is Own
        assert type(model.decoder[1].self_attention) is GraphStepAttention


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The graphs of one model: whole, with weights in separate files, and whole again."""
    folder = tmp_path_factory.mktemp("beside")
    folders = {}
    for name, limit in (("whole", graphs.LARGEST), ("apart", 1000), ("again", graphs.LARGEST)):
        folders[name] = folder / name
        folders[name].mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(graphs, "LARGEST", limit)
            export_graphs(models()[0], folders[name])
    return folders


def test_graphs_say_nothing_of_where_and_when_they_were_made(beside: dict[str, Path]) -> None:
    for file in beside["whole"].iterdir():
        content = file.read_bytes()
        assert content == (beside["again"] / file.name).read_bytes()
        assert b"lowering.py" not in content and b"graphs.py" not in content


@pytest.mark.parametrize("precision", ["fp32", "int8", "fp16"])
def test_weights_of_large_models_stand_beside_their_graph(
    beside: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """ONNX cannot hold 2 GiB in one file; the test runs the same code with a small limit."""
    source, limits = {"text": np.arange(4, 16).reshape(3, 4)}, np.full(3, 9)
    decoded = []
    for name, limit in (("whole", graphs.LARGEST), ("apart", 1000)):
        exact, folder = beside[name], tmp_path / name
        folder.mkdir()
        monkeypatch.setattr(graphs, "LARGEST", limit)
        if precision == "fp32":
            folder = exact
        elif precision == "int8":
            quantize_graphs(exact, folder, lambda stepper: greedy(stepper, source, limits))
        else:
            halve_graphs(exact, folder, "fp16")
        stepper = open_stepper(folder, ("cpu",), threads=1)
        decoded.append([hypothesis.tokens for hypothesis in greedy(stepper, source, limits)])
        files = {file.name for file in folder.iterdir() if file.suffix == ".data"}
        assert files == ({"encoder.onnx.data", "step.onnx.data"} if name == "apart" else set())
    assert decoded[0] == decoded[1]
    weights = sum(parameter.nbytes for parameter in models()[0].parameters())
    assert (beside["apart"] / "step.onnx.data").stat().st_size > weights / 4

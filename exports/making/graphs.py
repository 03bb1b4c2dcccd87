"""A model as two ONNX graphs: `encoder` (source to memory) and `step` (one token onwards).

With a latent variable the encoder graph gives its prior, and `latent` is an input of the step.

The names of the graphs' inputs and outputs are the names of the model's own tensors, as
`model.contract` has them; the batch and every length are free. `graphs.json` lists them, so that
the session needs to know nothing of the model.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from exports.decoding.session import describe
from exports.description import (
    DESCRIPTION,
    ENCODER,
    FORMAT,
    GROWN,
    KEEP,
    LOGITS,
    POSITION,
    REORDER,
    ROWS,
    SEEN,
    STEP,
    TOKENS,
)
from exports.making.choice import add_choice, block_count
from exports.making.lowering import lowered
from model.contract import HISTORY, EncoderDecoder
from model.names import ATTENTION, LATENT, PRIOR_DEVIATION, PRIOR_MEAN
from model.vocabulary import BOS

OPSET, IR_VERSION = 18, 8


class Encoder(nn.Module):
    """`EncoderDecoder.encode` with tensors in the order of their names."""

    def __init__(self, model: EncoderDecoder, source: list[str], memory: list[str]) -> None:
        super().__init__()
        self.model, self.source, self.memory = model, source, memory

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        memory = self.model.encode(dict(zip(self.source, tensors, strict=True)))
        return tuple(memory[name] for name in self.memory)


class Step(nn.Module):
    """`EncoderDecoder.step` with tensors in the order of their names."""

    def __init__(self, model: EncoderDecoder, memory: list[str], cache: list[str]) -> None:
        super().__init__()
        self.model, self.memory, self.cache = model, memory, cache
        self.given = [*cache, ATTENTION] if model.attentive else cache

    def forward(
        self, tokens: Tensor, position: Tensor, seen: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        memory = dict(zip(self.memory, tensors[: len(self.memory)], strict=True))
        cache = dict(zip(self.cache, tensors[len(self.memory) :], strict=True))
        logits, grown = self.model.step(tokens, position, seen, memory, cache)
        return logits, *(grown[name] for name in self.given)


@torch.no_grad()
def export_graphs(model: EncoderDecoder, folder: Path) -> None:
    """Writes `encoder.onnx`, `step.onnx`, the graphs that select rows of what the step takes, and
    `graphs.json`."""
    with lowered(model.eval().cpu()):
        _export_lowered(model, folder)


def _export_lowered(model: EncoderDecoder, folder: Path) -> None:
    example = model.example_source(2, 7)
    encoded = model.encode(example)
    memory = {name: encoded[name] for name in encoded if name not in (PRIOR_MEAN, PRIOR_DEVIATION)}
    if model.latent:
        memory[LATENT] = encoded[PRIOR_MEAN]
    # A first step of one hypothesis each, so that there is a history for the second.
    tokens, seen = torch.full((2, 1), BOS, dtype=torch.long), torch.zeros(2, 1, 1)
    logits, cache = model.step(tokens, torch.tensor(0), seen, memory, model.empty_cache(2))
    axes = model.dynamic_axes()
    source_names, memory_names, cache_names = list(example), list(memory), list(cache)
    encoded_names = list(encoded)
    _export(
        Encoder(model, source_names, encoded_names),
        tuple(example.values()),
        source_names,
        encoded_names,
        {name: {0: "batch", **axes.get(name, {})} for name in (*source_names, *encoded_names)},
        folder / ENCODER,
    )
    grown = {GROWN + name: {0: "batch", **_renamed(axes.get(name, {}))} for name in cache_names}
    _export(
        Step(model, memory_names, cache_names),
        (tokens, torch.tensor(1), torch.zeros(2, 1, 2), *memory.values(), *cache.values()),
        [TOKENS, POSITION, SEEN, *memory_names, *cache_names],
        [LOGITS, *grown, *([ATTENTION] if model.attentive else [])],
        {
            TOKENS: {0: "batch", 1: "hypotheses"},
            SEEN: {0: "batch", 1: "hypotheses", 2: "seen"},
            LOGITS: {0: "batch", 1: "hypotheses"},
            ATTENTION: {0: "batch", 1: "hypotheses", 2: "source"},
            **{name: {0: "batch", **axes.get(name, {})} for name in (*memory_names, *cache_names)},
            **grown,
        },
        folder / STEP,
        vocabulary=logits.shape[2],
    )
    description = {
        "format": FORMAT,
        "source": source_names,
        "encoded": encoded_names,
        "memory": memory_names,
        "cache": {name: list(tensor.shape[1:]) for name, tensor in model.empty_cache(1).items()},
        "histories": [name for name in cache_names if HISTORY in axes.get(name, {}).values()],
        "latent": model.latent,
        "attentive": model.attentive,
        "vocabulary": logits.shape[2],
        "blocks": block_count(logits.shape[2]),
        "floats": "float32",
        "max_length": model.max_length,
        "opset": OPSET,
    }
    write_description(folder, description)
    write_selections(folder)


def write_description(folder: Path, description: Mapping[str, Any]) -> None:
    """Writes `graphs.json`."""
    text = json.dumps(description, indent=2, sort_keys=True) + "\n"
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")


def write_selections(folder: Path) -> None:
    """Writes `keep.onnx` and, where the model carries states, `reorder.onnx`, to the step graph of
    a folder: each tensor under its own name to what stands at given `rows` of its first axis, and
    of its first two axes as if they were one."""
    description = describe(folder)
    step = onnx.load(str(folder / STEP), load_external_data=False).graph
    named = {value.name: value for value in step.input}
    taken = [*description["memory"], *description["cache"]]
    states = [name for name in description["cache"] if name not in description["histories"]]
    for file, names, axes in ((KEEP, taken, ["n"]), (REORDER, states, ["batch", "hypotheses"])):
        nodes, weights, inputs, outputs = [], [], [], []
        for name in filter(named.get, names):
            source = name
            if file == REORDER:
                shape = [-1, *description["cache"][name][1:]]
                weights.append(numpy_helper.from_array(np.array(shape), f"{name}.shape"))
                nodes.append(helper.make_node("Reshape", [name, f"{name}.shape"], [f"{name}.flat"]))
                source = f"{name}.flat"
            nodes.append(helper.make_node("Gather", [source, ROWS], [GROWN + name], axis=0))
            output = copy.deepcopy(named[name])
            output.name = GROWN + name
            for axis, free in enumerate(axes):
                output.type.tensor_type.shape.dim[axis].dim_param = free
            inputs.append(named[name])
            outputs.append(output)
        if not nodes:
            continue
        inputs.append(helper.make_tensor_value_info(ROWS, TensorProto.INT64, axes))
        graph = helper.make_graph(nodes, file, inputs, outputs, weights)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        onnx.save(model, str(folder / file))


def _renamed(axes: Mapping[int, str]) -> dict[int, str]:
    return {axis: f"{name}_next" for axis, name in axes.items()}


def _export(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    axes: Mapping[str, Mapping[int, str]],
    path: Path,
    vocabulary: int | None = None,
) -> None:
    """Writes a graph; with a `vocabulary`, one that also chooses: see `exports.making.choice`."""
    with _quiet():
        torch.onnx.export(
            module.eval(),
            arguments,
            str(path),
            input_names=inputs,
            output_names=outputs,
            dynamic_axes={name: dict(free) for name, free in axes.items()},
            opset_version=OPSET,
            custom_opsets={"com.microsoft": 1},
            dynamo=False,
        )
    graph = onnx.load(str(path))
    if vocabulary is not None:
        add_choice(graph, vocabulary)
        onnx.save(graph, str(path))
    onnx.checker.check_model(graph, full_check=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own deprecation and of shapes that are meant to be free."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        yield

"""A model as two ONNX graphs: `encoder` (source to memory) and `step` (one token onwards).

With a latent variable, the encoder graph outputs its prior, and `latent` is an input of the step.

The names of the graphs' inputs and outputs are the names of the model's own tensors, as
`model.contract` has them; the batch and every length are free. `graphs.json` lists them, so that
the session needs to know nothing of the model.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

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
    TELLING,
    TOKENS,
    WISHING,
    Description,
)
from exports.making.choice import add_choice, block_count
from exports.making.lowering import lowered
from model.contract import HISTORY, EncoderDecoder
from model.names import ATTENTION, LATENT, MET, PRIOR_DEVIATION, PRIOR_MEAN, WISH
from model.vocabulary import BOS

OPSET, IR_VERSION = 18, 8
LARGEST = 1 << 30
"""Maximum bytes of weights inside a graph's own file; ONNX's limit for a file is 2 GiB."""
DATA = ".data"
"""Suffix of a graph's file name, for a separate file with its weights."""


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
        self.given = [*cache, *told(model)]

    def forward(
        self, tokens: Tensor, position: Tensor, seen: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        memory = dict(zip(self.memory, tensors[: len(self.memory)], strict=True))
        cache = dict(zip(self.cache, tensors[len(self.memory) :], strict=True))
        logits, grown = self.model.step(tokens, position, seen, memory, cache)
        return logits, *(grown[name] for name in self.given)


def told(model: EncoderDecoder) -> list[str]:
    """What a step returns besides logits and cache."""
    return [ATTENTION] * model.attentive + [MET] * (model.future is not None)


@torch.no_grad()
def export_graphs(model: EncoderDecoder, folder: Path) -> None:
    """Writes `encoder.onnx`, `step.onnx`, the graphs that select rows of the step's inputs, and
    `graphs.json`. Weights of more than `LARGEST` bytes go into a `.data` file beside the graph."""
    model = model.eval().cpu()
    # No free axis has size 1, because the exporter would treat it as a fixed size.
    batch, hypotheses, length = 2, 3, 7
    example = model.example_source(batch, length)
    encoded = model.encode(example)
    memory = {name: encoded[name] for name in encoded if name not in (PRIOR_MEAN, PRIOR_DEVIATION)}
    if model.latent:
        memory[LATENT] = encoded[PRIOR_MEAN]
    if model.wishes:
        memory[WISH] = torch.ones(batch, model.wishes.count)
    empty = model.empty_cache(batch)
    axes = model.dynamic_axes()
    histories = [name for name in empty if HISTORY in axes.get(name, {}).values()]
    # States have several hypotheses; the first step makes the history for the exported one.
    cache = {
        name: tensor if name in histories else tensor.repeat_interleave(hypotheses, dim=1)
        for name, tensor in empty.items()
    }
    tokens = torch.full((batch, hypotheses), BOS, dtype=torch.long)
    seen = torch.zeros(batch, hypotheses, hypotheses)
    logits, grown = model.step(tokens, torch.tensor(0), seen, memory, cache)
    cache = {name: grown[name] for name in cache}
    seen = torch.zeros(batch, hypotheses, 2 * hypotheses)
    with lowered(model):
        _export(
            Encoder(model, list(example), list(encoded)),
            example,
            {name: {0: "batch", **axes.get(name, {})} for name in (*example, *encoded)},
            list(encoded),
            folder / ENCODER,
        )
        later = {GROWN + name: {0: "batch", **_renamed(axes.get(name, {}))} for name in cache}
        _export(
            Step(model, list(memory), list(cache)),
            {TOKENS: tokens, POSITION: torch.tensor(1), SEEN: seen, **memory, **cache},
            {
                TOKENS: {0: "batch", 1: "hypotheses"},
                SEEN: {0: "batch", 1: "hypotheses", 2: "seen"},
                LOGITS: {0: "batch", 1: "hypotheses"},
                ATTENTION: {0: "batch", 1: "hypotheses", 2: "source"},
                MET: {0: "batch", 1: "hypotheses"},
                **{name: {0: "batch", **axes.get(name, {})} for name in (*memory, *cache)},
                **later,
            },
            [LOGITS, *later, *told(model)],
            folder / STEP,
            vocabulary=logits.shape[2],
        )
    description = Description(
        format=WISHING if model.future is not None else TELLING if model.wishes else FORMAT,
        source=tuple(example),
        encoded=tuple(encoded),
        memory=tuple(memory),
        cache={name: tuple(tensor.shape[1:]) for name, tensor in empty.items()},
        histories=tuple(histories),
        latent=model.latent,
        attentive=model.attentive,
        wishes=dict(model.wishes.values),
        vocabulary=logits.shape[2],
        blocks=block_count(logits.shape[2]),
        floats="float32",
        max_length=model.max_length,
        opset=OPSET,
    )
    write_description(folder, description)
    write_selections(folder)


def write_description(folder: Path, description: Description) -> None:
    """Writes `graphs.json`."""
    text = json.dumps(description.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")


def write_selections(folder: Path) -> None:
    """Writes `keep.onnx` and, if the model has states, `reorder.onnx`, for the step graph of a
    folder. They take each tensor under its own name and select the entries at the given `rows`: of
    the first axis in `keep.onnx`, of the first two axes as if they were one in `reorder.onnx`."""
    description = describe(folder)
    step = onnx.load(str(folder / STEP), load_external_data=False).graph
    named = {value.name: value for value in step.input}
    taken = [*description.memory, *description.cache]
    states = [name for name in description.cache if name not in description.histories]
    for file, names, axes in ((KEEP, taken, ["n"]), (REORDER, states, ["batch", "hypotheses"])):
        nodes, weights, inputs, outputs = [], [], [], []
        for name in filter(named.get, names):
            source = name
            if file == REORDER:
                shape = [-1, *description.cache[name][1:]]
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


def save_graph(graph: onnx.ModelProto, path: Path) -> None:
    """Writes a graph with its weights; large weights go into a file beside it."""
    data = path.with_name(path.name + DATA)
    data.unlink(missing_ok=True)
    weights = sum(len(weight.raw_data) for weight in graph.graph.initializer)
    onnx.save(graph, str(path), save_as_external_data=weights > LARGEST, location=data.name)


def _renamed(axes: Mapping[int, str]) -> dict[int, str]:
    return {axis: f"{name}_next" for axis, name in axes.items()}


def _export(
    module: Encoder | Step,
    arguments: Mapping[str, Tensor],
    axes: Mapping[str, Mapping[int, str]],
    outputs: list[str],
    path: Path,
    vocabulary: int | None = None,
) -> None:
    """Writes a graph; with a `vocabulary`, it also chooses tokens: see `exports.making.choice`.

    Args:
        arguments: an example of every input, by name, in the module's order.
        axes: for inputs and outputs, the free axes and their names.
    """
    free = [dict.fromkeys(axes.get(name, {}), torch.export.Dim.DYNAMIC) for name in arguments]
    examples = tuple(tensor.clone() for tensor in arguments.values())  # no views of others
    own = len(inspect.signature(module.forward).parameters) - 1  # the rest is one argument
    try:
        with _quiet():
            program = torch.onnx.export(
                torch.export.export(
                    module.eval(), examples, dynamic_shapes=(*free[:own], tuple(free[own:]))
                ),
                input_names=list(arguments),
                output_names=outputs,
                opset_version=OPSET,
            )
    except Exception as error:  # of many classes, most of them private
        raise ValueError(
            f"{path.stem} of {type(module.model).__name__} cannot become a graph: "
            f"{str(error).strip().splitlines()[0]}; a model must not decide by the data, nor by "
            "the size of an axis that dynamic_axes() names or of the batch"
        ) from error
    assert program is not None
    constants = [value.const_value for value in program.model.graph.initializers.values()]
    weights = sum(constant.nbytes for constant in constants if constant is not None)
    program.save(path, external_data=weights > LARGEST)
    graph = onnx.load(str(path), load_external_data=False)
    _tidy(graph.graph, axes)
    if vocabulary is not None:
        add_choice(graph, vocabulary)
    onnx.save(graph, str(path))
    onnx.checker.check_model(str(path), full_check=True)


def _tidy(graph: onnx.GraphProto, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Names the free axes, and drops unused inputs and the exporter's notes on the origin of each
    part, which would differ from machine to machine."""
    del graph.value_info[:]
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    used = {name for node in graph.node for name in node.input}
    unused = [value for value in graph.input if value.name not in used]
    for value in unused:
        graph.input.remove(value)
    for value in (*graph.input, *graph.output):
        for axis, name in axes.get(value.name, {}).items():
            value.type.tensor_type.shape.dim[axis].dim_param = name


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter: it reports its progress, and warns about intended behaviour and about
    features that it lacks for other kinds of models."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

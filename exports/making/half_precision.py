"""Graphs that compute in 16 bits, fp16 or bf16, for processors that multiply them fast.

Weights, activations, memory and cache have 16 bits. Inside an operator (products, softmax,
normalisation) ONNX Runtime sums in fp32, and the choice of tokens from logits is in fp32
throughout. Sources, the latent variable and its prior enter and leave the graphs in fp32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from exports.decoding.session import describe
from exports.description import ENCODER, GROWN, LOGITS, STEP
from exports.making.graphs import save_graph, write_description, write_selections
from exports.making.quantization import fold
from model.names import LATENT, WISH

Half = Literal["fp16", "bf16"]
TYPES: dict[Half, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
FLOATS: dict[Half, str] = {"fp16": "float16", "bf16": "bfloat16"}
WITHOUT: dict[Half, set[str]] = {"fp16": set(), "bf16": {"LSTM"}}
"""Operators that opset 18 does not define in this precision."""
LOWEST: dict[Half, float | None] = {"fp16": -3e4, "bf16": None}
"""Lower bound of the values that mask scores, so that the sum of two stays finite: the largest
number of fp16 is 65504."""


def halve_graphs(folder: Path, output: Path, precision: Half) -> None:
    """Writes 16-bit versions of the graphs in a folder to another folder.

    Raises `ValueError` if ONNX cannot compute an operator in this precision.
    """
    description = describe(folder)
    write_description(output, description.model_copy(update={"floats": FLOATS[precision]}))
    cache = [*description.cache, *(GROWN + name for name in description.cache)]
    inside = {*description.memory, *cache} - {LATENT, WISH}
    for name in (ENCODER, STEP):
        fold(folder / name, output / name)
        model = onnx.load(str(output / name))
        lacking = {node.op_type for node in model.graph.node} & WITHOUT[precision]
        if lacking:
            raise ValueError(f"ONNX has no {', '.join(lacking)} in {precision}; use fp16")
        _Halving(model.graph, precision, inside).run()
        save_graph(model, output / name)
        onnx.checker.check_model(str(output / name))
    write_selections(output)


class _Halving:
    def __init__(self, graph: GraphProto, precision: Half, inside: set[str]) -> None:
        """
        Args:
            inside: inputs and outputs that get 16 bits; others are converted on entry or exit.
        """
        self.graph, self.inside = graph, inside
        self.type, self.lowest = TYPES[precision], LOWEST[precision]
        self.nodes: list[NodeProto] = []

    def run(self) -> None:
        graph = self.graph
        del graph.value_info[:]
        exact = self.choosing()
        halved = [node for node in graph.node if node.output[0] not in exact]
        renamed = self.inputs()
        weights = {name for node in halved for name in node.input}
        for weight in graph.initializer:
            if weight.name in weights and weight.data_type == TensorProto.FLOAT:
                weight.CopyFrom(self.converted(weight))
        leaving = self.outputs()
        for node in graph.node:
            if node.output[0] in exact:
                self.nodes.append(node)
                continue
            for index, name in enumerate(node.input):
                node.input[index] = renamed.get(name, leaving.get(name, name))
            for index, name in enumerate(node.output):
                node.output[index] = leaving.get(name, name)
            self.attributes(node)
            self.nodes.append(node)
            self.nodes += [
                helper.make_node("Cast", [short], [name], to=TensorProto.FLOAT)
                for name, short in leaving.items()
                if short in node.output
            ]
        del graph.node[:]
        graph.node.extend(self.nodes)

    def choosing(self) -> set[str]:
        """All that is computed from logits."""
        computed = {LOGITS}
        for node in self.graph.node:  # in the order in which they are computed
            if computed & set(node.input):
                computed |= set(node.output)
        return computed - {LOGITS}

    def inputs(self) -> dict[str, str]:
        """New names of inputs that are cast to 16 bits; those `inside` are declared as 16 bits."""
        renamed = {}
        for value in self.graph.input:
            kind = value.type.tensor_type
            if kind.elem_type != TensorProto.FLOAT:
                continue
            if value.name in self.inside:
                kind.elem_type = self.type
                continue
            source, short = value.name, f"{value.name}.short"
            if self.lowest is not None:
                self.graph.initializer.append(
                    helper.make_tensor(f"{source}.lowest", TensorProto.FLOAT, [], [self.lowest])
                )
                clipped = f"{source}.clipped"
                self.nodes.append(helper.make_node("Max", [source, f"{source}.lowest"], [clipped]))
                source = clipped
            self.nodes.append(helper.make_node("Cast", [source], [short], to=self.type))
            renamed[value.name] = short
        return renamed

    def outputs(self) -> dict[str, str]:
        """New names of outputs that are cast to fp32, on exit or before the choice of tokens."""
        leaving = {}
        computed = {name for node in self.graph.node for name in node.output}
        chosen = self.choosing()
        for value in self.graph.output:
            kind = value.type.tensor_type
            if kind.elem_type != TensorProto.FLOAT or value.name in chosen:
                continue
            if value.name in self.inside:
                kind.elem_type = self.type
            elif value.name in computed:
                leaving[value.name] = f"{value.name}.short"
        return leaving

    def converted(self, weight: TensorProto) -> TensorProto:
        values = numpy_helper.to_array(weight)
        if self.lowest is not None:
            values = np.maximum(values, self.lowest)
        short = values.astype(helper.tensor_dtype_to_np_dtype(self.type))
        return helper.make_tensor(weight.name, self.type, values.shape, short.tobytes(), raw=True)

    def attributes(self, node: NodeProto) -> None:
        """Converts attributes that state a node's output type."""
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = self.type if attribute.i == TensorProto.FLOAT else attribute.i
            elif attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(self.converted(attribute.t))

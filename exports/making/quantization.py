"""Graphs with 8-bit weights and activations, for processors that multiply bytes fast.

Every product of activations with a constant matrix becomes `QuantizeLinear` and ONNX Runtime's
`MatMulIntegerToFloat`: weights as signed bytes with a scale for every output, activations as
unsigned bytes with one scale and zero point for each tensor, measured in advance on calibration
rows (Jacob et al., 2018, section 2). Weights use 7 of their 8 bits: processors without VNNI (any
x86 before 2019, AMD's before Zen 4) add two products of bytes in 16 bits, where 2 × 255 × 127 does
not fit, and would silently say something else than others. Scales measured during decoding would
span a batch, so a row's result would depend on its neighbours. Embeddings are signed bytes with a
scale for every piece. Everything else (attention, normalisation and sums) stays in fp32.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from exports.decoding.session import SessionStepper
from exports.description import DESCRIPTION, ENCODER, POSITION, STEP
from exports.making.graphs import DATA, save_graph, write_selections

BESIDE = "session.optimized_model_external_initializers_file_name"
"""ONNX Runtime's option: the file for the weights of a graph that it writes."""
WEIGHT_STEPS, BYTE_STEPS = 64, 127
"""Of the largest weight in a product, and of the largest value of an embedding. 2 × 255 × 64 is the
most that fits into 16 bits."""
LOWEST, HIGHEST = ".lowest", ".highest"
"""Suffixes of a tensor's name, for its recorded extremes."""


def quantize_graphs(
    folder: Path, output: Path, calibrate: Callable[[SessionStepper], object]
) -> None:
    """Writes 8-bit versions of the graphs in a folder to another folder.

    Args:
        calibrate: decodes with the given stepper, which records the ranges of activations.
    """
    shutil.copyfile(folder / DESCRIPTION, output / DESCRIPTION)
    for name in (ENCODER, STEP):
        fold(folder / name, output / name)
    stepper = Watching(output)
    calibrate(stepper)
    for name in (ENCODER, STEP):
        _quantize(output / name, stepper.ranges)
    write_selections(output)


def fold(path: Path, output: Path) -> None:
    """Writes a graph with constants folded and duplicates removed, so that every weight is an
    initializer."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(output)
    options.log_severity_level = 3
    if path.with_name(path.name + DATA).exists():
        options.add_session_config_entry(BESIDE, output.name + DATA)
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Products:
    """The matrix products of one graph whose second factor is constant."""

    def __init__(self, graph: GraphProto) -> None:
        self.weights = {value.name: value for value in graph.initializer}
        self.nodes = [
            node
            for node in graph.node
            if node.op_type in ("MatMul", "Gemm")
            and node.input[1] in self.weights
            and len(self.weights[node.input[1]].dims) == 2
        ]

    @property
    def activations(self) -> list[str]:
        return list(dict.fromkeys(node.input[0] for node in self.nodes))


Ranges = dict[str, tuple[float, float]]
"""Maps an activation, as "file:name", to its minimum and maximum."""


class Watching(SessionStepper):
    """Steps graphs, and records the ranges of all activations that enter products."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.ranges: Ranges = {}
        self.watched: dict[onnxruntime.InferenceSession, list[str]] = {}
        self.encoder, self.decoder = (self.watch(folder / name) for name in (ENCODER, STEP))

    def watch(self, path: Path) -> onnxruntime.InferenceSession:
        """A graph that also gives the extremes of every activation."""
        model = onnx.load(str(path))
        names = Products(model.graph).activations
        for name in names:
            for operator, suffix in (("ReduceMin", LOWEST), ("ReduceMax", HIGHEST)):
                node = helper.make_node(operator, [name], [name + suffix], keepdims=0)
                model.graph.node.append(node)
                model.graph.output.append(
                    helper.make_tensor_value_info(name + suffix, onnx.TensorProto.FLOAT, [])
                )
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            watched = Path(folder) / path.name
            save_graph(model, watched)
            session = onnxruntime.InferenceSession(str(watched), providers=["CPUExecutionProvider"])
        self.watched[session] = [f"{path.name}:{name}" for name in names]
        return session

    def compute(
        self,
        session: onnxruntime.InferenceSession,
        feeds: dict[str, onnxruntime.OrtValue],
        outputs: Sequence[str],
    ) -> list[onnxruntime.OrtValue]:
        keys = self.watched[session]
        names = [key.partition(":")[2] for key in keys]
        extremes = [name + suffix for name in names for suffix in (LOWEST, HIGHEST)]
        values = super().compute(session, feeds, [*outputs, *extremes])
        extreme_values = [float(value.numpy()) for value in values[len(outputs) :]]
        for key, low, high in zip(keys, extreme_values[::2], extreme_values[1::2], strict=True):
            known = self.ranges.get(key, (low, high))
            self.ranges[key] = min(known[0], low), max(known[1], high)
        return values[: len(outputs)]


def _quantize(path: Path, ranges: Ranges) -> None:
    """Replaces a folded graph by one with 8-bit products and embeddings."""
    model = onnx.load(str(path))
    _Quantizer(model, ranges, path.name).run()
    save_graph(model, path)


class _Quantizer:
    def __init__(self, model: ModelProto, ranges: Ranges, file: str) -> None:
        self.model, self.graph = model, model.graph
        self.ranges, self.file = ranges, file
        self.products = Products(self.graph)
        self.weights = self.products.weights
        # Embeddings are indexed by ids from the graph's inputs; positions stay exact.
        self.ids = {value.name for value in self.graph.input} - {POSITION}
        self.made: dict[str, list[str]] = {}
        self.nodes: list[NodeProto] = []

    def run(self) -> None:
        products = {node.output[0] for node in self.products.nodes}
        biases = self.biases()
        absorbed = {add.output[0] for add, _ in biases.values()}
        for node in self.graph.node:
            if node.output[0] in products:
                self.product(node, biases.get(node.output[0]))
            elif node.output[0] not in absorbed:
                self.other(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        used_weights = [value for name, value in self.weights.items() if name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(used_weights)
        known = {entry.domain for entry in self.model.opset_import}
        if "com.microsoft" not in known:
            self.model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    def biases(self) -> dict[str, tuple[NodeProto, str]]:
        """Maps products to the Add with a constant vector that is the only user of each."""
        takers: dict[str, list[NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                takers.setdefault(name, []).append(node)
        outputs = {value.name for value in self.graph.output}
        biases = {}
        for node in self.products.nodes:
            name = node.output[0]
            taking = takers.get(name, [])
            if node.op_type != "MatMul" or len(taking) != 1 or name in outputs:
                continue
            (add,) = taking
            others = [other for other in add.input if other != name]
            vectors = [other for other in others if self.dimensions(other) == 1]
            if add.op_type == "Add" and len(others) == 1 and vectors:
                biases[name] = add, vectors[0]
        return biases

    def dimensions(self, name: str) -> int | None:
        """Number of dimensions of a constant; None if it is not constant."""
        return len(self.weights[name].dims) if name in self.weights else None

    def constant(self, name: str, value: np.ndarray) -> str:
        self.weights.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def product(self, node: NodeProto, bias: tuple[NodeProto, str] | None) -> None:
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        if {attributes.get("alpha", 1.0), attributes.get("beta", 1.0)} != {1.0} or attributes.get(
            "transA"
        ):
            raise ValueError(f"{node.name}: a product with a factor cannot be quantised")
        if bias is not None:
            add, vector = bias
            output = add.output[0]
        else:
            output, vector = node.output[0], node.input[2] if len(node.input) > 2 else ""
        weight, scale = self.weight(node.input[1], bool(attributes.get("transB")))
        activation, step, zero = self.activation(node.input[0])
        self.nodes.append(
            helper.make_node(
                "MatMulIntegerToFloat",
                [activation, weight, step, scale, zero, "", vector],
                [output],
                name=node.name,
                domain="com.microsoft",
            )
        )

    def weight(self, name: str, transposed: bool) -> list[str]:
        """A matrix (inputs, outputs) of signed bytes, and the scale of every output."""
        key = f"{name}.{transposed}"
        if key not in self.made:
            values = numpy_helper.to_array(self.weights[name])
            values = values.T if transposed else values
            scale = _scale(np.abs(values).max(axis=0), WEIGHT_STEPS)
            rounded = np.rint(values / scale).astype(np.int8)
            self.made[key] = [
                self.constant(f"{key}.int8", np.ascontiguousarray(rounded)),
                self.constant(f"{key}.scale", scale),
            ]
        return self.made[key]

    def activation(self, name: str) -> list[str]:
        """The unsigned bytes of an activation, with its scale and zero point."""
        if name not in self.made:
            low, high = self.ranges[f"{self.file}:{name}"]
            low, high = min(low, 0.0), max(high, 0.0)
            step = _scale(np.array((high - low) / 2))  # 254 steps, and one for rounding
            zero = np.uint8(np.clip(np.rint(-low / step), 0, 255))
            self.made[name] = [
                f"{name}.uint8",
                self.constant(f"{name}.step", step),
                self.constant(f"{name}.zero", np.array(zero)),
            ]
            self.nodes.append(
                helper.make_node(
                    "QuantizeLinear",
                    [name, self.made[name][1], self.made[name][2]],
                    [f"{name}.uint8"],
                )
            )
        return self.made[name]

    def other(self, node: NodeProto) -> None:
        """Handles nodes that are not products: embeddings become bytes, the rest stays."""
        table = self.weights.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or len(table.dims) != 2 or node.input[1] not in self.ids:
            self.nodes.append(node)
            return
        values = numpy_helper.to_array(table)
        scale = _scale(np.abs(values).max(axis=1, keepdims=True))
        bytes_ = self.constant(f"{table.name}.bytes", np.rint(values / scale).astype(np.int8))
        scales = self.constant(f"{table.name}.scales", scale)
        output = node.output[0]
        for inputs, result, operator in (
            ([bytes_, node.input[1]], f"{output}.bytes", "Gather"),
            ([scales, node.input[1]], f"{output}.scales", "Gather"),
        ):
            self.nodes.append(helper.make_node(operator, inputs, [result], axis=0))
        self.nodes.append(
            helper.make_node(
                "Cast", [f"{output}.bytes"], [f"{output}.float"], to=onnx.TensorProto.FLOAT
            )
        )
        self.nodes.append(
            helper.make_node("Mul", [f"{output}.float", f"{output}.scales"], [output])
        )


def _scale(largest: np.ndarray, steps: int = BYTE_STEPS) -> np.ndarray:
    """The value of one step, so that so many reach the largest value."""
    scale: np.ndarray = (np.where(largest > 0, largest, 1) / steps).astype(np.float32)
    return scale

"""The end of the step graph: finds the most probable next tokens on the device of the logits.

This is added to a graph after export, because ONNX Runtime is slow at what a tracer would write: an
`ArgMax` or `TopK` over 32,000 logits takes several times as long as two smaller ones, first over
the maxima of blocks and then over the chosen blocks. The result is exact, because the n largest
logits are in the n blocks with the largest maxima.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from exports.description import BEST, COUNT, FEW, LOGITS, NORMALIZER, VALUES

BLOCK = 128
"""Logits in a block if no divisor of the vocabulary is suitable."""


def block_size(vocabulary: int) -> int:
    """Logits in a block: a divisor of the vocabulary near its root, so that nothing is padded."""
    fitting = [size for size in range(16, 513) if vocabulary % size == 0]
    return min(fitting, key=lambda size: abs(size * size - vocabulary), default=BLOCK)


def block_count(vocabulary: int) -> int:
    """Number of blocks; the last one is padded if the vocabulary does not fill it."""
    return -(-vocabulary // block_size(vocabulary))


def _flatten(graph: onnx.GraphProto) -> None:
    """Makes a matrix product itself the output if `logits` is only a Reshape of it."""
    makers = {name: node for node in graph.node for name in node.output}
    reshape = makers[LOGITS]
    product = makers.get(reshape.input[0])
    if reshape.op_type != "Reshape" or product is None or product.op_type != "Gemm":
        return
    graph.node.remove(reshape)
    product.output[0] = LOGITS
    (output,) = (value for value in graph.output if value.name == LOGITS)
    axes = output.type.tensor_type.shape.dim
    del axes[0]
    axes[0].dim_param = "rows"


def add_choice(model: onnx.ModelProto, vocabulary: int) -> None:
    """Adds the choice to a graph with `logits` (batch, hypotheses, vocabulary).

    New inputs are `count` (1,), and `few` (1,), the smaller of `count` and the number of blocks.
    New outputs are `best` int64 and `values` (batch · hypotheses, count), the largest logits,
    largest first, and `normalizer` (batch · hypotheses, 1), the logarithm of the sum of all
    exponentials.

    Both counts are inputs, because the host reads how many to choose: a device would have to copy
    back what it computes.

    If a product with two axes makes the logits, they stay (batch · hypotheses, vocabulary): an
    output of another shape would be a copy.
    """
    graph, size = model.graph, block_size(vocabulary)
    _flatten(graph)
    padding = -vocabulary % size

    def constant(name: str, *values: int) -> str:
        graph.initializer.append(
            helper.make_tensor(f"choice.{name}", TensorProto.INT64, [len(values)], values)
        )
        return f"choice.{name}"

    def node(operator: str, inputs: list[str], outputs: list[str], **attributes: int) -> None:
        graph.node.append(helper.make_node(operator, inputs, outputs, **attributes))

    last, block = constant("last", -1), constant("block_size", size)
    zero, one = constant("zero", 0), constant("one", 1)
    node("Reshape", [LOGITS, constant("rows", -1, vocabulary)], ["choice.logits"])
    source = "choice.logits"
    if padding:
        graph.initializer.append(
            helper.make_tensor("choice.nothing", TensorProto.FLOAT, [], [-3.4e38])
        )
        node(
            "Pad",
            [source, constant("pads", 0, 0, 0, padding), "choice.nothing"],
            ["choice.padded"],
        )
        source = "choice.padded"
    blocks = block_count(vocabulary)
    node("Reshape", [source, constant("shape", -1, blocks, size)], ["choice.blocks"])
    node("ReduceMax", ["choice.blocks", last], ["choice.maxima"], keepdims=0)
    node("TopK", ["choice.maxima", FEW], ["choice.tops", "choice.chosen"])
    node("Unsqueeze", ["choice.chosen", last], ["choice.places"])
    node("GatherND", ["choice.blocks", "choice.places"], ["choice.gathered"], batch_dims=1)
    node("Reshape", ["choice.gathered", constant("flat", 0, -1)], ["choice.candidates"])
    node("TopK", ["choice.candidates", COUNT], [VALUES, "choice.within"])
    # Which of the chosen blocks, and the position in it.
    node("Div", ["choice.within", block], ["choice.turn"])
    node("Mod", ["choice.within", block], ["choice.offset"])
    node("GatherElements", ["choice.chosen", "choice.turn"], ["choice.block"], axis=1)
    node("Mul", ["choice.block", block], ["choice.start"])
    node("Add", ["choice.start", "choice.offset"], [BEST])
    # log Σ exp x = x₁ − log p(x₁), for the largest of them.
    node("Softmax", ["choice.logits"], ["choice.probabilities"], axis=-1)
    for name, start in (("first", BEST), ("highest", VALUES)):
        node("Slice", [start, zero, one, one], [f"choice.{name}"])
    node("GatherElements", ["choice.probabilities", "choice.first"], ["choice.likeliest"], axis=1)
    node("Log", ["choice.likeliest"], ["choice.log"])
    node("Sub", ["choice.highest", "choice.log"], [NORMALIZER])
    for name in (COUNT, FEW):
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, [1]))
    for name, kind, width in (
        (BEST, TensorProto.INT64, "count"),
        (VALUES, TensorProto.FLOAT, "count"),
        (NORMALIZER, TensorProto.FLOAT, 1),
    ):
        graph.output.append(helper.make_tensor_value_info(name, kind, ["rows", width]))

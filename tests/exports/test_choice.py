"""The choice of tokens at the end of a step graph, compared with NumPy's sort and sums."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from exports.description import BEST, COUNT, FEW, LOGITS, NORMALIZER, VALUES
from exports.making.choice import add_choice, block_count, block_size


def session(vocabulary: int) -> onnxruntime.InferenceSession:
    """A graph whose logits are its input."""
    shape = ["batch", "hypotheses", vocabulary]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], [LOGITS])],
        "logits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    add_choice(model, vocabulary)
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def counts(vocabulary: int, count: int) -> dict[str, np.ndarray]:
    few = min(count, block_count(vocabulary))
    return {COUNT: np.array([count]), FEW: np.array([few])}


# Small, a power of two, primes that need padding, and one with many divisors.
@pytest.mark.parametrize("vocabulary", [5, 64, 97, 521, 2000])
@pytest.mark.parametrize("count", [1, 4, 97])
@pytest.mark.parametrize("scale", [0.01, 1.0, 40.0])
def test_choice_equals_numpys_sort(vocabulary: int, count: int, scale: float) -> None:
    count = min(count, vocabulary)
    logits = np.random.default_rng(vocabulary).normal(0, scale, (3, 2, vocabulary))
    logits = logits.astype(np.float32)
    feeds = {"x": logits, **counts(vocabulary, count)}
    best, values, normalizer = session(vocabulary).run([BEST, VALUES, NORMALIZER], feeds)
    rows = logits.reshape(6, vocabulary)
    order = np.argsort(-rows, axis=1, kind="stable")[:, :count]
    assert np.array_equal(best, order)
    assert np.array_equal(values, np.take_along_axis(rows, order, axis=1))
    expected = np.log(np.exp(rows.astype(np.float64)).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(normalizer, expected, rtol=1e-6, atol=1e-5)


def test_the_best_may_all_stand_in_one_block() -> None:
    logits = np.zeros((1, 1, 2000), dtype=np.float32)
    size = block_size(2000)
    logits[0, 0, size : size + 8] = np.arange(8, 0, -1)
    feeds = {"x": logits, **counts(2000, 8)}
    (best,) = session(2000).run([BEST], feeds)
    assert best[0].tolist() == list(range(size, size + 8))


def test_blocks_need_no_padding_where_there_is_a_divisor() -> None:
    assert 2000 % block_size(2000) == 0 and 32000 % block_size(32000) == 0
    assert abs(block_size(32000) - 179) < 60

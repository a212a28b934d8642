"""Logarithms that are looked up: the same values whoever else is in the batch."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tempme_export.quantization.invariance import look_up_logarithms


def graph(logs, largest=40):
    """`logs` logarithms of the sizes [batch, n], one of them of twice the sizes, each with an output."""
    sizes = helper.make_tensor_value_info("sizes", TensorProto.FLOAT, ["batch", "n"])
    nodes = [helper.make_node("Add", ["sizes", "sizes"], ["twice"])]
    nodes += [helper.make_node("Log", [("sizes", "twice")[i % 2]], [f"log_{i}"]) for i in range(logs)]
    nodes += [helper.make_node("Neg", [f"log_{i}"], [f"out_{i}"]) for i in range(logs)]
    if not logs:
        nodes.append(helper.make_node("Neg", ["twice"], ["out_0"]))
    outputs = [
        helper.make_tensor_value_info(f"out_{i}", TensorProto.FLOAT, ["batch", "n"]) for i in range(max(1, logs))
    ]
    made = helper.make_graph(nodes, "g", [sizes], outputs)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(proto, sizes):
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"sizes": sizes})


@pytest.mark.parametrize("logs", [1, 3])
def test_values_are_the_logarithms(logs):
    proto = graph(logs)
    look_up_logarithms(proto, 80)
    sizes = np.arange(1, 41, dtype=np.float32).reshape(2, 20)
    for i, found in enumerate(run(proto, sizes)):
        np.testing.assert_array_equal(found, -np.log(sizes.astype(np.float64) * (1, 2)[i % 2]).astype(np.float32))
    assert "Log" not in {node.op_type for node in proto.graph.node}
    assert len(proto.graph.initializer) == 1, "one table for all"
    assert proto.graph.initializer[0].dims == [81]


def test_the_largest_and_nothing():
    proto = graph(1)
    look_up_logarithms(proto, 7)
    (found,) = run(proto, np.array([[7, 1, 0]], np.float32))
    np.testing.assert_array_equal(found, -np.log(np.array([[7, 1, 1]], np.float64)).astype(np.float32))


def test_position_in_the_batch_does_not_matter():
    proto = graph(1)
    look_up_logarithms(proto, 80)
    row = np.arange(3, 16, dtype=np.float32)[None]  # 13: no multiple of what a vector holds
    (alone,) = run(proto, row)
    for batch in (2, 3, 5, 7):
        for position in range(batch):
            sizes = np.full((batch, 13), 9, np.float32)
            sizes[position] = row
            np.testing.assert_array_equal(run(proto, sizes)[0][position], alone[0])


def test_a_graph_without_one_is_left_alone():
    proto = graph(0)
    before = proto.SerializeToString(deterministic=True)
    look_up_logarithms(proto, 80)
    assert proto.SerializeToString(deterministic=True) == before

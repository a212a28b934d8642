"""The int8 graph: which products are quantised, with which numbers, and that nothing else is."""

import logging
import math

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from tempme_export.encoder.model import Linear
from tempme_export.errors import ExportError
from tempme_export.quantization.products import Range, products
from tempme_export.quantization.qdq import find_products, quantise

FIRST, SECOND = "blocks.0.attn.in_proj", "blocks.1.mlp.c_proj"


class Reading:
    """A graph's nodes by what they produce, and its constants."""

    def __init__(self, proto):
        self.nodes = proto.graph.node
        self.constants = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.readers = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def quantised(self):
        """Each MatMul behind two DequantizeLinear, as (MatMul, that of its input, that of its weights)."""
        for node in self.nodes:
            behind = [self.producer.get(name) for name in node.input]
            if node.op_type == "MatMul" and all(
                one is not None and one.op_type == "DequantizeLinear" for one in behind
            ):
                yield node, *behind


@pytest.fixture(scope="module", params=["mini_video", "mini_text"])
def graphs(request):
    return request.getfixturevalue(request.param)


def by_weights(graphs):
    """int8 weights as the definition gives them -> the product's name."""
    found = {}
    for name, module in products(graphs.tower.module).items():
        weight = module.weight.numpy()
        scale = np.abs(weight).max(axis=1, keepdims=True).astype(np.float64) / 64
        found[np.rint(weight / scale).T.astype(np.int8).tobytes()] = name
    return found


def test_scales_zero_points_and_weights(graphs):
    reading, names = Reading(onnx.load(graphs.path)), by_weights(graphs)
    found = []
    for _, given, weights in reading.quantised():
        steps, scale, zero = (reading.constants[name] for name in weights.input)
        assert steps.dtype == np.int8 and not zero.any()
        assert np.abs(steps.astype(int)).max() == 64, "two products with 255 fit 16 bits"
        name = names[steps.tobytes()]
        module, chosen = products(graphs.tower.module)[name], graphs.tower.ranges[name]
        (axis,) = [one.i for one in weights.attribute if one.name == "axis"]
        assert axis == 1 and scale.shape == (module.weight.shape[0],), "one scale for each output channel"
        largest = np.abs(module.weight.numpy()).max(axis=1)
        np.testing.assert_allclose(scale, np.where(largest == 0, 1, largest / 64), rtol=3e-7)
        np.testing.assert_allclose(
            steps * scale, module.weight.numpy().T, rtol=3e-7, atol=0, err_msg="they were on steps"
        )
        quantize = reading.producer[given.input[0]]
        assert quantize.op_type == "QuantizeLinear"
        for node in (given, quantize):
            step, zero = (reading.constants[one] for one in node.input[1:])
            assert zero.dtype == np.uint8 and int(zero) == chosen.zero_point, name
            np.testing.assert_allclose(step, chosen.scale, rtol=3e-7, err_msg=name)
        found.append(name)
    assert sorted(found) == sorted(set(products(graphs.tower.module)) - set(graphs.tower.in_float))


def test_nothing_but_products_is_quantised(graphs):
    """Matching, attention, LayerNorms and sums work on float32."""
    reading = Reading(onnx.load(graphs.path))
    around = {one.output[0] for _, *both in reading.quantised() for one in both}
    quantize = [node for node in reading.nodes if node.op_type == "QuantizeLinear"]
    dequantize = [node for node in reading.nodes if node.op_type == "DequantizeLinear"]
    assert {node.output[0] for node in dequantize} == around
    assert all(reader.op_type == "MatMul" for name in around for reader in reading.readers[name])
    assert {reader.op_type for node in quantize for reader in reading.readers[node.output[0]]} == {"DequantizeLinear"}
    others = {"QLinearMatMul", "MatMulInteger", "QGemm", "DynamicQuantizeLinear", "QLinearConv", "ConvInteger"}
    operators = {node.op_type for node in reading.nodes}
    assert not others & operators and "Softmax" in operators
    kept = [node for node in reading.nodes if node.op_type == "MatMul"]
    assert len(kept) > len(quantize), "the products of attention stay"


def test_merges_keep_their_names(mini_video, mini_recipe):
    names = set(Reading(onnx.load(mini_video.path)).producer)
    for merge in mini_recipe.schedule.merges:
        assert {merge.assign_name, merge.tokens_name} <= names


def test_products_in_float_keep_their_weights(graphs):
    reading = Reading(graphs.quantised((FIRST, SECOND) if SECOND in products(graphs.tower.module) else (FIRST,)))
    modules = products(graphs.tower.module)
    floats = {one.tobytes() for one in reading.constants.values() if one.dtype == np.float32}
    expected = {FIRST, SECOND} & set(modules)
    assert {name for name, one in modules.items() if one.weight.numpy().T.tobytes() in floats} == expected
    assert len(list(reading.quantised())) == len(modules) - len(expected)


def test_everything_in_float_is_the_graph_it_was(mini_text):
    found = mini_text.quantised(tuple(products(mini_text.tower.module)))
    operators = [sorted(node.op_type for node in proto.graph.node) for proto in (mini_text.proto(), found)]
    assert operators[0] == operators[1]


def test_nodes_keep_their_order(graphs):
    before = [node.name for node in graphs.proto().graph.node]
    found = [node.name for node in graphs.quantised().graph.node]
    assert [name for name in found if name in set(before)] == before
    assert len(set(found)) == len(found) > len(before)


def test_each_product_is_found_by_its_weights(graphs):
    proto = graphs.proto()
    found, modules = find_products(proto, graphs.tower.module), products(graphs.tower.module)
    assert found.keys() == modules.keys()
    constants = Reading(proto).constants
    for name, node in found.items():
        np.testing.assert_array_equal(constants[node.input[1]], modules[name].weight.numpy().T)


def test_products_with_equal_weights_are_found_in_their_order():
    """Untrained blocks may be copies: what tells them apart is which comes first."""
    weight = torch.arange(6.0).reshape(3, 2)
    tower = torch.nn.ModuleDict({name: Linear(weight) for name in ("first", "second", "third")})
    nodes = [helper.make_node("MatMul", [f"{name}.x", name], [f"{name}.y"], name=name) for name in tower]
    constants = [numpy_helper.from_array(weight.T.numpy(), name) for name in tower]
    proto = helper.make_model(helper.make_graph(nodes, "twins", [], [], constants))
    assert {name: node.name for name, node in find_products(proto, tower).items()} == {name: name for name in tower}


def test_a_product_that_the_graph_lacks(mini_text):
    proto = mini_text.proto()
    weight = find_products(proto, mini_text.tower.module)[FIRST].input[1]
    for tensor in proto.graph.initializer:
        if tensor.name == weight:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, weight))
    with pytest.raises(ExportError, match=rf"no product with the weights of {FIRST}\..*constraints\.txt") as caught:
        find_products(proto, mini_text.tower.module)
    assert caught.value.exit_code == 6


def test_a_product_that_the_graph_holds_twice(mini_text):
    proto = mini_text.proto()
    proto.graph.node.append(find_products(proto, mini_text.tower.module)[FIRST])
    with pytest.raises(ExportError, match="multiplies by weights that are spoken for"):
        find_products(proto, mini_text.tower.module)


def test_the_graph_of_another_tower(mini_text, mini_video):
    with pytest.raises(ExportError, match="no product with the weights of"):
        find_products(mini_text.proto(), mini_video.tower.module)


def test_logging_is_as_it_was(mini_text):
    before = logging.root.level
    mini_text.quantised()
    assert logging.root.level == before

    nothing_seen = dict.fromkeys(mini_text.tower.ranges, Range(math.nan, math.nan))
    with pytest.raises(AssertionError):
        quantise(mini_text.proto(), mini_text.tower.module, nothing_seen, ())
    assert logging.root.level == before

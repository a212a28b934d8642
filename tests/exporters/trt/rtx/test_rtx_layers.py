"""What TensorRT-RTX's builder logs about an engine, counted. The lines are its own, of version 1.7.1, shortened."""

import pytest

from tempme_export.errors import ExportError
from tempme_export.exporters.trt.rtx.layers import Layer, by_dtype, fused_attentions, read_layers

TENSOR = (
    "Name: {}, Dimensions: [-1,48,64], Strides: [64,-1,1], StrideOrder: [1,2,0], Datatype: {}, Format: (Linear) Row"
)


def line(name, kind, outputs=("Half",), nodes=()):
    inputs, constants = TENSOR.format("x", "Float"), TENSOR.format("w", "Int32")
    given = ", ".join("{ " + TENSOR.format(f"y{i}", dtype) + " }" for i, dtype in enumerate(outputs))
    origin = "".join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {{ {inputs} }}], Constants: [ {{ {constants} }}], "
        f"Outputs: [{' ' + given if given else ''}], TacticName: {name}_0x69b1, StreamId: 0, Metadata: {origin}"
    )


def listing(*lines):
    return "Layers:\n" + "\n".join(lines) + "\n\nI/O Tensors:\n Name: frames, IOMode: Input, DataType: Float"


def test_layers_are_read_with_the_type_of_their_first_output():
    message = listing(
        line("__mye117816_0_myl0_0", "shape_call", outputs=()),
        line("node_matmul_1+node_matmul_2_myl0_3", "gemm", outputs=("Half", "Float"), nodes=("node_matmul_1", "n 2")),
        line("__myl_Topk_myl0_16", "kgen", outputs=("Float",)),
    )
    assert read_layers(["Engine generation completed.", message, "Adding 1 engine(s) to plan file."]) == (
        Layer("__mye117816_0_myl0_0", "shape_call", "none", ()),
        Layer("node_matmul_1+node_matmul_2_myl0_3", "gemm", "Half", ("node_matmul_1", "n 2")),
        Layer("__myl_Topk_myl0_16", "kgen", "Float", ()),
    )


def test_the_last_listing_counts():
    assert [layer.name for layer in read_layers([listing(line("a", "kgen")), listing(line("b", "kgen"))])] == ["b"]


def test_a_log_without_a_listing_is_refused():
    with pytest.raises(ExportError, match="lists no layers"):
        read_layers(["Layers: none", "Engine generation completed."])


def test_a_line_that_reads_otherwise_is_refused():
    with pytest.raises(ExportError, match="reads 'Name: b, Type: gemm'"):
        read_layers([listing(line("a", "kgen"), "Name: b, Type: gemm")])


def test_types_are_counted_most_first():
    layers = [Layer(str(i), "kgen", dtype, ()) for i, dtype in enumerate(("Float", "Half", "none", "Half"))]
    assert list(by_dtype(layers).items()) == [("Half", 2), ("Float", 1), ("none", 1)]


OPERATORS = {"q@k": "MatMul", "add": "Add", "soft": "Softmax", "s@v": "MatMul", "sizes": "MatMul", "log": "Log"}


def attention(*nodes):
    return Layer("_gemm_mha_v2_myl0_18", "kgen", "Half", nodes)


def test_an_attention_in_one_layer_is_fused():
    layers = [attention("s@v", "cast", "soft", "add", "q@k"), attention("log"), attention("sizes")]
    assert fused_attentions(layers, OPERATORS) == 1


def test_a_softmax_between_two_layers_is_not_fused():
    assert fused_attentions([attention("q@k"), attention("add", "soft"), attention("s@v")], OPERATORS) == 0
    assert fused_attentions([attention("q@k", "add", "soft"), attention("s@v")], OPERATORS) == 0


def test_a_softmax_that_takes_over_the_padding_of_two_products_is_not_fused():
    layers = [attention("q@k"), attention("sizes"), attention("sizes", "soft", "q@k"), attention("s@v")]
    assert fused_attentions(layers, OPERATORS) == 0


def test_two_softmaxes_in_one_layer_are_no_attention_that_is_known():
    assert fused_attentions([attention("q@k", "soft", "s@v", "soft2")], {**OPERATORS, "soft2": "Softmax"}) == 0

"""Graphs as they are exported, and small ones made by hand whose products are known."""

import dataclasses

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tempme_export.bench.counting.flops import count_eager
from tempme_export.bench.counting.graph import count_graph
from tempme_export.bench.counting.products import parts_of, tokens_of_schedule
from tempme_export.bench.counting.shapes import graph_of, shape_frames
from tempme_export.encoder.complexity import complexity
from tempme_export.encoder.model import VideoEncoder
from tempme_export.errors import InputError


@pytest.mark.parametrize("videos", [1, 3])
@pytest.mark.parametrize(
    ("policy", "precision"), [("none", "fp32"), ("clips", "fp32"), ("no-bias", "fp16"), ("clips", "int8")]
)
def test_the_exported_graph_is_the_formula(tiny_recipe, artifact, policy, precision, videos):
    recipe = tiny_recipe(policy)
    counted, width = count_graph(artifact(policy, precision), videos), recipe.backbone.width
    formula = parts_of(complexity(recipe.schedule, recipe.backbone))
    assert dataclasses.replace(counted.parts(width), merging=0) == formula
    assert counted.tokens(width) == tokens_of_schedule(recipe.schedule)


def test_merging_of_the_graph_is_that_of_the_fast_encoder(tiny_recipe, artifact):
    """But for the sizes after the last merge, which nothing reads and the exporter leaves out."""
    recipe = tiny_recipe("clips")
    width, last = recipe.backbone.width, recipe.schedule.blocks[-1]
    eager = count_eager(VideoEncoder(recipe), shape_frames(recipe)).parts(width).merging
    graph = count_graph(artifact("clips")).parts(width).merging
    unread = last.clips * (last.tokens_mlp - last.n_cls) * (last.tokens_attention - last.n_cls)
    assert 0 < eager - graph <= unread


def test_a_graph_in_memory_is_the_file_before_it_is_written(tiny_recipe, artifact):
    proto, width = graph_of(tiny_recipe("none", "cpu")), 64
    assert count_graph(proto).parts(width) == count_graph(artifact("none")).parts(width)
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1, "the caller's graph was changed"


def graph(nodes, inputs, constants=None, outputs=("y",)):
    """A ModelProto: inputs {name: shape}, constants {name: shape} of zeros."""
    import numpy as np

    initializers = [numpy_helper.from_array(np.zeros(s, "f4"), n) for n, s in (constants or {}).items()]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
    return helper.make_model(
        helper.make_graph(nodes, "small", values, results, initializers),
        opset_imports=[helper.make_opsetid("", 18)],
    )


def test_convolution_gemm_and_products_of_weights_by_hand():
    proto = graph(
        [
            helper.make_node("Conv", ["x", "k"], ["c"], strides=[2, 2], group=2),
            helper.make_node("Flatten", ["c"], ["f"]),
            helper.make_node("Gemm", ["f", "w"], ["g"], transB=1),
            helper.make_node("Transpose", ["u"], ["v"], perm=[1, 0]),
            helper.make_node("MatMul", ["g", "v"], ["y"]),
        ],
        {"x": ["batch", 4, 9, 9]},
        {"k": (6, 2, 3, 3), "w": (5, 96), "u": (7, 5)},
    )
    counted = count_graph(proto, 2)
    assert [(one.kind, one.macs) for one in counted.items] == [
        ("convolution", 2 * 16 * 6 * 2 * 9),
        ("weights", 2 * 96 * 5),
        ("weights", 2 * 5 * 7),
    ]


def test_gemm_with_its_first_operand_turned():
    proto = graph([helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)], {"x": [3, 4]}, {"w": (3, 5)})
    assert count_graph(proto, 3).items[0].macs == 4 * 3 * 5


def test_attention_by_its_softmax_and_merging_by_its_comparison():
    proto = graph(
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["x", "t"], ["logits"]),
            helper.make_node("Add", ["logits", "bias"], ["biased"]),
            helper.make_node("Softmax", ["biased"], ["s"]),
            helper.make_node("MatMul", ["s", "x"], ["a"]),
            helper.make_node("MatMul", ["a", "t"], ["score"]),
            helper.make_node("Greater", ["score", "zero"], ["is"]),
            helper.make_node("Cast", ["is"], ["one"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["one", "before"], ["placed"]),
            helper.make_node("MatMul", ["placed", "a"], ["y"]),
        ],
        {"x": ["batch", 5, 8]},
        {"bias": (5,), "zero": (1,), "before": (5, 5)},
    )
    kinds = [one.kind for one in count_graph(proto).items]
    assert kinds == ["attention", "attention", "merging", "merging", "merging"]  # logits, a; score, placed, y


def test_shapes_that_are_not_known_are_named():
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    with pytest.raises(InputError, match=r"the shape of '[xy]'.* is not known before the graph runs.*Export anew"):
        count_graph(graph([product], {"x": ["batch", "tokens", 8]}, {"w": (8, 8)}))


def test_a_shape_that_depends_on_values_is_named():
    nodes = [
        helper.make_node("NonZero", ["x"], ["where"]),
        helper.make_node("Cast", ["where"], ["z"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["u", "z"], ["y"]),
    ]
    with pytest.raises(InputError, match=r"the shape of '[yz]' \((Cast|MatMul)\) is not known"):
        count_graph(graph(nodes, {"x": [2, 3]}, {"u": (4, 2)}))


def test_shapes_that_contradict_each_other():
    with pytest.raises(InputError, match="contradict each other"):
        count_graph(graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["b", 7]}, {"w": (8, 8)}))


def test_a_product_with_a_vector_is_refused():
    with pytest.raises(InputError, match="multiplies a vector"):
        count_graph(graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["b", 8]}, {"w": (8,)}))


@pytest.mark.parametrize(
    ("kind", "domain"), [("Einsum", ""), ("MatMulInteger", ""), ("FusedMatMul", "com.microsoft"), ("Attention", "")]
)
def test_operators_that_hide_products_are_refused(kind, domain):
    node = helper.make_node(kind, ["x", "x"], ["y"], domain=domain)
    with pytest.raises(InputError, match=f"{kind}, whose products cannot be read"):
        count_graph(graph([node], {"x": ["b", 8]}))


def test_local_functions_are_refused():
    proto = graph([helper.make_node("Identity", ["x"], ["y"])], {"x": ["b", 8]})
    body = [helper.make_node("MatMul", ["a", "a"], ["b"])]
    proto.functions.append(helper.make_function("own", "hidden", ["a"], ["b"], body, [helper.make_opsetid("", 18)]))
    with pytest.raises(InputError, match="local functions"):
        count_graph(proto)


def test_a_file_that_is_no_graph(tmp_path):
    (tmp_path / "no.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"no\.onnx cannot be loaded as an ONNX graph"):
        count_graph(tmp_path / "no.onnx")


def test_a_graph_that_does_a_product_twice_is_not_the_formula(tiny_recipe, artifact):
    recipe, proto = tiny_recipe("clips"), onnx.load(str(artifact("clips")))
    width, formula = recipe.backbone.width, parts_of(complexity(recipe.schedule, recipe.backbone))
    products = [node for node in proto.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    found = zip(count_graph(proto).items, products, strict=True)
    mlp, node = next((one, node) for one, node in found if one.columns == 4 * width)
    again = onnx.NodeProto()
    again.CopyFrom(node)
    again.output[0] = "again"
    proto.graph.node.append(again)
    counted = count_graph(proto).parts(width)
    assert counted.products == formula.products + mlp.macs

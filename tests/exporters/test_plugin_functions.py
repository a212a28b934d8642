"""Function bodies of the plugin nodes: what four runtimes compute with them, against the reference."""

import functools

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from tempme_export.exporters import plugin_nodes
from tempme_export.exporters.plugin_functions import DOMAIN, PLUGIN_ATTRIBUTES, VERSION, functions_of
from tempme_export.exporters.plugin_nodes import Tokens
from tempme_export.kernels import dense_block
from tempme_export.kernels.reference import decision_gap_ref, match_tokens_ref, merge_tokens_ref
from tempme_export.parity.selftest import SAFE_GAP

KINDS = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
PRECISIONS = {
    "fp32": (TensorProto.FLOAT, torch.float32),
    "fp16": (TensorProto.FLOAT16, torch.float16),
    "bf16": (TensorProto.BFLOAT16, torch.bfloat16),
}
FORBIDDEN = {"Shape", "Size", "ConstantOfShape", "Expand", "NonZero", "TopK", "CumSum", "Loop", "If", "Scan"}

# (tokens, class tokens, r): both parities of both counts, one token kept, all A merged, one B
SETS = ((17, 1, 3), (18, 2, 1), (31, 12, 9), (12, 5, 2), (9, 1, 4), (4, 2, 1))


@functools.cache
def graph_of(nodes_key, make, precision="fp32", opset=20):
    """A chain of nodes as a model; `make` gives the nodes and `nodes_key` tells calls apart."""
    nodes = make()
    kinds = KINDS | {"T": PRECISIONS[precision][0]}

    def declared(value):
        axes = [f"{value.name}_0", *value.shape[1:]] if value.batched else value.shape
        return helper.make_tensor_value_info(value.name, kinds[value.kind], axes)

    written = [
        helper.make_node(
            node.op_type,
            [value.name for value in node.inputs],
            [value.name for value in node.outputs],
            domain=DOMAIN,
            **node.attributes,
            **PLUGIN_ATTRIBUTES,
        )
        for node in nodes
    ]
    graph = helper.make_graph(
        written, "one step", map(declared, nodes[0].inputs), [declared(v) for node in nodes for v in node.outputs]
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)]
    proto = helper.make_model(graph, opset_imports=opsets, functions=functions_of(nodes, opset), ir_version=10)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def run_ort(proto, inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in proto.graph.output]
    return dict(zip(names, session.run(names, inputs), strict=True))


def run_reference(proto, inputs):
    names = [value.name for value in proto.graph.output]
    return dict(zip(names, ReferenceEvaluator(proto).run(names, inputs), strict=True))


def run_inlined(proto, inputs):
    inlined = onnx.inliner.inline_local_functions(proto)
    assert not inlined.functions and {node.domain for node in inlined.graph.node} == {""}
    onnx.checker.check_model(inlined, full_check=True)
    return run_ort(inlined, inputs)


def run_openvino(proto, inputs):
    openvino = pytest.importorskip("openvino")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    inlined = onnx.inliner.inline_local_functions(proto).SerializeToString()
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(inlined), "CPU", settings)
    found = compiled(inputs)
    return {value.name: found[value.name] for value in proto.graph.output}


RUN = {"ort": run_ort, "reference": run_reference, "inlined": run_inlined, "openvino": run_openvino}


def as_numpy(**tensors):
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def low(x, precision):
    """A tensor of low precision as onnx knows it: numpy alone has no bfloat16."""
    kind = PRECISIONS[precision][0]
    return onnx.numpy_helper.to_array(helper.make_tensor("x", kind, x.shape, x.float().flatten().tolist()))


def metric_of(rows, n_tokens, width, seed, dtype=torch.float32):
    """Tokens of which many are equal, one is zero, and one of another item is not a number."""
    generator = torch.Generator().manual_seed(seed)
    metric = torch.randn(rows, n_tokens, width, generator=generator)
    metric[0, n_tokens // 2 :] = metric[0, : n_tokens - n_tokens // 2].clone()
    metric[0, -1] = 0
    metric[1] = metric[1, 0].clone()
    metric[2, -2] = torch.nan
    return metric.to(dtype)


def safe_match(metric, n_cls, r):
    """The reference's assignment. Its decisions lie SAFE_GAP from turning: no order of additions takes others."""
    assert (decision_gap_ref(metric, n_cls, r) >= SAFE_GAP).all(), "an unsafe decision was drawn"
    return match_tokens_ref(metric, n_cls, r).numpy()


@pytest.mark.parametrize(("n_tokens", "n_cls", "r"), SETS)
@pytest.mark.parametrize("engine", RUN)
def test_match_keys_decides_as_the_reference(engine, n_tokens, n_cls, r):
    keys = metric_of(4, n_tokens, 3 * 8, seed=1)
    tokens = Tokens(4, n_tokens, 3 * 8)
    proto = graph_of(("keys", n_tokens), lambda: plugin_nodes.match_keys(tokens, 3, n_cls, r))
    assert [node.op_type for node in proto.graph.node] == ["MatchKeys"]
    found = RUN[engine](proto, as_numpy(keys=keys))["assign"]
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, safe_match(keys.unflatten(-1, (3, 8)).mean(dim=2), n_cls, r))


@pytest.mark.parametrize("engine", RUN)
def test_keys_that_one_program_cannot_hold_are_split_first(engine):
    keys = metric_of(3, 261, 2 * 8, seed=2)
    proto = graph_of("streamed", lambda: plugin_nodes.match_keys(Tokens(3, 261, 16), 2, 1, 30))
    assert [node.op_type for node in proto.graph.node] == ["SplitKeys", "ScoreRows", "SelectRows"]
    found = RUN[engine](proto, as_numpy(keys=keys))
    np.testing.assert_array_equal(found["assign"], safe_match(keys.unflatten(-1, (2, 8)).mean(dim=2), 1, 30))


def joined(x, factor, cls_in):
    """Clips joined by the words of the spec: class tokens clip by clip, then patches clip by clip."""
    items = x.reshape(-1, factor, *x.shape[1:])
    parts = [clip[:cls_in] for item in items for clip in item], [clip[cls_in:] for item in items for clip in item]
    rows = [torch.cat(part) for group in parts for part in zip(*[iter(group)] * factor, strict=True)]
    return torch.stack([torch.cat([rows[k], rows[k + len(items)]]) for k in range(len(items))])


@pytest.mark.parametrize(("factor", "n_cls", "r"), [(2, 2, 5), (3, 6, 7), (1, 1, 2)])
@pytest.mark.parametrize("engine", RUN)
def test_split_scored_and_selected_clips_decide_as_the_reference(engine, factor, n_cls, r, unit_error):
    x = metric_of(3 * factor, 9, 16, seed=3)
    delta = metric_of(3 * factor, 9, 16, seed=4)
    tokens = Tokens(3 * factor, 9, 16, factor)
    proto = graph_of(("clips", factor), lambda: plugin_nodes.match_clips(tokens, n_cls, r))
    assert [node.op_type for node in proto.graph.node] == ["SplitClips", "ScoreRows", "SelectRows"]
    found = RUN[engine](proto, as_numpy(x=x, delta=delta))
    metric = joined(x + delta, factor, n_cls // factor)
    np.testing.assert_array_equal(found["assign"], safe_match(metric, n_cls, r))
    assert {name: found[name].dtype for name in ("high", "low", "scale")} == {
        "high": np.float16,
        "low": np.float16,
        "scale": np.float32,
    }
    rows = found["high"].astype(np.float64) + found["low"].astype(np.float64) / 2**12
    unit = torch.nn.functional.normalize((x + delta).double(), dim=-1).numpy()
    # Beside the length, the number and its remainder round by 2^-24 each, and the sum that is squared by 2^-23.
    np.testing.assert_allclose(rows * found["scale"][..., None], unit, rtol=0, atol=unit_error(16) + 2**-22)


@pytest.mark.parametrize("path", ["resident", "streamed", "clips"])
@pytest.mark.parametrize(("precision", "engine"), [("fp16", "ort"), ("fp16", "openvino"), ("bf16", "reference")])
def test_low_precision_decides_as_the_reference_of_the_rounded_metric(precision, engine, path):
    dtype = PRECISIONS[precision][1]
    n_tokens = 261 if path == "streamed" else 12
    x = metric_of(4, n_tokens, 16, seed=5, dtype=dtype)
    values = low(x, precision)
    if path == "clips":
        proto = graph_of("low", lambda: plugin_nodes.match_clips(Tokens(4, 12, 16, 2), 2, 7), precision)
        found = RUN[engine](proto, {"x": values, "delta": values})["assign"]
        expected = safe_match(joined(x + x, 2, 1), 2, 7)
    else:
        key = f"low {path}"
        proto = graph_of(key, lambda: plugin_nodes.match_keys(Tokens(4, n_tokens, 16), 2, 1, 5), precision)
        found = RUN[engine](proto, {"keys": values})["assign"]
        expected = safe_match(x.float().unflatten(-1, (2, 8)).mean(dim=2), 1, 5)
    np.testing.assert_array_equal(found, expected)


def steps_of(x, n_cls, r):
    """The match of x [rows, N, C] in its two forms: name -> nodes and inputs."""
    rows, n_tokens, width = x.shape
    zeros = np.zeros_like(x)
    return {
        "keys": (plugin_nodes.match_keys(Tokens(rows, n_tokens, width), 1, n_cls, r), {"keys": x}),
        "clips": (plugin_nodes.match_clips(Tokens(rows, n_tokens, width), n_cls, r), {"x": x, "delta": zeros}),
    }


@pytest.mark.parametrize("form", ["keys", "clips"])
@pytest.mark.parametrize("engine", RUN)
def test_all_pairs_of_equal_tokens_tie(engine, form):
    """Score 1 exactly in every pair, whatever it is and however it is summed, so that the lower A merges first.

    The first pairs use the most channels, so theirs is the largest sum of what rounding leaves.
    """
    generator = np.random.default_rng(8)
    rows = generator.standard_normal((2, 17, 64)) * (np.arange(64) < 64 - 3 * np.arange(17)[:, None])
    x = np.repeat(rows, 2, axis=1).astype(np.float32)[:, 1:]
    nodes, inputs = steps_of(x, 1, 5)[form]
    found = RUN[engine](graph_of(("pairs", form), lambda: nodes), inputs)["assign"]
    expected = match_tokens_ref(torch.from_numpy(x), 1, 5).numpy()
    np.testing.assert_array_equal(expected[:, 2:12:2], expected[:, 1:11:2])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("form", ["keys", "clips"])
@pytest.mark.parametrize("engine", RUN)
def test_scores_within_a_snapping_step_tie(engine, form):
    """The second B is nearer by 3e-7, a third of a step: the first is taken."""
    x = np.zeros((1, 4, 16), np.float32)
    x[0, 1, :2] = 0.5, 0.75**0.5
    x[0, 2, 0] = 1
    x[0, 3, :2] = 0.5 + 3e-7, 0.75**0.5
    nodes, inputs = steps_of(x, 1, 1)[form]
    found = RUN[engine](graph_of(("near", form), lambda: nodes), inputs)["assign"]
    np.testing.assert_array_equal(found, [[0, 1, 1, 2]])
    x[0, 3, 0] = 0.5 + 3e-6
    nodes, inputs = steps_of(x, 1, 1)[form]
    found = RUN[engine](graph_of(("near", form), lambda: nodes), inputs)["assign"]
    np.testing.assert_array_equal(found, [[0, 1, 2, 2]])


@pytest.mark.parametrize("form", ["keys", "clips"])
@pytest.mark.parametrize("engine", RUN)
def test_not_a_number_ranks_below_every_score(engine, form):
    """All scores are negative, so what is not a number must not count as 0."""
    x = np.random.default_rng(9).standard_normal((1, 14, 16)).astype(np.float32)
    x[0, 1::2] -= 9
    x[0, 2::2] += 9
    x[0, [1, 4], 3] = np.nan
    nodes, inputs = steps_of(x, 1, 3)[form]
    found = RUN[engine](graph_of(("nan", form), lambda: nodes), inputs)["assign"]
    expected = safe_match(torch.from_numpy(x), 1, 3)
    assert expected[0, 4] < 14 - 3 - 7 and (expected[0, 2::2] != expected[0, 1]).all()
    np.testing.assert_array_equal(found, expected)


MERGES = {
    "MergeNorm": (1, False, 0),
    "MergeNormSized": (1, True, 0),
    "MergeNormPlaced": (2, False, 4),
    "MergeNormSizedPlaced": (3, True, 6),
}


def merge_case(factor, n_cls, r, positions, dtype, seed=6):
    """Two videos of `2 * factor` clips with 9 tokens of width 16, sizes 1 to 300 and a random, valid assignment."""
    generator = torch.Generator().manual_seed(seed)
    clips = 4 * factor
    x, delta = (torch.randn(clips, 9, 16, generator=generator).to(dtype) for _ in range(2))
    size = torch.randint(1, 300, (clips, 9), generator=generator).float()
    metric = torch.randn(4, 9 * factor, 16, generator=generator)
    position = torch.randn(positions, 16, generator=generator).to(dtype) if positions else None
    weight, bias = torch.randn(2, 16, generator=generator)
    return x, delta, size, match_tokens_ref(metric, n_cls, r), position, weight, bias


@pytest.fixture
def close(step_error):
    """Asserts that every row [..., D] is a float64 result but for the rounding of one step in `dtype`."""

    def check(found, expected, dtype=torch.float32):
        assert found.shape == expected.shape and expected.dtype == torch.float64
        off = np.linalg.norm(found.astype(np.float64) - expected.numpy(), axis=-1)
        assert (off <= step_error(dtype) * expected.norm(dim=-1).numpy()).all()

    return check


def assert_log(found, sizes):
    """Logarithms of whole numbers: vector libraries are right to four units in the last place, of 1 around 0."""
    np.testing.assert_allclose(found, np.log(sizes.astype(np.float64)), rtol=2**-21, atol=2**-21)


@pytest.mark.parametrize("kept", ["some", "none"])
@pytest.mark.parametrize("op_type", MERGES)
@pytest.mark.parametrize("engine", RUN)
def test_merge_norm_is_the_references_merge(engine, op_type, kept, close):
    factor, sized, positions = MERGES[op_type]
    n_cls = factor
    n_a = (9 * factor + 1) // 2 - (n_cls + 1) // 2
    r = n_a if kept == "none" else 3
    x, delta, size, assign, position, weight, bias = merge_case(factor, n_cls, r, positions, torch.float32)
    tokens = Tokens(4 * factor, 9, 16, factor)
    proto = graph_of(
        (op_type, kept),
        lambda: (plugin_nodes.merge_norm(tokens, n_cls, r, sized=sized, positions=positions),),
    )
    assert [node.op_type for node in proto.graph.node] == [op_type]
    given = {"x": x, "delta": delta, "size": size, "assign": assign, "position": position, "weight": weight}
    given["bias"] = bias
    names = {value.name for value in proto.graph.input}
    found = RUN[engine](proto, as_numpy(**{name: tensor for name, tensor in given.items() if name in names}))

    whole = x + delta
    if position is not None:
        whole = whole + position.repeat(len(x) // positions, 1).unsqueeze(1)
    whole = joined(whole, factor, 1)
    sizes = joined(size, factor, 1) if sized else torch.ones(whole.shape[:2])
    merged, total = merge_tokens_ref(whole.double(), sizes.double(), assign, 9 * factor - r)
    np.testing.assert_array_equal(found["sizes"], total.numpy())
    assert_log(found["log_sizes"], total.numpy())
    close(found["merged"], merged)
    close(found["normed"], torch.nn.functional.layer_norm(merged, (16,), weight.double(), bias.double(), 1e-5))
    alone = torch.zeros(total.shape).scatter_add_(1, assign.long(), torch.ones(assign.shape)) == 1
    assert alone.any()
    for item, row in alone.nonzero().tolist():
        copied = whole[item, assign[item].tolist().index(row)].numpy()
        # A share of 1, beside zeros: exact in any order. OpenVINO divides by multiplying with an inverse.
        within = 2**-22 if engine == "openvino" else 0
        np.testing.assert_allclose(found["merged"][item, row], copied, rtol=within)


@pytest.mark.parametrize(("precision", "engine"), [("fp16", "ort"), ("fp16", "openvino"), ("bf16", "reference")])
def test_low_precision_merges_as_the_dense_form(precision, engine, close):
    dtype = PRECISIONS[precision][1]
    x, delta, size, assign, position, weight, bias = merge_case(3, 3, 4, 6, dtype)
    node = plugin_nodes.merge_norm(Tokens(12, 9, 16, 3), 3, 4, sized=True, positions=6)
    given = as_numpy(size=size, assign=assign, weight=weight, bias=bias)
    given |= {"x": low(x, precision), "delta": low(delta, precision), "position": low(position, precision)}
    found = RUN[engine](graph_of("low merge", lambda: (node,), precision), given)
    x, delta, size, position, weight, bias = (t.double() for t in (x, delta, size, position, weight, bias))
    merged, normed, sizes, _ = dense_block.merge_norm(x, delta, size, assign, position, weight, bias, 3, 3, 4)
    for name, expected in (("merged", merged), ("normed", normed)):
        assert found[name].dtype == given["x"].dtype
        close(found[name], expected, dtype)
    assert found["sizes"].dtype == found["log_sizes"].dtype == np.float32
    np.testing.assert_array_equal(found["sizes"], sizes.numpy())
    assert_log(found["log_sizes"], sizes.numpy())


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_bodies_are_standard_operators_of_the_graphs_opset(opset):
    tokens = Tokens(4, 261, 16)
    nodes = [*plugin_nodes.match_keys(tokens, 2, 1, 30), *plugin_nodes.match_keys(Tokens(4, 9, 16), 2, 1, 2)]
    nodes += plugin_nodes.match_clips(Tokens(4, 9, 16, 2), 2, 2)
    for factor, sized, positions in MERGES.values():
        nodes.append(plugin_nodes.merge_norm(Tokens(12, 9, 16, factor), factor, 2, sized=sized, positions=positions))
    functions = functions_of(nodes, opset)
    names = [function.name for function in functions]
    assert names == ["SplitKeys", "ScoreRows", "SelectRows", "MatchKeys", "SplitClips", *MERGES]
    for function, node in zip(functions, (next(n for n in nodes if n.op_type == name) for name in names), strict=True):
        onnx.checker.check_function(function, _context(opset))
        assert function.domain == "tempme"
        assert [(one.domain, one.version) for one in function.opset_import] == [("", opset)]
        assert {one.domain for one in function.node} == {""}
        assert not {one.op_type for one in function.node} & FORBIDDEN
        assert not any(one.op_type.startswith("Scatter") for one in function.node)
        written = [name for one in function.node for name in one.output]
        assert len(set(written)) == len(written) and not set(written) & set(function.input)
        assert set(function.output) <= set(written)
        assert list(function.attribute) == list(node.attributes)
        assert all(type(value) is int for value in node.attributes.values())
        defaults = {one.name: helper.get_attribute_value(one) for one in function.attribute_proto}
        assert defaults == {"plugin_namespace": b"tempme", "plugin_version": b"1"}
        for one in function.node:
            for bound in one.input if one.op_type == "Range" else ():
                assert next(n for n in function.node if bound in n.output).op_type == "Constant", function.name


def _context(opset):
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = 10, {"": opset, DOMAIN: VERSION}
    return context

"""The library in ONNX Runtime: it takes the nodes of `video.plugin.onnx` and decides as their bodies."""

import ctypes
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from tempme_export.errors import BackendError, UsageError
from tempme_export.exporters import ort_ops, plugin_nodes
from tempme_export.exporters.plugin_functions import DOMAIN, PLUGIN_ATTRIBUTES, VERSION, functions_of
from tempme_export.exporters.plugin_nodes import Tokens
from tempme_export.kernels import dense_block
from tempme_export.kernels.native import build as native
from tempme_export.kernels.reference import match_tokens_ref

KINDS = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
PRECISIONS = {"fp32": (TensorProto.FLOAT, np.float32), "fp16": (TensorProto.FLOAT16, np.float16)}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Path of the library, compiled once; skips where there is no compiler."""
    compiler = native.find_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler is installed")
    folder = tmp_path_factory.mktemp("library")
    native.build(compiler, folder / "library.so", folder)
    return folder / "library.so"


def model_of(nodes, precision="fp32", functions=True):
    """A chain of nodes as a model, every value of theirs an output; with or without function bodies."""
    kinds = KINDS | {"T": PRECISIONS[precision][0] if precision in PRECISIONS else TensorProto.BFLOAT16}

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
    outputs = [declared(value) for node in nodes for value in node.outputs]
    graph = helper.make_graph(written, "one step", [declared(value) for value in nodes[0].inputs], outputs)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)]
    bodies = functions_of(nodes, 20) if functions else []
    return helper.make_model(graph, opset_imports=opsets, functions=bodies, ir_version=10)


def run(model, inputs, library=None, profile=None, threads=2):
    """Outputs by name; with the library, its operators compute them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if library is not None:
        options.register_custom_ops_library(str(library))
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in model.graph.output]
    found = dict(zip(names, session.run(names, inputs), strict=True))
    if profile is not None:
        events = json.loads(Path(session.end_profiling()).read_text())
        kernels = [one["args"]["op_name"] for one in events if one["name"].endswith("_kernel_time")]
        return found, kernels
    return found


def draw(*shape, seed=42, kind=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(kind)


def steps(kind):
    """Every type of node there is, in chains as a graph has them: name -> (nodes, inputs)."""
    clips = Tokens(6, 20, 24, factor=3)
    keys, streamed = Tokens(4, 50, 24), Tokens(2, 261, 16)
    x, delta = draw(6, 20, 24, kind=kind), draw(6, 20, 24, seed=1, kind=kind)
    x[0, -1], delta[0, -1] = 0, 0
    x[3:] = x[:3]  # a frozen film's clips
    joined = dense_block.join_clips(torch.from_numpy(x + delta), 3, 3)
    merging = {"x": x, "delta": delta, "assign": match_tokens_ref(joined, 3, 17).numpy()}
    merging |= {"weight": draw(24, seed=2), "bias": draw(24, seed=3)}
    sized = {"size": np.random.default_rng(4).integers(1, 60, (6, 20)).astype(np.float32)}
    placed = {"position": draw(6, 24, seed=5, kind=kind)}
    merge = plugin_nodes.merge_norm
    return {
        "keys": (plugin_nodes.match_keys(keys, 3, 1, 7), {"keys": draw(4, 50, 24, kind=kind)}),
        "streamed keys": (plugin_nodes.match_keys(streamed, 2, 1, 30), {"keys": draw(2, 261, 16, kind=kind)}),
        "clips": (plugin_nodes.match_clips(clips, 3, 17), {"x": x, "delta": delta}),
        "merge": ((merge(clips, 3, 17, sized=False),), merging),
        "sized merge": ((merge(clips, 3, 17, sized=True),), merging | sized),
        "placed merge": ((merge(clips, 3, 17, sized=False, positions=6),), merging | placed),
        "sized, placed merge": ((merge(clips, 3, 17, sized=True, positions=6),), merging | sized | placed),
    }


@pytest.mark.parametrize("name", steps(np.float32))
@pytest.mark.parametrize("precision", PRECISIONS)
class TestNodes:
    def test_the_operator_takes_the_node_from_its_body(self, library, tmp_path, name, precision):
        nodes, inputs = steps(PRECISIONS[precision][1])[name]
        model = model_of(nodes, precision)
        found, kernels = run(model, inputs, library, tmp_path / "profile")
        assert kernels == [node.op_type for node in nodes], "each once, and nothing else"
        expected = run(model, inputs)
        limit = 1e-5 if precision == "fp32" else 4e-3  # two roundings of a value below 4 to float16
        for value in (value for node in nodes for value in node.outputs):
            mine, body = found[value.name], expected[value.name]
            assert mine.dtype == body.dtype and mine.shape == body.shape
            if mine.dtype == np.int32:
                np.testing.assert_array_equal(mine, body)
            elif value.name not in ("high", "low"):  # of which each is one of several spellings
                np.testing.assert_allclose(mine, body, rtol=0, atol=limit if value.name != "best" else 1)

    def test_without_a_body_too(self, library, name, precision):
        nodes, inputs = steps(PRECISIONS[precision][1])[name]
        found = run(model_of(nodes, precision, functions=False), inputs, library)
        for key, value in run(model_of(nodes, precision), inputs, library).items():
            np.testing.assert_array_equal(found[key], value)

    def test_batch_and_threads_change_no_bit(self, library, name, precision):
        nodes, inputs = steps(PRECISIONS[precision][1])[name]
        model, batched = model_of(nodes, precision), {value.name for value in nodes[0].inputs if value.batched}
        one = run(model, inputs, library)
        for threads in (1, 3):
            twice = {key: np.concatenate([value] * 2) if key in batched else value for key, value in inputs.items()}
            for key, value in run(model, twice, library, threads=threads).items():
                np.testing.assert_array_equal(value, np.concatenate([one[key]] * 2))


def test_a_graph_in_bfloat16_is_taken(library):
    nodes = plugin_nodes.match_keys(Tokens(4, 50, 24), 3, 1, 7)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library))
    model = model_of(nodes, "bf16", functions=False)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("name", "attributes", "words"),
    [
        ("keys", {"heads": 5}, "whole heads"),
        ("streamed keys", {"n_tokens": 264}, "axes are not what"),
        ("keys", {"r": 26}, "r is more"),
        ("clips", {"factor": 4}, "no multiple"),
        ("clips", {"factor": 0}, "no multiple"),
        ("merge", {"r": -1}, "r is more"),
        ("merge", {"n_cls": 61}, "no multiple|counts"),
        ("placed merge", {"n_positions": 7}, "axes are not what"),
    ],
)
def test_attributes_that_do_not_fit_are_refused(library, name, attributes, words):
    nodes, inputs = steps(np.float32)[name]
    nodes = [replace(node, attributes={**node.attributes, **attributes}) for node in nodes]
    model = model_of(nodes, functions=False)
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match=words):
        run(model, inputs, library)


def test_a_node_without_its_attributes_is_refused(library):
    (node,), inputs = steps(np.float32)["keys"]
    model = model_of([node], functions=False)
    del model.graph.node[0].attribute[:]
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException, match="heads"):
        run(model, inputs, library)


def test_an_older_runtime_is_refused_in_words(library):
    """It has no table of the version asked for; the first version's, which every runtime has, makes the error."""
    said = []
    create = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)(lambda code, text: said.append(text) or 7)
    table = (ctypes.c_void_p * 1)(ctypes.cast(create, ctypes.c_void_p))
    get = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(lambda n: ctypes.addressof(table) if n == 1 else None)
    base = (ctypes.c_void_p * 2)(ctypes.cast(get, ctypes.c_void_p), None)
    register = ctypes.CDLL(str(library)).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, base) == 7
    assert said == [b"found an older ONNX Runtime, expected 1.23 or newer."]


def asked(**changes):
    return SimpleNamespace(**{"precision": "fp32", "device": "cpu"} | changes)


class TestRequest:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"precision": "bf16"}, "have no kernels there"),
            ({"precision": "int8"}, "without nodes of ours"),
            ({"device": "cuda"}, "is for processors"),
        ],
    )
    def test_what_does_not_run_there(self, changes, words):
        with pytest.raises(UsageError, match=words):
            ort_ops.check(asked(**changes))

    def test_no_compiler(self, monkeypatch):
        monkeypatch.setenv("CXX", "no-such-compiler")
        with pytest.raises(BackendError, match=r"found CXX=no-such-compiler, .*sudo apt install g\+\+"):
            ort_ops.check(asked())

    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_what_does(self, precision):
        ort_ops.check(asked(precision=precision))

    def test_a_model_that_never_merges(self, tiny_recipe):
        ort_ops.check_recipe(tiny_recipe, asked())
        schedule = SimpleNamespace(blocks=())
        never = SimpleNamespace(profile=tiny_recipe.profile, backbone=tiny_recipe.backbone, schedule=schedule)
        with pytest.raises(UsageError, match="merges no tokens"):
            ort_ops.check_recipe(never, asked())

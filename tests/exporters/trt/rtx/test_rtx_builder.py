"""The check with TensorRT-RTX: how it drives parser and builder and what it refuses, against a stand-in for both.

With the real libraries in build/trt-rtx (`make trt-rtx-check` puts them there) one tiny graph is built for real.
"""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import onnx
import pytest
from onnx import TensorProto, helper

from tempme_export.cli import rtx_check
from tempme_export.encoder.profile import BatchRange
from tempme_export.errors import BackendError, ExportError
from tempme_export.exporters.trt.reports import Failure
from tempme_export.exporters.trt.rtx import builder as rtx_builder

ROOT = Path(__file__).resolve().parents[4]
MINI = ROOT / "examples" / "mini.pth"
REAL = ROOT / rtx_check.FOLDER
BATCH = BatchRange(1, 2, 5)
TENSOR = "{ Name: x, Dimensions: [-1,17,64], Datatype: Half, Format: (Linear) Row major linear format }"


def layer(name, kind, *nodes):
    """A line of the builder's listing."""
    origin = "".join(f"[ONNX Layer: {node}]" for node in nodes)
    given = f"Inputs: [ {TENSOR}], Constants: [], Outputs: [ {TENSOR}]"
    return f"Name: {name}, LayerType: {kind}, {given}, TacticName: , StreamId: 0, Metadata: {origin}\n"


def write_graph(path):
    """x -> softmax(x @ xᵀ) @ x, with a function of another domain behind it that adds nothing."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2], name="tr"),
        helper.make_node("MatMul", ["x", "t"], ["l"], name="mm1"),
        helper.make_node("Softmax", ["l"], ["s"], axis=-1, name="soft"),
        helper.make_node("MatMul", ["s", "x"], ["z"], name="mm2"),
        helper.make_node("Same", ["z"], ["y"], name="same", domain="tempme"),
    ]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("tempme", 1)]
    same = helper.make_function(
        "tempme", "Same", ["i"], ["o"], [helper.make_node("Identity", ["i"], ["o"])], opsets[:1]
    )
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["b", 2, 17, 64]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=[same], ir_version=10), path)
    return path


class StandIn:
    """As much of the bindings as the check uses; what it is asked is kept in `asked`.

    registered  nodes of domain tempme become plugins, but for the last `lost`
    """

    __version__ = "0.0-stand-in"
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    BuilderFlag = SimpleNamespace(TF32="tf32")

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = "internal", "error", "warning", "info", "verbose"

    def __init__(self, parses=True, builds=True, errors=0):
        self.parses, self.builds, self.errors, self.asked = parses, builds, errors, {}
        self.registered, self.lost, self.fuses = False, 0, True

    def parse(self, path):
        nodes = onnx.load(path).graph.node
        ours = [node.name for node in nodes if node.domain == "tempme"] if self.registered else []
        self.plugins = ours[: len(ours) - self.lost]
        return self.parses

    def OnnxParser(self, network, logger):
        def error(i):
            return SimpleNamespace(
                node=lambda: i, node_name=lambda: f"n{i}", node_operator=lambda: "TopK", desc=lambda: "k is too large"
            )

        return SimpleNamespace(parse_from_file=self.parse, num_errors=self.errors, get_error=error)

    def Builder(self, logger):
        frames = SimpleNamespace(name="frames", shape=(-1, 8, 3))
        rtx = self

        class Network:
            num_inputs, get_input = 1, [frames].__getitem__
            num_layers = property(lambda _: 2 + len(rtx.plugins))

            def get_layer(self, index):
                names = ["SHUFFLE", "SOFTMAX", *("PLUGIN_V3" for _ in rtx.plugins)]
                return SimpleNamespace(type=SimpleNamespace(name=names[index]))

        network = Network()

        def build(network, config):
            self.asked["verbosity"] = config.profiling_verbosity
            if not self.builds:
                logger.log(self.ILogger.ERROR, "no tactic")
                logger.log(self.ILogger.INFO, "and so on")
                return None
            attention = layer("_gemm_mha_v2_myl0_1", "kgen", *(("mm1", "soft", "mm2") if self.fuses else ("mm1",)))
            ours = [layer(f"{name}_myl0_{k}", "custom_layer", name) for k, name in enumerate(self.plugins)]
            logger.log(self.ILogger.VERBOSE, "Layers:\n" + attention + "".join(ours))
            return SimpleNamespace(nbytes=1234)

        def set_shape(*shape):
            self.asked["profile"] = shape

        profile = SimpleNamespace(set_shape=set_shape)
        config = SimpleNamespace(
            add_optimization_profile=lambda one: self.asked.update(added=one is profile),
            clear_flag=lambda flag: self.asked.update(cleared=flag),
        )
        return SimpleNamespace(
            create_network=lambda flags: network,
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: profile,
            build_serialized_network=build,
        )


def test_both_ends_of_a_graph_are_counted(tmp_path):
    rtx = StandIn()
    built = rtx_builder.build(rtx, write_graph(tmp_path / "g.onnx"), BATCH)
    assert (built.file, built.onnx_nodes, built.functions, built.plugin_nodes) == ("g.onnx", 5, 1, 1)
    assert (built.network_layers, built.plugin_layers, built.layers) == (2, 0, 1)
    assert (built.attentions, built.fused, built.dtypes, built.engine_bytes) == (1, 1, {"Half": 1}, 1234)
    assert rtx.asked == {
        "verbosity": "detailed",
        "cleared": "tf32",
        "profile": ("frames", [1, 8, 3], [2, 8, 3], [5, 8, 3]),
        "added": True,
    }


def test_every_error_of_the_parser_is_told_with_its_node_up_to_a_few(tmp_path):
    with pytest.raises(ExportError) as caught:
        rtx_builder.build(StandIn(parses=False, errors=11), write_graph(tmp_path / "g.onnx"), BATCH)
    assert "does not parse g.onnx: node 0 ('n0', TopK): k is too large; node 1" in str(caught.value)
    assert str(caught.value).endswith("node 7 ('n7', TopK): k is too large; and 3 more.")


def test_a_parser_without_a_reason_is_said_so(tmp_path):
    with pytest.raises(ExportError, match=r"does not parse g\.onnx: it does not say why"):
        rtx_builder.build(StandIn(parses=False), write_graph(tmp_path / "g.onnx"), BATCH)


def test_an_engine_that_is_not_built_tells_the_errors_alone(tmp_path):
    with pytest.raises(ExportError, match=r"parses g\.onnx and does not build it: no tactic\.$"):
        rtx_builder.build(StandIn(builds=False), write_graph(tmp_path / "g.onnx"), BATCH)


def test_a_folder_without_the_libraries_is_refused(tmp_path):
    with pytest.raises(BackendError, match="Run make trt-rtx-check"):
        rtx_builder.load_bindings(tmp_path)


def test_a_library_that_does_not_load_is_named(tmp_path):
    (tmp_path / rtx_builder.PROVIDER).mkdir()
    (tmp_path / rtx_builder.PROVIDER / "libtensorrt_rtx.so.1.0").write_bytes(b"no library")
    with pytest.raises(BackendError, match=r"libtensorrt_rtx\.so\.1\.0 does not load"):
        rtx_builder.load_bindings(tmp_path)


def test_bindings_for_another_python_are_refused(tmp_path):
    (tmp_path / rtx_builder.PROVIDER).mkdir()
    for stem in ("libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so"):
        (tmp_path / rtx_builder.PROVIDER / f"{stem}.1").touch()
    before = list(sys.path)
    with pytest.raises(BackendError, match=f"holds no {rtx_builder.BINDINGS} for Python"):
        rtx_builder.load_bindings(tmp_path, lambda name, mode: None)
    assert sys.path == before


class FakePlugins:
    """Our plugins in the stand-in. `does` is what happens when they are registered."""

    def __init__(self, rtx, precision, does=lambda plugins: None):
        self.rtx, self.precision, self.does, self.failure, self.checked = rtx, precision, does, Failure(), 0

    def register(self, target):
        assert target == "sm_80"
        self.rtx.registered = True
        self.does(self)

    def check_launches(self):
        self.checked += 1


def build_graphs(does=lambda plugins: None):
    """All that is built of a small graph, and the plugins."""
    made = []

    def plugins_of(rtx, recipe, precision):
        made.append(FakePlugins(rtx, precision, does))
        return made[0]

    recipe = SimpleNamespace(profile=SimpleNamespace(batch=BATCH))
    exporters = dict.fromkeys(rtx_builder.EXPORTERS, lambda recipe, path, precision: write_graph(path))
    return list(rtx_builder.build_graphs(StandIn(), recipe, "fp16", exporters, plugins_of)), made[0]


def test_both_graphs_are_built_and_the_second_once_more_with_plugins():
    built, plugins = build_graphs()
    assert [(one.file, one.plugins) for one in built] == [
        ("video.onnx", False),
        ("video.plugin.onnx", False),
        ("video.plugin.onnx", True),
    ]
    assert [(one.layers, one.plugin_layers) for one in built] == [(1, 0), (1, 0), (2, 1)]
    assert plugins.checked == 1


def lose(plugins):
    plugins.rtx.lost = 1


def split(plugins):
    plugins.rtx.fuses = False


def fail(plugins):
    plugins.failure.keep(ExportError("merge_kernel takes too much."))


def other(plugins):
    plugins.precision = "bf16"


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (lose, "made 0 plugins of the 1 nodes of ours in video.plugin.onnx, and 0 layers"),
        (split, "with plugins 0 attentions of video.plugin.onnx are fused, and without 1"),
        (fail, "^merge_kernel takes too much"),
        (other, "the engine is not in bf16: 1 of its 1"),
    ],
    ids=["a function's body", "attention", "a plugin raises", "precision"],
)
def test_plugins_that_do_not_do_are_refused(does, said):
    with pytest.raises(ExportError, match=said):
        build_graphs(does)


def run(monkeypatch, load, *arguments):
    """Exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["trt-rtx-check", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        rtx_check.rtx_check(load, lambda rtx, recipe, precision: FakePlugins(rtx, precision)).main()()
    return caught.value.code


def test_the_command_shows_both_graphs_and_the_warning(monkeypatch, capsys):
    assert run(monkeypatch, lambda _: StandIn(), MINI, "--json") == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert [one["file"] for one in document["graphs"]] == ["video.onnx", "video.plugin.onnx", "video.plugin.onnx"]
    plain, bodies, plugins = ((one["plugin_nodes"], one["plugin_layers"]) for one in document["graphs"])
    assert plain == (0, 0) and bodies == (plugins[0], 0) and plugins[0] == plugins[1] > 0
    assert f"{plugins[0]} for plugins" in err and "video.plugin.onnx with plugins" in err
    assert document["notice"] == rtx_check.NOTICE and "another product than TensorRT" in rtx_check.NOTICE
    assert (document["precision"], document["tensorrt_rtx"]) == ("fp16", "0.0-stand-in")
    assert "fp16, batch 1:8:64, TensorRT-RTX 0.0-stand-in" in err
    assert "by type: Half 1" in err and " ".join(rtx_check.NOTICE.split()[:6]) in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [([MINI], 4, "Run make trt-rtx-check"), (["none.pth"], 3, "none.pth"), (["none", "--random"], 3, "none")],
    ids=["no libraries", "no checkpoint", "no profile"],
)
def test_the_command_refuses(tmp_path, monkeypatch, capsys, arguments, code, message):
    assert run(monkeypatch, lambda _: rtx_builder.load_bindings(tmp_path), *arguments) == code
    assert message in capsys.readouterr().err


def real() -> ModuleType:
    if not (REAL / rtx_builder.BINDINGS).is_dir():
        pytest.skip(f"needs TensorRT-RTX in {rtx_check.FOLDER}: make trt-rtx-check")
    return rtx_builder.load_bindings(REAL)


def test_a_real_builder_takes_a_function_and_fuses_an_attention(tmp_path):
    built = rtx_builder.build(real(), write_graph(tmp_path / "g.onnx"), BATCH)
    assert (built.plugin_nodes, built.plugin_layers) == (1, 0)
    assert (built.attentions, built.fused) == (1, 1)
    assert built.dtypes["Half"] >= 1 and built.engine_bytes > 1000


def test_a_real_parser_tells_the_node_it_does_not_know(tmp_path):
    rtx = real()
    model = onnx.load(write_graph(tmp_path / "g.onnx"))
    del model.functions[:]
    onnx.save(model, tmp_path / "g.onnx")
    with pytest.raises(ExportError, match=r"node 4 \('same', Same\)"):
        rtx_builder.build(rtx, tmp_path / "g.onnx", BATCH)

"""The builder against a stand-in for TensorRT, whose every name is held against NVIDIA's published bindings."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from onnx import TensorProto, helper

from tempme_export.encoder.profile import BatchRange
from tempme_export.errors import BackendError, ExportError, UsageError
from tempme_export.exporters.trt import builder, requirements
from tempme_export.progress import SILENT, LogLine
from tempme_export.runtime.engine_facts import ENGINE, KEY, SOURCE
from tempme_export.runtime.nvidia import Gpu

H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), "580.65.06", (13, 0))
BATCH = BatchRange(1, 8, 64)


class Members:
    """Stands in for an enumeration: `Flag.NAME` counts from 0, and `int(Flag.NAME)` works."""

    def __init__(self, *names):
        for value, name in enumerate(names):
            setattr(self, name, value)


class FakeTrt:
    """TensorRT as `build` uses it. What it was asked for lies in `asked`; the switches below make it fail.

    plugins    layers that the parser makes plugins of, by node name; None: all
    errors     what the parser finds wrong
    broken     the build returns nothing
    raised     what a plugin raises, by when it is called: "parsing" or "building"
    layers     what the inspector reports
    """

    NetworkDefinitionCreationFlag = Members("EXPLICIT_BATCH", "STRONGLY_TYPED", "PREFER_AOT_PYTHON_PLUGINS")
    LayerType = Members("CONVOLUTION", "PLUGIN", "PLUGIN_V2", "PLUGIN_V3")
    ProfilingVerbosity = Members("LAYER_NAMES_ONLY", "DETAILED")
    BuilderFlag = Members("DEBUG", "TF32")
    MemoryPoolType = Members("WORKSPACE")
    TensorIOMode = Members("NONE", "INPUT", "OUTPUT")
    LayerInformationFormat = Members("ONELINE", "JSON")

    class IProgressMonitor:
        def __init__(self):
            pass

    class ILogger:
        def __init__(self):
            pass

    def __init__(self, version="11.4.0.106"):
        self.__version__ = version
        self.asked, self.plugins, self.errors, self.broken, self.raised = {}, None, [], False, {}
        self.layers = [
            {"Name": "a", "LayerType": "gemm", "Inputs": [{"Dimensions": [-1, 8], "Datatype": "Half"}]},
            {
                "Name": "_gemm_mha_v2_myl0_4",
                "LayerType": "kgen",
                "Inputs": [{"Dimensions": [-1, 8], "Datatype": "Half"}],
            },
            {"Name": "m", "LayerType": "PluginV3", "Inputs": [{"Dimensions": [-1, 8], "Datatype": "Half"}]},
        ]
        self.accepts_timings, self.loads, self.context, self.network = True, True, True, True

    def nptype(self, dtype):
        return dtype

    def call_plugins(self, when):
        """False where one raises, which TensorRT logs at most."""
        if when in self.raised:
            self.failure.keep(self.raised[when])
        return when not in self.raised

    def Builder(self, logger):
        return FakeBuilder(self, logger)

    def OnnxParser(self, network, logger):
        return FakeParser(self, network)

    def Runtime(self, logger):
        def load(plan):
            self.asked["loaded"] = bytes(memoryview(plan))
            return FakeEngine(self) if self.loads else None

        return SimpleNamespace(deserialize_cuda_engine=load)


class FakeParser:
    def __init__(self, trt, network):
        self.trt, self.network, self.num_errors = trt, network, len(trt.errors)

    def parse_from_file(self, model):
        graph = onnx.load(model).graph
        for node in graph.node:
            ours = node.domain == "tempme" and (self.trt.plugins is None or node.name in self.trt.plugins)
            kind = self.trt.LayerType.PLUGIN_V3 if ours else self.trt.LayerType.CONVOLUTION
            self.network.layers.append(SimpleNamespace(name=node.name, type=kind))
        for value in graph.input:
            shape = tuple(axis.dim_value or -1 for axis in value.type.tensor_type.shape.dim)
            self.network.inputs.append(SimpleNamespace(name=value.name, shape=shape))
        return self.trt.call_plugins("parsing") and not self.trt.errors

    def get_error(self, index):
        node, operator, text = self.trt.errors[index]
        return SimpleNamespace(
            node=lambda: node,
            node_operator=lambda: operator,
            node_name=lambda: f"node_{node}",
            local_function_stack=lambda: [],
            desc=lambda: text,
        )


class FakeNetwork:
    def __init__(self):
        self.layers, self.inputs = [], []

    num_layers = property(lambda self: len(self.layers))
    num_inputs = property(lambda self: len(self.inputs))

    def get_layer(self, index):
        return self.layers[index]

    def get_input(self, index):
        return self.inputs[index]


class FakeBuilder:
    def __init__(self, trt, logger):
        self.trt, self.logger = trt, logger

    def create_network(self, flags):
        self.trt.asked["flags"] = flags
        return FakeNetwork() if self.trt.network else None

    def create_builder_config(self):
        return FakeConfig(self.trt)

    def create_optimization_profile(self):
        shapes = self.trt.asked.setdefault("shapes", {})
        return SimpleNamespace(set_shape=lambda name, *three: shapes.update({name: three}))

    def build_serialized_network(self, network, config):
        monitor = config.progress_monitor
        monitor.phase_start("engine", None, 2)
        goes_on = monitor.step_complete("engine", 0)
        monitor.phase_finish("engine")
        self.logger.log("Severity.VERBOSE", "trying tactics")
        self.trt.asked["config"] = config
        if not self.trt.call_plugins("building") or self.trt.broken or not goes_on:
            self.logger.log("Severity.ERROR", "no implementation for node_7")
            return None
        config.timings += b" and now"
        return b"an engine"


class FakeConfig:
    def __init__(self, trt):
        self.trt, self.cleared, self.pools, self.timings = trt, [], {}, b""
        self.profiling_verbosity = self.progress_monitor = None

    def clear_flag(self, flag):
        self.cleared.append(flag)

    def set_memory_pool_limit(self, pool, size):
        self.pools[pool] = size

    def add_optimization_profile(self, profile):
        return -1 if self.trt.asked["shapes"]["frames"][0][0] == 5 else 0

    def create_timing_cache(self, stored):
        return None if stored == b"damaged" else stored

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        if cache and not self.trt.accepts_timings:
            return False
        self.timings = cache
        return True

    def get_timing_cache(self):
        return SimpleNamespace(serialize=lambda: self.timings)


class FakeEngine:
    TENSORS = (("frames", "INPUT", "float32", (-1, 2, 3, 4, 4)), ("video_embedding", "OUTPUT", "float32", (-1, 6)))

    def __init__(self, trt):
        self.trt, self.num_io_tensors = trt, len(self.TENSORS)
        self.rows = {row[0]: row for row in self.TENSORS}

    def get_tensor_name(self, index):
        return self.TENSORS[index][0]

    def get_tensor_mode(self, name):
        return getattr(self.trt.TensorIOMode, self.rows[name][1])

    def get_tensor_dtype(self, name):
        return self.rows[name][2]

    def get_tensor_shape(self, name):
        return self.rows[name][3]

    def create_execution_context(self):
        return (
            SimpleNamespace(set_input_shape=lambda n, s: self.trt.asked.update(inspected=(n, s)))
            if self.trt.context
            else None
        )

    def create_engine_inspector(self):
        return FakeInspector(self.trt)


class FakeInspector:
    execution_context = None

    def __init__(self, trt):
        self.trt = trt

    def get_engine_information(self, format):
        assert format == self.trt.LayerInformationFormat.JSON
        assert self.execution_context is not None, "without a context dynamic shapes hide formats"
        return json.dumps({"Layers": self.trt.layers})


@pytest.fixture
def source(tmp_path):
    """A graph with two nodes of ours and one of the standard's."""
    frames = helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["batch", 2, 3, 4, 4])
    out = helper.make_tensor_value_info("video_embedding", TensorProto.FLOAT, ["batch", 6])
    nodes = [
        helper.make_node("MatchKeys", ["frames"], ["assign"], name="node_m0", domain="tempme"),
        helper.make_node("Relu", ["frames"], ["r"], name="node_relu"),
        helper.make_node("MergeNorm", ["r", "assign"], ["video_embedding"], name="node_m1", domain="tempme"),
    ]
    graph = helper.make_graph(nodes, "g", [frames], [out])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("tempme", 1)]
    (tmp_path / SOURCE).write_bytes(helper.make_model(graph, opset_imports=opsets).SerializeToString())
    return tmp_path / SOURCE


def test_nodes_of_another_version(source):
    model = onnx.load(source)
    model.graph.node[0].op_type = "MatchRows"
    onnx.save(model, source)
    with pytest.raises(ExportError, match=r"found nodes MatchRows, expected MatchKeys, .*export the checkpoint again"):
        builder.read_plugin_names(source)


class FakeWorkshop:
    """A machine with an H100 and the stand-in for TensorRT, where kernels are not compiled.

    registered  what was compiled, and for what plugins were registered
    asked       the GPUs that were looked for
    """

    def __init__(self):
        self.trt, self.found, self.lacks, self.registered, self.asked = FakeTrt(), H100, (), [], []

    def missing(self, device):
        return self.lacks

    def tensorrt(self):
        return self.trt

    def gpu(self, device):
        self.asked.append(device)
        return self.found

    def on(self, device):
        return contextlib.nullcontext()

    def variants(self, nodes, precision):
        return nodes

    def compile(self, variant, target):
        self.registered.append((variant.name, target))
        return SimpleNamespace(ptx=variant.ptx)

    def register(self, target, failure):
        self.registered.append(target)
        self.trt.failure = failure


@pytest.fixture
def machine():
    return FakeWorkshop()


@pytest.fixture
def run(source, machine, recording):
    """Builds with defaults that a test changes; `told` is what was told."""
    folder = source.parent

    def build(precision="fp16", batch=BATCH, progress=None, **options):
        asked = {"device": "cuda", "timing_cache": folder / "out.timing"} | options
        settings = builder.EngineSettings(batch, precision, **asked)
        nodes = [SimpleNamespace(name="merge_kernel", ptx=build.ptx)]
        return builder.build(source, folder / ENGINE, settings, nodes, progress or build.told, machine)

    build.told, build.ptx = recording(), "some text"
    return build


class TestBuild:
    def test_facts_and_file(self, run, source):
        facts = run()
        assert (source.parent / ENGINE).read_bytes() == b"an engine"
        assert (facts.tensorrt, facts.gpu, facts.capability) == ("11.4.0.106", H100.name, "sm_90")
        assert (facts.driver, facts.precision, facts.batch, facts.target) == ("580.65.06", "fp16", (1, 8, 64), "sm_90")
        assert facts.inputs == {"frames": ("float32", (None, 2, 3, 4, 4))}
        assert facts.outputs == {"video_embedding": ("float32", (None, 6))}
        assert facts.plugins == {"MatchKeys": 1, "MergeNorm": 1}
        assert facts.engine_plugins == 1 and facts.attentions == 1
        assert facts.layers == {"fp16": 3} and facts.products == {"fp16": 2}
        assert facts.seconds > 0

    def test_what_tensorrt_is_asked_for(self, run, machine):
        run(workspace_gib=1.5)
        asked, trt = machine.trt.asked, machine.trt
        assert asked["shapes"] == {"frames": ((1, 2, 3, 4, 4), (8, 2, 3, 4, 4), (64, 2, 3, 4, 4))}
        assert asked["inspected"] == ("frames", (8, 2, 3, 4, 4))
        assert asked["config"].profiling_verbosity == trt.ProfilingVerbosity.DETAILED
        assert asked["config"].cleared == [trt.BuilderFlag.TF32]
        assert asked["config"].pools == {trt.MemoryPoolType.WORKSPACE: 3 * 2**29}
        assert asked["loaded"] == b"an engine"

    def test_without_a_limit_of_memory(self, run, machine):
        run()
        assert machine.trt.asked["config"].pools == {}

    @pytest.mark.parametrize(
        ("version", "flags"), [("10.15.1.29", 0b110), ("10.16.1.11", 0b110), ("11.0.0.114", 0b100)]
    )
    def test_strong_typing_is_asked_for_where_it_is_not_all_there_is(self, run, machine, version, flags):
        machine.trt.__version__ = version
        run()
        assert machine.trt.asked["flags"] == flags

    def test_kernels_are_compiled_and_registered_for_the_gpu_before_parsing(self, run, machine):
        machine.trt.errors = [(0, "X", "stop here")]
        with pytest.raises(ExportError):
            run()
        assert machine.registered == [("merge_kernel", "sm_90"), "sm_90"]

    def test_a_gpu_without_a_build_of_its_own(self, run, machine):
        machine.found = Gpu("B300", (10, 3), "", (13, 0))
        assert run().target == "sm_80"

    def test_progress_and_log(self, run):
        run()
        assert run.told.amounts("compiling kernels for sm_90") == [(0, None), (0, None)]
        percent = [done for done, _ in run.told.amounts("building the engine")]
        assert percent == sorted(percent) and percent[-1] == 100
        assert run.told.facts == []
        run(verbose=True)
        assert LogLine("TensorRT", "verbose: trying tactics") in run.told.facts

    def test_timings_are_kept_for_the_next_build(self, run, source):
        run()
        (timings,) = source.parent.glob("out.*.timing")
        assert timings.read_bytes() == b" and now"
        run()
        assert timings.read_bytes() == b" and now and now"

    def test_timings_of_other_kernels_are_not_taken(self, run, source):
        for run.ptx in ("some text", "another text", "some text"):
            run()
        found = sorted(path.read_bytes() for path in source.parent.glob("out.*.timing"))
        assert found == [b" and now", b" and now and now"]

    @pytest.mark.parametrize("stored", [b"damaged", b"another GPU's"])
    def test_timings_that_cannot_be_used(self, run, source, machine, stored):
        run()
        (timings,) = source.parent.glob("out.*.timing")
        timings.write_bytes(stored)
        machine.trt.accepts_timings = False
        run()
        assert timings.read_bytes() == b" and now"

    def test_the_cpu_stands_for_the_first_gpu(self, run, machine):
        run(device="cpu")
        run(device="cuda:1")
        assert machine.asked == ["cuda", "cuda:1"]


class TestRefusals:
    def left(self, source):
        return sorted(path.name for path in source.parent.iterdir())

    def test_every_parser_error(self, run, machine, source):
        machine.trt.errors = [(3, "Bogus", "no importer"), (9, "TopK", "k is above 3840")]
        with pytest.raises(ExportError, match=r"TensorRT 11\.4\.0\.106 cannot read video\.plugin\.onnx") as caught:
            run()
        assert str(caught.value).splitlines()[1:] == [
            "  node 3, Bogus 'node_3': no importer",
            "  node 9, TopK 'node_9': k is above 3840",
        ]
        assert caught.value.exit_code == 6 and self.left(source) == [SOURCE]

    @pytest.mark.parametrize(
        ("taken", "said"), [((), "0 of 2.*1 of MatchKeys, 1 of MergeNorm"), (("node_m0",), "1 of 2.*1 of MergeNorm")]
    )
    def test_a_function_body_instead_of_a_plugin(self, run, machine, source, taken, said):
        machine.trt.plugins = taken
        with pytest.raises(ExportError, match=f"took {said}"):
            run()
        assert self.left(source) == [SOURCE]

    def test_a_failed_build(self, run, machine, source):
        machine.trt.broken = True
        with pytest.raises(
            ExportError, match=r"could not build video\.plugin\.onnx[^\n]*\n  no implementation for node_7$"
        ):
            run()
        assert self.left(source) == [SOURCE]

    def test_another_precision_is_not_kept(self, run, source):
        (source.parent / ENGINE).write_text("the one before")
        with pytest.raises(ExportError, match="the engine is not in bf16: 2 of its 2"):
            run("bf16")
        assert (source.parent / ENGINE).read_text() == "the one before"

    def test_no_plugin_in_the_engine(self, run, machine, source):
        del machine.trt.layers[2]
        with pytest.raises(ExportError, match="holds none of our plugins"):
            run()
        assert ENGINE not in self.left(source)

    def test_an_engine_that_does_not_load(self, run, machine):
        machine.trt.loads = False
        with pytest.raises(ExportError, match="cannot load the engine it has just built"):
            run()

    def test_no_memory_for_a_context(self, run, machine):
        machine.trt.context = False
        with pytest.raises(ExportError, match="the GPU's memory is too small"):
            run()

    def test_no_network(self, run, machine):
        machine.trt.network = False
        with pytest.raises(ExportError, match="makes no network"):
            run()

    def test_a_range_that_tensorrt_refuses(self, run):
        with pytest.raises(ExportError, match="refuses the batch range 5:8:64"):
            run(batch=BatchRange(5, 8, 64))

    def test_an_interrupt_out_of_the_progress_bar(self, run, source, recording):
        def interrupt(step):
            if step.now == "engine":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(progress=recording(on_step=interrupt))
        assert self.left(source) == [SOURCE]

    @pytest.mark.parametrize("when", ["parsing", "building"])
    def test_what_a_plugin_raises(self, run, machine, source, when):
        """In place of TensorRT's own words, which do not say it."""
        machine.trt.raised = {when: ExportError("merge_kernel takes too much shared memory.")}
        with pytest.raises(ExportError, match=r"^merge_kernel takes too much shared memory\.$"):
            run()
        assert self.left(source) == [SOURCE]

    def test_the_first_of_what_plugins_raise(self, run, machine):
        machine.trt.raised = {"parsing": KeyError("r"), "building": ExportError("something else")}
        with pytest.raises(KeyError, match="r"):
            run()

    @pytest.mark.parametrize("options", [{"precision": "int4"}, {"workspace_gib": 0}, {"workspace_gib": float("nan")}])
    def test_values_that_do_not_exist(self, run, options):
        with pytest.raises(UsageError, match=r"was asked for|do not go together"):
            run(**options)

    def test_a_full_disk(self, tmp_path):
        """More is needed than any disk has."""
        with pytest.raises(ExportError, match=r"GB free and building the engine needs about 1000000000\.00 GB"):
            builder.check_disk(tmp_path, 10**18)

    def test_a_graph_without_nodes_of_ours(self, run, source):
        model = onnx.load(str(source))
        del model.graph.node[0], model.graph.node[1]
        source.write_bytes(model.SerializeToString())
        with pytest.raises(ExportError, match="has no nodes of domain tempme"):
            run()
        source.write_text("no graph")
        with pytest.raises(ExportError, match="cannot be read as ONNX"):
            run()

    def test_nothing_is_begun_where_something_is_missing(self, run, machine):
        machine.lacks = ("TensorRT is not installed.", "no GPU.")
        with pytest.raises(
            BackendError, match=r"no engine can be built here.*\n  - TensorRT is not.*\n  - no GPU"
        ) as caught:
            run()
        assert caught.value.exit_code == 4 and machine.registered == []


class FakeMachine(requirements.EngineHost):
    """A machine that lacks nothing, with parts to take away or to spoil."""

    def __init__(self, folder):
        self.folder, self.found, self.version, self.cuda = folder, H100, "11.4.0.106", 13
        self.torch_cuda, self.triton = "'13.0'", True

    def gpu(self, device):
        return raised_or(self.found)

    def tensorrt(self):
        return raised_or(self.version)

    def made_for(self):
        return self.cuda

    def package(self, name):
        if name == "triton" and not self.triton:
            return None
        version = f"debug = False\ncuda: Optional[str] = {self.torch_cuda}\nhip = None\n"
        (self.folder / "version.py").write_text(version)
        return self.folder / "__init__.py"

    def missing(self, device):
        return requirements.missing_for_engine(device, self)


def raised_or(found):
    if isinstance(found, Exception):
        raise found
    return found


@pytest.fixture
def host(monkeypatch, tmp_path):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return FakeMachine(tmp_path)


class TestChecks:
    def test_nothing_missing(self, host):
        assert host.missing("cuda") == ()
        requirements.check_builder("cpu", missing=host.missing)

    def test_everything_missing_is_named_at_once(self, host, monkeypatch):
        host.found, host.version = BackendError("no NVIDIA GPU"), BackendError("TensorRT is not installed. Run: pip x")
        host.torch_cuda, host.triton = "None", False
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        found = host.missing("cuda")
        assert len(found) == 5
        for part, said in zip(found, ("GPU", "pip x", "Triton", "TRITON_INTERPRET", "without CUDA"), strict=True):
            assert said in part
        with pytest.raises(BackendError, match=r"Leave out --trt.*\n  - no NVIDIA GPU\n  - TensorRT is not installed"):
            requirements.check_builder("cuda", missing=host.missing)

    @pytest.mark.parametrize(
        ("compute", "cuda", "made_for", "version", "said"),
        [
            ((9, 0), (12, 8), 13, "11.4.0", r"runs CUDA 12\.8, and TensorRT 11\.4\.0 needs 13\.0.*580.*tensorrt-cu12"),
            ((9, 0), (12, 1), 12, "11.4.0", r"needs 12\.2 .*driver 535 or newer\."),
            ((9, 0), (11, 8), 12, "10.15.1", r"needs 12\.0 .*driver 525"),
            ((12, 0), (12, 6), 12, "11.4.0", r"needs 12\.8 .*driver 570"),
            ((9, 0), (13, 2), 14, "12.0.0", r"needs 14\.0 .*Install a newer driver, or a TensorRT for CUDA 12"),
            ((7, 5), (13, 0), 13, "11.4.0", r"compute capability 7\.5; the plugins need 8\.0"),
        ],
    )
    def test_too_old(self, host, compute, cuda, made_for, version, said):
        host.found, host.cuda, host.version = Gpu("GPU", compute, "", cuda), made_for, version
        (found,) = host.missing("cuda")
        assert re.search(said, found), found

    @pytest.mark.parametrize(
        ("compute", "cuda", "made_for", "version"),
        [((8, 0), (12, 0), 12, "10.15.1"), ((9, 0), (12, 2), None, "11.4.0"), ((10, 0), (12, 8), 12, "10.16.1")],
    )
    def test_old_enough(self, host, compute, cuda, made_for, version):
        host.found, host.cuda, host.version = Gpu("GPU", compute, "", cuda), made_for, version
        assert host.missing("cuda") == ()

    def test_an_older_driver_is_told_the_package_for_it(self, host):
        host.found = Gpu("GPU", (9, 0), "", (12, 4))
        host.version = BackendError("TensorRT is not installed.")
        (found,) = host.missing("cuda")
        assert "for this driver: pip install 'tensorrt-cu12>=10.15" in found

    def test_it_loads_nothing_of_weight(self):
        """In a fresh process: what answers in a tenth of a second, torch and onnx would make take several."""
        program = (
            "import sys\nfrom tempme_export.exporters.trt.requirements import missing_for_engine\n"
            "missing_for_engine('cuda')\n"
            "sys.stdout.write(','.join({'torch', 'onnx', 'triton', 'numpy'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout == ""


def test_paths_and_sizes():
    assert builder.timing_cache_path(Path("a/ckpt.tempme")) == Path("a/ckpt.tempme.timing")
    assert builder.needed_bytes(10**9) > 2 * 10**9


BINDINGS = "tensorrt_bindings"  # what tensorrt-cu12-bindings and tensorrt-cu13-bindings install
_ENTRIES = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry"),
    *("getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins"),
)
_NAMES = {
    "Builder": (FakeBuilder, ()),
    "INetworkDefinition": (FakeNetwork, ()),
    "OnnxParser": (FakeParser, ("num_errors",)),
    "ParserError": (None, ("node", "node_operator", "node_name", "local_function_stack", "desc")),
    "IBuilderConfig": (FakeConfig, ("profiling_verbosity", "progress_monitor")),
    "IOptimizationProfile": (None, ("set_shape",)),
    "ITimingCache": (None, ("serialize",)),
    "Runtime": (None, ("deserialize_cuda_engine",)),
    "ICudaEngine": (FakeEngine, ("num_io_tensors", "device_memory_size_v2")),
    "IExecutionContext": (None, ("set_input_shape", "set_tensor_address", "set_device_memory", "execute_async_v3")),
    "EngineInspector": (FakeInspector, ()),
    "IProgressMonitor": (None, ("phase_start", "step_complete", "phase_finish")),
    "ILogger": (None, ("log",)),
    "ExecutionContextAllocationStrategy": (None, ("USER_MANAGED",)),
    "ILayer": (None, ("name", "type")),
    "ITensor": (None, ("name", "shape")),
}


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """{class: its names} of NVIDIA's bindings, read in a process of its own over empty libraries."""
    spec, compiler = importlib.util.find_spec(BINDINGS), shutil.which("cc")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("NVIDIA's bindings are not installed: pip install tensorrt-cu13-bindings")
    if compiler is None:
        pytest.skip("no C compiler to make stand-ins for TensorRT's libraries with")
    folder = tmp_path_factory.mktemp("stub")
    (folder / "stub.c").write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _ENTRIES))
    needed = (Path(spec.submodule_search_locations[0]) / "tensorrt.so").read_bytes()
    major = next(m for m in (10, 11, 12) if f"libnvinfer.so.{m}".encode() in needed)
    for stem in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        name = f"lib{stem}.so.{major}"
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, folder / "stub.c"], check=True
        )
    classes = [*_NAMES, *(name for name, value in vars(FakeTrt).items() if isinstance(value, Members))]
    program = (
        f"import json, sys, {BINDINGS} as trt\n"
        f"sys.stdout.write(json.dumps({{name: dir(getattr(trt, name)) for name in {classes!r}}}))"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", _NAMES)
def test_the_stand_in_has_nothing_that_the_bindings_lack(published, name):
    fake, further = _NAMES[name]
    used = {part for part in vars(fake) if not part.startswith("_")} if fake else set()
    used -= {"layers", "inputs", "TENSORS"}  # the stand-ins' own
    assert {*used, *further} <= set(published[name])


def test_the_stand_ins_flags_exist(published):
    for name, value in vars(FakeTrt).items():
        if isinstance(value, Members):
            assert set(vars(value)) - {"EXPLICIT_BATCH"} <= set(published[name]), name


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_real_engine(tiny_recipe, tmp_path, precision):
    """Built for real: precision proven, every merge step a plugin, the second build from timings."""
    missing = requirements.missing_for_engine("cuda")
    if missing:
        pytest.skip("; ".join(missing))
    from tempme_export.artifacts.backend import Folder
    from tempme_export.artifacts.registry import find_backend
    from tempme_export.exporters.plugin_nodes import plugin_nodes
    from tempme_export.exporters.plugin_onnx import export_plugin_video
    from tempme_export.media.preprocess import preprocess_for
    from tempme_export.parity.making import make_selftest
    from tempme_export.parity.verification import Standard, verify_on

    nodes, sizes = plugin_nodes(tiny_recipe), tiny_recipe.profile.batch
    export_plugin_video(tiny_recipe, tmp_path / SOURCE, precision)
    settings = builder.EngineSettings(sizes, precision, "cuda", tmp_path / "out.timing")
    facts = builder.build(tmp_path / SOURCE, tmp_path / ENGINE, settings, nodes, SILENT)
    assert sum(facts.plugins.values()) == len(nodes) and set(facts.products) == {precision}
    assert facts.engine_plugins == len(nodes)
    assert [path.stat().st_size > 0 for path in tmp_path.glob("out.*.timing")] == [True]
    selftest, preprocess = make_selftest(tiny_recipe), preprocess_for(tiny_recipe)
    standard = Standard(selftest, tiny_recipe.schedule, preprocess, facts.batch)
    folder = Folder(tmp_path, precision, {KEY: facts.to_dict()})
    assert verify_on(find_backend("tensorrt"), folder, standard, "cuda").status == "passed"

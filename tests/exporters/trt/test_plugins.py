"""The plugins against NVIDIA's own Python bindings: what TensorRT would ask of them, and what it would be told.

The libraries under the bindings are a stand-in of empty functions, compiled here, so nothing is built or run. The
bindings' template of an ahead-of-time plugin is called as TensorRT's C++ side calls it. Only what Python code cannot
make is replaced, in `stand_in`: symbolic dimensions, and the registry that plugins go to.
"""

import ctypes
import dataclasses
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tempme_export.errors import ExportError
from tempme_export.exporters import plugin_nodes as pn
from tempme_export.exporters.plugin_functions import DOMAIN, functions_of
from tempme_export.exporters.trt import plugin_builds
from tempme_export.exporters.trt import plugin_launches as launches
from tempme_export.exporters.trt.plugin_operations import OPERATIONS
from tempme_export.exporters.trt.plugins import Plugins
from tempme_export.exporters.trt.reports import Failure
from tempme_export.kernels import aot
from tempme_export.kernels import ptx as ptx_text
from tempme_export.kernels.launch import interpreting

PACKAGE = "tensorrt_bindings"  # what tensorrt-cu12-bindings and tensorrt-cu13-bindings install
SYMBOLS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry"),
    *("getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins"),
)
VIDEOS = (1, 8, 64)
WIDTH, HEADS = 128, 2
JOINED, WITHIN, LARGE = pn.Tokens(12, 7, WIDTH, 3), pn.Tokens(12, 17, WIDTH), pn.Tokens(2, 301, WIDTH)
NODES = (
    *pn.match_keys(WITHIN, HEADS, 1, 2),
    *pn.match_keys(LARGE, HEADS, 2, 40),
    *pn.match_clips(JOINED, 3, 5),
    pn.merge_norm(WITHIN, 1, 2, sized=False),
    pn.merge_norm(WITHIN, 1, 2, sized=True),
    pn.merge_norm(JOINED, 3, 5, sized=False, positions=12),
    pn.merge_norm(JOINED, 3, 5, sized=True, positions=12),
)
KEYS, PLACED = NODES[0], NODES[-1]
every_node = pytest.mark.parametrize("node", NODES, ids=[f"{node.op_type}-{k}" for k, node in enumerate(NODES)])
every_precision = pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])


class Arithmetic:
    """TensorRT's builder of expressions."""

    def __init__(self, trt):
        operations, self.dimension = trt.DimensionOperation, trt.IDimensionExpr
        self.rules = {
            operations.SUM: lambda a, b: a + b,
            operations.SUB: lambda a, b: a - b,
            operations.PROD: lambda a, b: a * b,
            operations.FLOOR_DIV: lambda a, b: a // b,
            operations.CEIL_DIV: lambda a, b: -(-a // b),
        }

    def constant(self, value):
        return self.dimension(lambda videos: value, True)

    def operation(self, kind, first, second):
        rule = self.rules[kind]
        return self.dimension(
            lambda videos: rule(first.value(videos), second.value(videos)), first.constant and second.constant
        )


class Scalars:
    """Takes the scalars that a plugin hands over."""

    def __init__(self):
        self.nbSymExprs, self.given = 0, {}

    def __setitem__(self, index, scalar):
        self.given[index] = scalar


def load_stand_in(folder, needed):
    """Compile empty functions and load them under the names that the bindings ask the loader for."""
    source = folder / "stand_in.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS))
    for name in needed:
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname={name}", str(source), "-o", str(folder / name)]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)


def load_bindings(folder):
    """The bindings, over the real libraries where those are installed, otherwise over the stand-in."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        pytest.skip("the bindings are not installed: pip install tensorrt-cu13-bindings")
    if interpreting():
        pytest.skip("TRITON_INTERPRET is set: nothing can be compiled")
    if importlib.util.find_spec("tensorrt_libs") is None:
        if shutil.which("cc") is None:
            pytest.skip("no C compiler to build a stand-in for TensorRT's libraries")
        (extension,) = Path(spec.origin).parent.glob("tensorrt*.so")
        needed = re.findall(rb"lib(?:nvinfer|nvonnxparser)\w*\.so\.\d+", extension.read_bytes())
        load_stand_in(folder, sorted({name.decode() for name in needed}))
    return importlib.import_module(PACKAGE)


def forget(name):
    for module in [one for one in sys.modules if one == name or one.startswith(name + ".")]:
        del sys.modules[module]


@pytest.fixture(scope="module")
def trt(tmp_path_factory):
    """The package `tensorrt`: NVIDIA's bindings over stand-ins."""
    load_bindings(tmp_path_factory.mktemp("trt"))
    with pytest.MonkeyPatch.context() as environment:
        environment.syspath_prepend(Path(__file__).parent / "stand_in")
        forget("tensorrt")
        yield importlib.import_module("tensorrt")
        forget("tensorrt")
        forget(PACKAGE)


# Compiling is slow and another test's business, so most tests see a build of the right shape.
def drawn(variant, target):
    resources = aot.Resources(registers=32, spill_stores=0, spill_loads=0, shared=4096)
    text = f"{variant.name} for {target}"
    return aot.Compiled(variant.name, target, text, b"", variant.num_warps, variant.parameters, resources)


class Registered:
    """Our nodes as plugins of a TensorRT, which takes a plugin once: each has modules and creators of its own.

    version  that it says it is; None: that of the bindings
    """

    def __init__(self, trt, version=None, **made_with):
        forget("tensorrt.plugin")
        package = SimpleNamespace(plugin=importlib.import_module("tensorrt.plugin"), __version__=version)
        if version is None:
            package.__version__ = trt.__version__
        self.trt, self.failure, self.plugins = trt, Failure(), Plugins(package, **made_with)
        self.plugins.register(aot.UNIVERSAL, self.failure)
        self.creators = dict(trt.get_plugin_registry().creators)


@pytest.fixture(scope="module")
def compiling(trt):
    """Plugins that compile their kernels."""
    return Registered(trt)


@pytest.fixture(scope="module")
def registered(trt):
    """Plugins whose kernels are drawn."""
    return Registered(trt, compiled=drawn)


class Asked:
    """A node of the graph as TensorRT handles it, from the parser's creating it to its kernel."""

    def __init__(self, registered, node, precision):
        self.trt = trt = registered.trt
        self.node = node
        self.types = {
            "T": {"fp32": trt.float32, "fp16": trt.float16, "bf16": trt.bfloat16}[precision],
            **{name: getattr(trt, name) for name in ("float16", "float32", "int32")},
        }
        self.arithmetic = Arithmetic(trt)
        creator = registered.creators[node.op_type, "1", DOMAIN]
        fields = [  # the parser takes a node's attributes by the names that the creator lists
            trt.PluginField(field.name, np.array([node.attributes[field.name]], np.int64), field.type)
            for field in creator.field_names
        ]
        request = trt.QuickPluginCreationRequest.STRICT_AOT
        collection = trt.PluginFieldCollection(fields)
        self.plugin = creator.create_plugin(node.op_type, DOMAIN, collection, trt.TensorRTPhase.BUILD, request)

    def symbolic(self, value):
        """The dimensions of an input: the first grows with the videos, where it is no parameter."""
        first, *others = (self.arithmetic.constant(size) for size in value.shape)
        if value.batched:
            first = self.trt.IDimensionExpr(lambda videos: value.shape[0] * videos, False)
        return [first, *others]

    def described(self, value, videos=None):
        """The concrete side of a tensor while TensorRT times a plugin: -1 for what varies."""
        desc = self.trt.DynamicPluginTensorDesc()
        shape = [value.shape[0] * (videos or 1) if value.batched else value.shape[0], *value.shape[1:]]
        desc.opt = desc.min = desc.max = self.trt.Dims(shape)
        inner = self.trt.PluginTensorDesc()
        inner.dims = self.trt.Dims([-1 if value.batched else shape[0], *shape[1:]])
        inner.type, inner.format = self.types[value.kind], self.trt.TensorFormat.LINEAR
        desc.desc = inner
        return desc

    @property
    def both(self):
        return [self.described(value) for value in (*self.node.inputs, *self.node.outputs)]

    def output_types(self):
        types = [self.types[value.kind] for value in self.node.inputs]
        return self.plugin.get_output_data_types(types, [len(value.shape) for value in self.node.inputs])

    def output_shapes(self):
        """The dimensions of every output; comes after the types, as TensorRT asks."""
        self.output_types()
        inputs = [self.symbolic(value) for value in self.node.inputs]
        return self.plugin.get_output_shapes(inputs, [], self.arithmetic)

    def tactics(self):
        """(types of inputs and outputs, formats, tactics) after autotuning."""
        self.output_shapes()
        count = len(self.node.inputs)
        combination = self.plugin.get_supported_format_combinations(self.both, count)
        self.plugin.configure_plugin(self.both[:count], self.both[count:])
        types, formats = [one.type for one in combination], {one.format for one in combination}
        return types, formats, self.plugin.get_valid_tactics()

    def launch(self, tactic):
        """(launch parameters, scalars) of a tactic."""
        self.plugin.set_tactic(tactic)
        params, scalars = SimpleNamespace(), Scalars()
        count = len(self.node.inputs)
        self.plugin.get_launch_params([], self.both, count, params, scalars, self.arithmetic)
        assert sorted(scalars.given) == list(range(scalars.nbSymExprs))
        return params, [scalars.given[k] for k in range(scalars.nbSymExprs)]

    def kernel(self):
        count = len(self.node.inputs)
        inner = [one.desc for one in self.both]
        return self.plugin.get_kernel(inner[:count], inner[count:])


def number(symbol, videos):
    """The value of a scalar or launch parameter."""
    return symbol.expr.value(videos)


def test_every_node_of_the_graph_is_a_plugin(trt, registered):
    names = {name for name, version, namespace in registered.creators}
    assert names == set(OPERATIONS) == {node.op_type for node in NODES}
    for function in functions_of(NODES, 20):
        attributes = {one.name: one.s.decode() for one in function.attribute_proto}
        key = function.name, attributes["plugin_version"], attributes["plugin_namespace"]
        creator = registered.creators[key]
        assert {one.name for one in creator.field_names} <= set(function.attribute)
        assert {one.type for one in creator.field_names} <= {trt.PluginFieldType.INT64}


@every_precision
@every_node
def test_output_types_and_shapes_follow_the_inputs(registered, node, precision):
    asked = Asked(registered, node, precision)
    assert asked.output_types() == [asked.types[value.kind] for value in node.outputs]
    shapes = asked.output_shapes()
    for videos in VIDEOS:
        found = [[one.value(videos) for one in shape] for shape in shapes]
        assert found == [[value.shape[0] * videos, *value.shape[1:]] for value in node.outputs]
    assert all(not shape[0].is_constant() for shape in shapes)
    assert all(one.is_constant() for shape in shapes for one in shape[1:])


@every_precision
@every_node
def test_autotuning_offers_the_types_of_the_graph_and_every_configuration(trt, registered, node, precision):
    asked = Asked(registered, node, precision)
    types, formats, tactics = asked.tactics()
    assert types == [asked.types[value.kind] for value in (*node.inputs, *node.outputs)]
    assert formats == {trt.TensorFormat.LINEAR}
    expected = launches.plugin_launches(launches.call_of(node, precision))
    assert sorted(tactics) == list(range(1, len(expected) + 1))
    assert len(expected) == (1 if node.op_type.startswith(("Split", "Select")) else 2)


@every_precision
@every_node
def test_a_kernel_is_launched_as_its_launcher_would(trt, registered, node, precision):
    """Grid, block, shared memory and scalars of every tactic, evaluated for several batches."""
    asked = Asked(registered, node, precision)
    _, _, tactics = asked.tactics()
    call = launches.call_of(node, precision)
    for tactic in tactics:
        params, scalars = asked.launch(tactic)
        for videos in VIDEOS:
            expected = launches.record(call, node.inputs[0].shape[0] * videos)[tactic - 1]
            grid = [number(getattr(params, f"grid_{axis}"), videos) for axis in "xyz"]
            block = [number(getattr(params, f"block_{axis}"), videos) for axis in "xyz"]
            assert tuple(grid) == expected.grid
            assert block == [32 * expected.variant.num_warps, 1, 1]
            assert number(params.shared_mem, videos) == 4096
            assert [number(one, videos) for one in scalars] == [value for _, value in expected.scalars]
            assert {one.dtype for one in scalars} == {trt.PluginArgDataType.INT32}
        name, text = asked.kernel()
        assert (name, text) == (expected.variant.name, f"{name} for {aot.UNIVERSAL}".encode())
        passed = ("u64",) * len(node.inputs) + ("u32",) * len(scalars) + ("u64",) * len(node.outputs)
        assert drawn(expected.variant, "").parameters == passed


@every_precision
@every_node
def test_the_built_kernel_takes_what_tensorrt_passes(compiling, node, precision):
    """PTX of every tactic: the parameters in its text, the name, the threads, the shared memory, nothing spilled."""
    asked = Asked(compiling, node, precision)
    _, _, tactics = asked.tactics()
    call = launches.call_of(node, precision)
    for tactic, expected in zip(sorted(tactics), launches.plugin_launches(call), strict=True):
        params, scalars = asked.launch(tactic)
        name, text = asked.kernel()
        passed = ("u64",) * len(node.inputs) + ("u32",) * len(scalars) + ("u64",) * len(node.outputs)
        assert ptx_text.parameters(text.decode()) == passed
        assert f".entry {name}(" in text.decode() and ".target sm_80" in text.decode()
        assert f".reqntid {number(params.block_x, 1)}" in text.decode()
        built = plugin_builds.build(expected.variant, aot.UNIVERSAL)
        assert built.ptx.encode() == text
        assert number(params.shared_mem, 1) == built.resources.shared <= plugin_builds.MAX_SHARED
        assert built.resources.spill_stores == built.resources.spill_loads == 0


def test_a_universal_build_runs_on_a_newer_gpu(compiling):
    asked = Asked(compiling, KEYS, "bf16")
    asked.launch(min(asked.tactics()[2]))
    cubin, _ = ptx_text.assemble(asked.kernel()[1].decode(), "sm_90")
    assert cubin.startswith(b"\x7fELF")


def test_a_fixed_batch_needs_no_expressions(registered):
    """A graph without a batch axis: every dimension is a number, and so is all that is launched."""
    fixed = dataclasses.replace(PLACED, inputs=tuple(dataclasses.replace(one, batched=False) for one in PLACED.inputs))
    asked = Asked(registered, fixed, "fp32")
    _, _, (tactic, *_) = asked.tactics()
    params, _ = asked.launch(tactic)
    assert params.grid_x.expr.is_constant() and number(params.grid_x, None) == 4


def test_another_target_can_be_chosen_later(trt):
    registered = Registered(trt, compiled=drawn)
    registered.plugins.register("sm_90", Failure())
    asked = Asked(registered, KEYS, "fp16")
    _, _, (tactic, *_) = asked.tactics()
    asked.launch(tactic)
    assert asked.kernel()[1] == b"match_keys_kernel for sm_90"


@pytest.mark.parametrize("target", ["sm_75", "gfx942"])
def test_a_target_without_ptx_is_refused(registered, target):
    with pytest.raises(ExportError, match=rf"cannot be built for '{target}'. Expected one of sm_80, .*sm_120\."):
        registered.plugins.register(target, Failure())


def test_without_tensorrt_the_install_command_is_named(run_python, not_installed):
    code = """
        from tempme_export.errors import BackendError
        from tempme_export.exporters.trt import plugins
        try:
            plugins.installed()
        except BackendError as error:
            print(error)
    """
    said = run_python(code, {"tensorrt": not_installed("tensorrt")})
    assert re.search(r"tensorrt\.plugin.* Run: pip install 'tensorrt>=", said)


@pytest.mark.parametrize("tactic", [0, 3])
def test_a_tactic_of_another_version_is_refused(registered, tactic):
    asked = Asked(registered, KEYS, "fp32")
    asked.tactics()
    with pytest.raises(ExportError, match=rf"asks for tactic {tactic} of MatchKeys, which has 2.*delete it"):
        asked.launch(tactic)


@pytest.mark.parametrize("version", ["10.15.1.29", "10.16.1.11", "11.0.0.114"])
def test_before_11_1_no_tactics_are_offered_and_the_first_launch_is_the_one(trt, version):
    registered = Registered(trt, version, compiled=drawn)
    asked = Asked(registered, KEYS, "fp32")
    _, _, tactics = asked.tactics()
    assert tactics == []
    params, _ = asked.launch(0)
    first, second = launches.plugin_launches(launches.call_of(KEYS, "fp32"))
    assert first.variant.num_warps != second.variant.num_warps
    assert number(params.block_x, 1) == 32 * first.variant.num_warps
    with pytest.raises(ExportError, match="asks for tactic 1 of MatchKeys"):
        asked.launch(1)


def test_a_type_that_no_kernel_takes_is_refused(trt, registered):
    asked = Asked(registered, KEYS, "fp32")
    asked.types["T"] = trt.int8
    with pytest.raises(ExportError, match=r"a tensor of type INT8\. Expected one of FLOAT, HALF, BF16, INT32"):
        asked.output_shapes()


def test_the_first_exception_is_kept_for_the_builder(trt):
    """TensorRT logs what a plugin raises and goes on; a later exception is often but a consequence."""

    def refuse(variant, target):
        raise ExportError(f"{variant.name} does not compile")

    registered = Registered(trt, compiled=refuse)
    asked = Asked(registered, KEYS, "fp32")
    asked.tactics()
    assert registered.failure.error is None
    for tactic in (1, 7):
        with pytest.raises(ExportError):
            asked.launch(tactic)
    with pytest.raises(ExportError, match="match_keys_kernel does not compile"):
        registered.failure.raise_again()
    later = Failure()
    registered.plugins.register("sm_90", later)
    assert later.error is None, "the next build starts afresh"


def test_types_alone_need_no_launcher(trt):
    """TensorRT asks for types before it knows any shape."""

    def unexpected(call):
        raise AssertionError("nothing can be recorded without shapes")

    registered = Registered(trt, launches=unexpected)
    assert Asked(registered, PLACED, "bf16").output_types()[:2] == [trt.bfloat16] * 2

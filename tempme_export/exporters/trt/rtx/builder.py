"""TensorRT-RTX's ONNX parser and builder on a CPU.

Its libraries come in the wheel of ONNX Runtime's TensorRT-RTX provider, the Python bindings in one of their own;
`make trt-rtx-check` installs both into a folder. The builder compiles ahead of time for every GPU it supports
and asks for none. Engines cannot be loaded or run without one, so nothing here says what they compute.
"""

import ctypes
import importlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

from tempme_export.artifacts.registry import PLUGIN_ONNX, VIDEO_ONNX
from tempme_export.encoder.profile import BatchRange
from tempme_export.errors import BackendError, ExportError
from tempme_export.exporters.trt.layers import EngineLayers, prove
from tempme_export.exporters.trt.layers import read_layers as engine_layers
from tempme_export.exporters.trt.reports import Failure
from tempme_export.exporters.trt.rtx.layers import Layer, by_dtype, fused_attentions, inspector_report, read_layers
from tempme_export.files import scratch_folder

if TYPE_CHECKING:
    from tempme_export.encoder.recipe import Recipe
    from tempme_export.exporters.trt.rtx.plugins import RtxPlugins

OPSET = 20
BINDINGS, PROVIDER = "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx"
_LIBRARIES = ("libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so")
_APART = os.RTLD_NOW | os.RTLD_LOCAL | getattr(os, "RTLD_DEEPBIND", 0)
STANDARD = ("", "ai.onnx")
_PLUGIN_LAYERS = ("PLUGIN", "PLUGIN_V2", "PLUGIN_V3")
_REPORTED_ERRORS = 8


@dataclass(frozen=True)
class Built:
    """Outcome of building one ONNX file.

    plugins                whether ours were registered; otherwise functions are built from their bodies
    onnx_nodes, functions  nodes of the main graph, and local functions, of the file
    plugin_nodes           nodes outside ONNX's own domain: where a plugin would go
    attentions             softmax nodes of the main graph: one per attention
    network_layers         of the parsed network; `plugin_layers` of them are plugins
    layers                 of the engine, `dtypes` by the type of number they give, most first
    fused                  layers of the engine that compute a whole attention
    engine_bytes           size of the serialised engine, weights included
    """

    file: str
    plugins: bool
    onnx_nodes: int
    functions: int
    plugin_nodes: int
    attentions: int
    network_layers: int
    plugin_layers: int
    layers: int
    dtypes: dict[str, int]
    fused: int
    engine_bytes: int
    parse_seconds: float
    build_seconds: float


def load_bindings(folder: Path, load: Callable[[str, int], object] = ctypes.CDLL) -> ModuleType:
    """The Python module over the libraries in `folder`, which pip filled.

    Libraries that are loaded already are what the module links to, by their names. They and the rest of the process,
    whose TensorRT has functions of the same names, do not see each other. `load` opens a library, given dlopen's mode.
    Raises BackendError for a folder without them, or with some for another machine or Python.
    """
    for stem in _LIBRARIES:
        found = sorted((folder / PROVIDER).glob(f"{stem}.*"))
        if not found:
            raise BackendError(
                f"{folder} holds no {PROVIDER}/{stem}: TensorRT-RTX is not installed there. "
                "Run make trt-rtx-check, which installs it for Linux on x86-64."
            )
        try:
            load(str(found[-1]), _APART)
        except OSError as error:
            raise BackendError(f"{found[-1]} does not load: {error}. It is built for Linux on x86-64.") from error
    sys.path.append(str(folder))
    flags = sys.getdlopenflags()
    sys.setdlopenflags(_APART)
    try:
        return importlib.import_module(BINDINGS)
    except ImportError as error:
        raise BackendError(
            f"{folder} holds no {BINDINGS} for Python {sys.version_info.major}.{sys.version_info.minor}: {error}. "
            "Remove the folder and run make trt-rtx-check."
        ) from error
    finally:
        sys.setdlopenflags(flags)
        sys.path.remove(str(folder))


class _Log:
    """Every message of TensorRT-RTX, kept by severity."""

    def __init__(self, rtx: ModuleType) -> None:
        kept: list[tuple[Any, str]] = []

        def log(_: Any, severity: Any, message: str) -> None:
            kept.append((severity, message))

        self._kept, self._severities = kept, rtx.ILogger
        self.logger = type("Logger", (rtx.ILogger,), {"log": log})()

    @property
    def messages(self) -> list[str]:
        return [message for _, message in self._kept]

    @property
    def errors(self) -> list[str]:
        bad = (self._severities.ERROR, self._severities.INTERNAL_ERROR)
        return [message for severity, message in self._kept if severity in bad]


def _parse(rtx: ModuleType, network: Any, path: Path, log: _Log, failure: Failure) -> None:
    parser = rtx.OnnxParser(network, log.logger)
    parsed = parser.parse_from_file(str(path))
    failure.raise_again()
    if parsed:
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    told = [f"node {one.node()} ({one.node_name()!r}, {one.node_operator()}): {one.desc()}" for one in errors]
    raise ExportError(f"TensorRT-RTX does not parse {path.name}: {_some(told or log.errors)}.")


def _some(told: list[str]) -> str:
    """The first few of them, and how many more there are."""
    left = len(told) - _REPORTED_ERRORS
    return "; ".join(told[:_REPORTED_ERRORS]) + (f"; and {left} more" if left > 0 else "") or "it does not say why"


def _set_profile(builder: Any, config: Any, network: Any, batch: BatchRange) -> None:
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        rest = list(tensor.shape)[1:]
        profile.set_shape(tensor.name, [batch.min, *rest], [batch.opt, *rest], [batch.max, *rest])
    config.add_optimization_profile(profile)


def build(rtx: ModuleType, path: Path, batch: BatchRange, plugins: "RtxPlugins | None" = None) -> Built:
    """Parse and build one ONNX file for any batch within the range; the engine is counted and dropped.

    plugins  that are registered; None: none are

    Raises ExportError where TensorRT-RTX does not parse or build it, with its own reasons, and with plugins where a
    node of ours became none, a kernel would be launched otherwise than `plugin_launches` says, or a product is not in
    the precision of the graph; what a plugin raised.
    """
    import onnx

    failure = Failure() if plugins is None else plugins.failure
    graph = onnx.load(path, load_external_data=False)
    operators = {node.name: node.op_type for node in graph.graph.node}
    log = _Log(rtx)
    builder = rtx.Builder(log.logger)
    network = builder.create_network(0)
    started = time.perf_counter()
    _parse(rtx, network, path, log, failure)
    parsed = time.perf_counter()
    config = builder.create_builder_config()
    config.profiling_verbosity = rtx.ProfilingVerbosity.DETAILED
    config.clear_flag(rtx.BuilderFlag.TF32)
    _set_profile(builder, config, network, batch)
    engine = builder.build_serialized_network(network, config)
    failure.raise_again()
    if engine is None:
        raise ExportError(f"TensorRT-RTX parses {path.name} and does not build it: {_some(log.errors)}.")
    built = time.perf_counter()
    layers: tuple[Layer, ...] = read_layers(log.messages)
    kinds = Counter(network.get_layer(i).type.name for i in range(network.num_layers))
    found = Built(
        file=path.name,
        plugins=plugins is not None,
        onnx_nodes=len(graph.graph.node),
        functions=len(graph.functions),
        plugin_nodes=sum(node.domain not in STANDARD for node in graph.graph.node),
        attentions=sum(node.op_type == "Softmax" for node in graph.graph.node),
        network_layers=network.num_layers,
        plugin_layers=sum(kinds[kind] for kind in _PLUGIN_LAYERS),
        layers=len(layers),
        dtypes=by_dtype(layers),
        fused=fused_attentions(layers, operators),
        engine_bytes=engine.nbytes,
        parse_seconds=parsed - started,
        build_seconds=built - parsed,
    )
    if plugins is not None:
        ours = [node.name for node in graph.graph.node if node.domain not in STANDARD]
        _check(found, plugins, engine_layers(inspector_report(log.messages), ours))
    return found


def _check(found: Built, plugins: "RtxPlugins", layers: EngineLayers) -> None:
    """Raise ExportError for what `build` names."""
    if not found.plugin_layers == layers.plugins == found.plugin_nodes:
        raise ExportError(
            f"TensorRT-RTX made {found.plugin_layers} plugins of the {found.plugin_nodes} nodes of ours in "
            f"{found.file}, and {layers.plugins} layers of the engine. The others were built from their functions' "
            "bodies."
        )
    plugins.check_launches()
    prove(layers, plugins.precision)


def _write_video(recipe: "Recipe", path: Path, precision: str) -> None:
    from tempme_export.exporters.onnx import export_video

    export_video(recipe, path, precision, OPSET)


def _write_plugin_video(recipe: "Recipe", path: Path, precision: str) -> None:
    from tempme_export.exporters.plugin_onnx import export_plugin_video

    export_plugin_video(recipe, path, precision, opset=OPSET)


EXPORTERS = MappingProxyType({VIDEO_ONNX.file: _write_video, PLUGIN_ONNX.file: _write_plugin_video})
"""File name -> its writer: both graphs of the video tower, the one with nodes for plugins last."""


def carry(rtx: ModuleType, recipe: "Recipe", precision: str) -> "RtxPlugins":
    """The plugins of a recipe's graph, asked for one video, three, the usual and the largest batch."""
    from tempme_export.exporters.plugin_nodes import plugin_nodes
    from tempme_export.exporters.trt.rtx.plugins import RtxPlugins

    batch = recipe.profile.batch
    return RtxPlugins(rtx, plugin_nodes(recipe), precision, sorted({1, 3, batch.opt, batch.max}))


def build_graphs(
    rtx: ModuleType,
    recipe: "Recipe",
    precision: str,
    exporters: Mapping[str, Callable[["Recipe", Path, str], None]] = EXPORTERS,
    plugins_of: Callable[[ModuleType, "Recipe", str], "RtxPlugins"] = carry,
) -> Iterator[Built]:
    """Export and build each graph, and the last once more with our plugins.

    Raises ExportError as `build`, and where plugins cost a fused attention; BackendError as `RtxPlugins.register`.
    """
    from tempme_export.kernels.aot import UNIVERSAL

    fused, batch = 0, recipe.profile.batch
    with scratch_folder("trt-rtx-check") as work:
        for name, write in exporters.items():
            write(recipe, work / name, precision)
            built = build(rtx, work / name, batch)
            fused = max(fused, built.fused)
            yield built
        plugins = plugins_of(rtx, recipe, precision)
        plugins.register(UNIVERSAL)
        built = build(rtx, work / built.file, batch, plugins)
        if built.fused < fused:
            raise ExportError(
                f"with plugins {built.fused} attentions of {built.file} are fused, and without {fused}: the plugins "
                "part what belongs together."
            )
        yield built

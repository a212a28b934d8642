"""`video.plugin.onnx` -> `video.plan`: a TensorRT engine for the GPU at hand, with the merges as plugins.

The network is strongly typed, so its precision is the graph's; whether the engine holds it is read back from the engine
inspector, and an engine that does not is not kept. TF32 is off: it is no float32, and decisions would change by it.

Has not been run with TensorRT yet: written against the documentation of 10.15 to 11.4 and NVIDIA's published bindings.
"""

import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tempme_export.artifacts.graph_files import graph_bytes
from tempme_export.encoder.profile import BatchRange
from tempme_export.errors import ExportError
from tempme_export.exporters.trt.layers import EngineLayers, prove, read_layers
from tempme_export.exporters.trt.reports import Complaints, Failure, make_logger, make_monitor, parser_errors
from tempme_export.exporters.trt.requirements import check_options, refuse
from tempme_export.exporters.trt.workshop import Workshop
from tempme_export.files import library_path, write_file
from tempme_export.progress import Progress
from tempme_export.runtime.engine_facts import EngineFacts
from tempme_export.runtime.nvidia import engine_device
from tempme_export.runtime.tensorrt_package import parse_version, start

if TYPE_CHECKING:
    from tempme_export.exporters.plugin_nodes import PluginNode
    from tempme_export.kernels.aot import Compiled

DOMAIN = "tempme"
_GIB = 2**30
_DYNAMIC = -1
_HERE = Workshop()


def timing_cache_path(out: Path) -> Path:
    """Path of the builder's timings: beside the bundle, so that the next build of it takes a fraction of the time.

    What is written carries a digest of the kernels in its name (`_timings`): TensorRT's own key has no part of them, so
    it would take the time of an earlier kernel for that of a changed one.
    """
    return out.with_name(out.name + ".timing")


def _timings(path: Path, builds: "Iterable[Compiled]") -> Path:
    """NAME.timing -> NAME.DIGEST.timing"""
    from tempme_export.exporters.trt.plugin_builds import digest

    return path.with_suffix(f".{digest(builds)}{path.suffix}")


def needed_bytes(source_bytes: int) -> int:
    """Upper estimate of what a build writes: the engine, which holds the graph's weights, its copy, and timings."""
    return 3 * source_bytes + 64 * 2**20


def check_disk(folder: Path, needed: int) -> None:
    """Raise ExportError where the disk has too little room for a build."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(
            f"{folder} has {free / 1e9:.2f} GB free and building the engine needs about {needed / 1e9:.2f} GB. Free "
            "some space or choose another --out."
        )


@dataclass(frozen=True)
class PluginNames:
    """The nodes of a graph that plugins are to take: node name -> operator."""

    operators: Mapping[str, str]

    @property
    def counts(self) -> dict[str, int]:
        """Nodes by operator."""
        return dict(sorted(Counter(self.operators.values()).items()))


def read_plugin_names(source: Path) -> PluginNames:
    """The nodes of domain tempme in an ONNX file.

    Raises ExportError for a file that is none, has none, or has some that no plugin takes.
    """
    import onnx

    from tempme_export.exporters.trt.plugin_operations import OPERATIONS

    try:
        graph = onnx.load(str(source), load_external_data=False).graph
    except Exception as error:  # the file system's or protobuf's own
        raise ExportError(f"{source} cannot be read as ONNX: {error}") from error
    operators = {node.name or f"node {k}": node.op_type for k, node in enumerate(graph.node) if node.domain == DOMAIN}
    if not operators:
        raise ExportError(f"{source} has no nodes of domain {DOMAIN}, so its engine would hold no plugin of ours.")
    if foreign := sorted(set(operators.values()) - OPERATIONS.keys()):
        raise ExportError(
            f"{source}: found nodes {', '.join(foreign)}, expected {', '.join(OPERATIONS)}. Another version wrote it: "
            "export the checkpoint again."
        )
    return PluginNames(operators)


def _network(trt: Any, builder: Any, logger: Any, source: Path, failure: Failure) -> tuple[Any, Any]:
    """The parsed graph and its parser, which owns the weights. Raises what a plugin raised, which the parser only logs,
    and ExportError with every error of the parser."""
    flags = trt.NetworkDefinitionCreationFlag
    options = 1 << int(flags.PREFER_AOT_PYTHON_PLUGINS)
    if parse_version(str(trt.__version__)) < (11,):  # since 11 every network is
        options |= 1 << int(flags.STRONGLY_TYPED)
    network = builder.create_network(options)
    if network is None:
        raise ExportError(f"TensorRT {trt.__version__} makes no network that prefers plugins built ahead of time.")
    parser = trt.OnnxParser(network, logger)
    with library_path(source) as named:
        parsed = parser.parse_from_file(named)
    failure.raise_again()
    if not parsed:
        errors = parser_errors(parser) or ["the parser named no error"]
        listed = "".join(f"\n  {line}" for line in errors)
        raise ExportError(f"TensorRT {trt.__version__} cannot read {source.name}:{listed}")
    return network, parser


def _check_plugins(trt: Any, network: Any, names: PluginNames) -> None:
    """Raise ExportError where the parser took a function's body, which any plugin that it did not find has."""
    kinds = [getattr(trt.LayerType, name) for name in ("PLUGIN", "PLUGIN_V2", "PLUGIN_V3")]
    layers = (network.get_layer(index) for index in range(network.num_layers))
    found = [str(layer.name) for layer in layers if layer.type in kinds]
    if len(found) != len(names.operators):
        absent = Counter(kind for name, kind in names.operators.items() if name not in found)
        listed = ", ".join(f"{count} of {kind}" for kind, count in sorted(absent.items()))
        raise ExportError(
            f"TensorRT {trt.__version__} took {len(found)} of {len(names.operators)} merge steps as plugins; without "
            f"one: {listed}. It built those from standard operators, so the engine is not what was asked for."
        )


def _shapes(shape: tuple[int, ...], batch: BatchRange) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(size if axis == _DYNAMIC else axis for axis in shape) for size in (batch.min, batch.opt, batch.max)
    )


def _add_profile(builder: Any, config: Any, network: Any, batch: BatchRange) -> None:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        profile.set_shape(tensor.name, *_shapes(tuple(tensor.shape), batch))
    if config.add_optimization_profile(profile) < 0:
        raise ExportError(f"TensorRT refuses the batch range {batch.min}:{batch.opt}:{batch.max} for this graph.")


def _attach_timings(config: Any, path: Path) -> None:
    """Start from the timings of an earlier build, or from none where they are another GPU's or version's."""
    stored = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _save_timings(config: Any, path: Path) -> None:
    write_file(path, bytes(config.get_timing_cache().serialize()))


def _tensors(trt: Any, engine: Any, mode: Any) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    import numpy as np

    return {
        name: (
            str(np.dtype(trt.nptype(engine.get_tensor_dtype(name)))),
            tuple(None if axis == _DYNAMIC else int(axis) for axis in engine.get_tensor_shape(name)),
        )
        for name in names
        if engine.get_tensor_mode(name) == mode
    }


def _inspect(trt: Any, engine: Any, batch: BatchRange, names: PluginNames) -> EngineLayers:
    """The layers at the usual batch: without shapes the inspector leaves formats out."""
    context = engine.create_execution_context()
    if context is None:
        raise ExportError("TensorRT built the engine and cannot make a context for it: the GPU's memory is too small.")
    for name, (_, shape) in _tensors(trt, engine, trt.TensorIOMode.INPUT).items():
        context.set_input_shape(name, tuple(batch.opt if axis is None else axis for axis in shape))
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return read_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON), names.operators)


@dataclass(frozen=True)
class EngineSettings:
    """Settings of an engine build.

    batch          videos per call that the engine takes
    precision      the graph's, which the engine is proven to have
    device         "cpu" stands for the first GPU
    timing_cache   file of the builder's timings but for the digest in its name, read where it is there and written
    workspace_gib  most GPU memory for a layer's scratch; None: all of it
    verbose        also pass on the builder's log
    """

    batch: BatchRange
    precision: str
    device: str
    timing_cache: Path
    workspace_gib: float | None = None
    verbose: bool = False


def build(
    plugin_onnx: Path,
    engine: Path,
    settings: EngineSettings,
    nodes: "Sequence[PluginNode]",
    progress: Progress,
    workshop: Workshop = _HERE,
) -> EngineFacts:
    """Build the engine of a graph with plugins and write it to `engine`, which appears complete or not at all.

    nodes     what the graph holds for plugins, whose kernels are compiled before TensorRT starts
    progress  hears of two steps, the kernels and the engine, and of each LogLine when verbose
    workshop  what it is built with

    Raises UsageError as `check_options`, BackendError as `check_builder`, ExportError for a full disk, where TensorRT
    cannot read or build the graph, and for an engine without the precision or the plugins.
    """
    check_options(settings.precision, settings.workspace_gib)
    refuse(workshop.missing(settings.device))
    check_disk(engine.absolute().parent, needed_bytes(graph_bytes(plugin_onnx)))
    names = read_plugin_names(plugin_onnx)
    from tempme_export.exporters.trt.plugin_builds import ptx_target

    device, batch, precision = engine_device(settings.device), settings.batch, settings.precision
    trt, gpu = workshop.tensorrt(), workshop.gpu(device)
    target, started = ptx_target(gpu.compute), time.perf_counter()
    builds = []
    with workshop.on(device):
        with progress.step(f"compiling kernels for {target}") as step:
            for done, variant in enumerate(workshop.variants(nodes, precision)):
                step.advance(done, variant.name)
                builds.append(workshop.compile(variant, target))
        job = _Job(trt, plugin_onnx, batch, progress, settings.verbose)
        workshop.register(target, job.failure)
        plan = job.build(names, _timings(settings.timing_cache, builds), settings.workspace_gib)
        layers, inputs, outputs = job.inspect(plan, names)
    prove(layers, precision)
    write_file(engine, lambda stream: stream.write(memoryview(plan)))
    return EngineFacts(
        tensorrt=str(trt.__version__),
        gpu=gpu.name,
        capability=gpu.capability,
        driver=gpu.driver,
        precision=precision,
        batch=(batch.min, batch.opt, batch.max),
        inputs=inputs,
        outputs=outputs,
        target=target,
        plugins=names.counts,
        engine_plugins=layers.plugins,
        layers=layers.by_precision,
        products=layers.products,
        attentions=layers.attentions,
        seconds=time.perf_counter() - started,
    )


class _Job:
    """One build; it keeps alive what TensorRT calls back."""

    def __init__(self, trt: Any, source: Path, batch: BatchRange, progress: Progress, verbose: bool) -> None:
        self._trt, self._source, self._batch = trt, source, batch
        self.failure, self._complaints = Failure(), Complaints()  # the first also of the plugins
        self._logger = make_logger(trt, self._complaints, progress, verbose, self.failure)
        self._progress = progress

    def build(self, names: PluginNames, timing_cache: Path, workspace_gib: float | None) -> Any:
        """The serialized engine."""
        trt = self._trt
        builder = start(trt.Builder, self._logger)
        network, _parser = _network(trt, builder, self._logger, self._source, self.failure)
        _check_plugins(trt, network, names)
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.clear_flag(trt.BuilderFlag.TF32)
        if workspace_gib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(workspace_gib * _GIB))
        _add_profile(builder, config, network, self._batch)
        _attach_timings(config, timing_cache)
        with self._progress.step("building the engine", 100, "%") as step:
            self._monitor = make_monitor(trt, step, self.failure)
            config.progress_monitor = self._monitor
            plan = builder.build_serialized_network(network, config)
        self.failure.raise_again()
        if plan is None:
            raise ExportError(
                f"TensorRT {trt.__version__} could not build {self._source.name}. Its last complaints follow."
                f"{self._complaints.text()}"
            )
        _save_timings(config, timing_cache)
        return plan

    def inspect(self, plan: Any, names: PluginNames) -> tuple[EngineLayers, dict[str, Any], dict[str, Any]]:
        """Layers, inputs and outputs of the serialized engine."""
        trt = self._trt
        runtime = start(trt.Runtime, self._logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ExportError(f"TensorRT cannot load the engine it has just built.{self._complaints.text()}")
        layers = _inspect(trt, engine, self._batch, names)
        modes = trt.TensorIOMode
        return layers, _tensors(trt, engine, modes.INPUT), _tensors(trt, engine, modes.OUTPUT)

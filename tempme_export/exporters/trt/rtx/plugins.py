"""Our plugins for TensorRT-RTX, which takes plugins and refuses those that are built ahead of time.

NVIDIA's `tensorrt.plugin`, a layer of Python in TensorRT's bindings, makes ahead-of-time plugins of our functions. Here
it works on the bindings of TensorRT-RTX, and each plugin that it makes is carried by one of the kind `IPluginV3One`. So
the parser finds our nodes, and the builder asks our functions for shapes, types, formats and tactics. Where it asks for
shapes the kernels are asked for too, at several batches, and kept: nothing can be launched without a GPU.
"""

import ctypes
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

from tempme_export.errors import BackendError, ExportError
from tempme_export.exporters.plugin_nodes import PluginNode, PluginValue
from tempme_export.exporters.trt.plugin_launches import (
    PluginCall,
    Quantity,
    call_of,
    plugin_launches,
    units_of,
    value_at,
)
from tempme_export.exporters.trt.plugin_operations import OPERATIONS
from tempme_export.exporters.trt.plugins import Plugins, asked_call
from tempme_export.exporters.trt.reports import Failure
from tempme_export.exporters.trt.rtx.carriers import make_creator
from tempme_export.runtime.tensorrt_package import import_plugins

_LIBRARY = "libtensorrt_rtx.so"
_TEMPLATES = "tensorrt_bindings"  # holds `tensorrt.plugin`
_VERSION = "11.4.0"  # of the TensorRT whose plugins these are
_AHEAD_OF_TIME = "ahead of time"


@dataclass(frozen=True)
class HandedOver:
    """A kernel and all that TensorRT would launch it with."""

    kernel: str
    ptx: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    scalars: tuple[int, ...]


class _Base:
    """Stands in for classes of TensorRT that TensorRT-RTX lacks."""

    def __init__(self) -> None:
        """Takes nothing."""


class _Scalars(dict[int, Any]):
    """Takes the scalars that a plugin hands over."""

    nbSymExprs = 0


class _Registry:
    """Takes the creators that `tensorrt.plugin` registers: each is carried into TensorRT-RTX's own registry."""

    def __init__(self, carry: Any) -> None:
        self._carry, self._creators = carry, dict[tuple[str, str, str], Any]()

    def register_creator(self, creator: Any, namespace: str) -> bool:
        self._creators[creator.name, creator.plugin_version, namespace] = creator
        self._carry(creator)
        return True

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        return self._creators[name, version, namespace]


def _package(rtx: ModuleType, registry: _Registry) -> ModuleType:
    """TensorRT-RTX's bindings as the package `tensorrt` that `tensorrt.plugin` is a part of.

    Raises BackendError without TensorRT's bindings, of which that part alone is read.
    """
    spec = importlib.util.find_spec(_TEMPLATES)
    if spec is None or spec.submodule_search_locations is None:
        raise BackendError(
            f"{_TEMPLATES} is not installed, whose tensorrt.plugin makes the plugins. "
            "Run: pip install tensorrt-cu13-bindings"
        )
    package = ModuleType("tensorrt")
    vars(package).update({name: value for name, value in vars(rtx).items() if not name.startswith("__")})
    vars(package).update(
        __version__=_VERSION,
        __path__=list(spec.submodule_search_locations),
        IPluginV3QuickAOTBuild=_Base,
        ISymExpr=_Base,
        QuickPluginCreationRequest=SimpleNamespace(STRICT_AOT=_AHEAD_OF_TIME),
        get_plugin_registry=lambda: registry,
    )
    with _named_tensorrt(package):
        import_plugins()
    return package


@contextmanager
def _named_tensorrt(package: ModuleType) -> Iterator[None]:
    """Within, `import tensorrt` gives this; TensorRT itself may be installed, and in use, under that name."""

    def taken() -> dict[str, ModuleType]:
        return {name: one for name, one in sys.modules.items() if name.partition(".")[0] == "tensorrt"}

    before = taken()
    for name in before:
        del sys.modules[name]
    sys.modules["tensorrt"] = package
    try:
        yield
    finally:
        for name in taken():
            del sys.modules[name]
        sys.modules.update(before)


def _values(quantities: Iterable[Quantity], units: int) -> tuple[int, ...]:
    return tuple(value_at(one, units) for one in quantities)


def _shape(value: PluginValue, videos: int) -> tuple[int, ...]:
    first, *others = value.shape
    return (first * videos if value.batched else first, *others)


def check_library(load: Callable[[str, int], object] = ctypes.CDLL) -> None:
    """Raise BackendError where TensorRT-RTX's library is not found by its bare name.

    A parser that finds a plugin opens it by that, and ends the process where it is not there. `load` opens a library,
    given dlopen's mode.
    """
    try:
        load(_LIBRARY, os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError as error:
        raise BackendError(
            f"{_LIBRARY} is not found by that name ({error}), under which TensorRT-RTX's parser opens it. Name its "
            "folder in LD_LIBRARY_PATH before the start, as make trt-rtx-check does."
        ) from error


def check_launches(
    nodes: Mapping[PluginCall, PluginNode],
    videos: Sequence[int],
    handed_over: Mapping[tuple[PluginCall, int, int], HandedOver],
) -> None:
    """Raise ExportError unless every kernel was handed over as `plugin_launches` has it, at every batch.

    nodes        how each is called, and one such node of the graph
    videos       the batches
    handed_over  as `RtxPlugins` keeps it
    """
    for call, node in nodes.items():
        for tactic, launch in enumerate(plugin_launches(call), start=1):
            for batch in videos:
                units = units_of(call, node.inputs[0].shape[0] * batch)
                expected = _values(launch.grid, units), _values([one for _, one in launch.scalars], units)
                found = handed_over.get((call, batch, tactic))
                told = None if found is None else (found.grid, found.scalars)
                if told != expected:
                    raise ExportError(
                        f"{node.op_type}, tactic {tactic}, {batch} videos: TensorRT-RTX was handed {told}, expected "
                        f"grid and scalars {expected}. This is a fault of the plugins."
                    )


class RtxPlugins:
    """Our nodes as plugins of TensorRT-RTX.

    precision    of the graph
    failure      keeps the first exception out of a plugin
    handed_over  node, videos and tactic -> what its kernel would be launched with
    """

    def __init__(self, rtx: ModuleType, nodes: Iterable[PluginNode], precision: str, videos: Sequence[int]) -> None:
        """nodes   of the graph, in its precision
        videos  batches to ask for

        Raises ExportError as `call_of`, BackendError without TensorRT's bindings.
        """
        self._rtx, self._videos, self.precision = rtx, videos, precision
        self._nodes = {call_of(node, precision): node for node in nodes}
        self.failure, self.handed_over = Failure(), dict[tuple[PluginCall, int, int], HandedOver]()
        self._creators: list[Any] = []  # TensorRT-RTX does not keep Python's objects alive
        self._plugins = Plugins(_package(rtx, _Registry(self._carry)))

    def register(self, target: str) -> None:
        """Before parsing. Raises ExportError as `Plugins.register`, BackendError as `check_library`."""
        check_library()
        self._plugins.register(target, self.failure)

    def check_launches(self) -> None:
        """Raises ExportError as `check_launches`."""
        check_launches(self._nodes, self._videos, self.handed_over)

    def _carry(self, creator: Any) -> None:
        build, registry = self._rtx.TensorRTPhase.BUILD, self._rtx.get_plugin_registry()

        def template(attributes: Any) -> Any:
            return creator.create_plugin(creator.name, creator.plugin_namespace, attributes, build, _AHEAD_OF_TIME)

        self._creators.append(make_creator(self._rtx, creator, template, self._ask, self.failure))
        registry.register_creator(self._creators[-1], creator.plugin_namespace)

    def _ask(self, asked: Any, fresh: Any, expressions: Any) -> None:
        """Ask another plugin like `asked` for the kernels; `expressions` is TensorRT-RTX's own builder of them."""
        attributes = [asked.attrs[name] for name in OPERATIONS[asked.plugin_name].attributes]
        call = asked_call(asked.plugin_name, asked.input_descs, attributes)
        types, count = asked.input_types, len(asked.input_types)
        for videos in self._videos:
            shapes = [_shape(one, videos) for one in self._nodes[call].inputs]
            fresh.get_output_data_types(types, [len(shape) for shape in shapes])
            known = [[expressions.constant(axis) for axis in shape] for shape in shapes]
            outputs = fresh.get_output_shapes(known, [], expressions)
            shapes += [tuple(axis.get_constant_value() for axis in shape) for shape in outputs]
            described = [self._described(*one) for one in zip(shapes, (*types, *fresh.output_types), strict=True)]
            fresh.get_supported_format_combinations(described, count)
            fresh.configure_plugin(described[:count], described[count:])
            for tactic in fresh.get_valid_tactics():
                fresh.set_tactic(tactic)
                self.handed_over[call, videos, tactic] = _handed_over(fresh, described, count, expressions)

    def _described(self, shape: tuple[int, ...], kind: Any) -> Any:
        described, inner = self._rtx.DynamicPluginTensorDesc(), self._rtx.PluginTensorDesc()
        inner.dims, inner.type, inner.format = self._rtx.Dims(shape), kind, self._rtx.TensorFormat.LINEAR
        described.opt = described.min = described.max = inner.dims
        described.desc = inner
        return described


def _handed_over(plugin: Any, described: Sequence[Any], n_inputs: int, expressions: Any) -> HandedOver:
    params, scalars = SimpleNamespace(), _Scalars()
    plugin.get_launch_params([], described, n_inputs, params, scalars, expressions)
    inner = [one.desc for one in described]
    kernel, ptx = plugin.get_kernel(inner[:n_inputs], inner[n_inputs:])

    def value(symbol: Any) -> int:
        return int(symbol.expr.get_constant_value())

    return HandedOver(
        kernel=kernel,
        ptx=ptx.decode(),
        grid=tuple(value(getattr(params, f"grid_{axis}")) for axis in "xyz"),
        block=tuple(value(getattr(params, f"block_{axis}")) for axis in "xyz"),
        shared=value(params.shared_mem),
        scalars=tuple(value(scalars[k]) for k in range(scalars.nbSymExprs)),
    )

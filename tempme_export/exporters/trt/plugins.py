"""Our nodes as quick deployable plugins of TensorRT, built ahead of time: an engine holds PTX and needs no Python.

A plugin says what its outputs look like, which launch configurations are worth trying (TensorRT times them as
tactics, counted from 1, where it may), and for one of them hands over PTX, grid, block, shared memory and scalars as
expressions of the batch. All of it comes from `plugin_launches`. The kernel then takes inputs, scalars, outputs.

Tested against NVIDIA's bindings with a stand-in for the libraries; has not been run with TensorRT yet.
TensorRT calls these from frames of its own and only logs what they raise, so the first exception is kept as well.
"""

import functools
import importlib
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from tempme_export.errors import BackendError, ExportError
from tempme_export.exporters.plugin_functions import DOMAIN
from tempme_export.exporters.trt.plugin_builds import build
from tempme_export.exporters.trt.plugin_launches import PluginCall, PluginLaunch, Quantity, Scaled, plugin_launches
from tempme_export.exporters.trt.plugin_operations import OPERATIONS, Operation
from tempme_export.exporters.trt.reports import Failure
from tempme_export.kernels import aot
from tempme_export.runtime.tensorrt_package import import_plugins, install_command, offers_tactics

_WARP = 32
_TYPES = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT32": torch.int32}
_AUTOTUNE_NAMES = {"FLOAT": "FP32", "HALF": "FP16"}  # the other types keep their name
# An array of one element: the bindings before 11.2 hand whole numbers over in a way that NumPy 2.4 refuses.
_ATTRIBUTE = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def _dtype(desc: Any) -> torch.dtype:
    name = desc.dtype.name
    if name not in _TYPES:
        raise ExportError(f"a plugin was given a tensor of type {name}. Expected one of {', '.join(_TYPES)}.")
    return _TYPES[name]


def _type_name(desc: Any) -> str:
    name: str = desc.dtype.name
    return _AUTOTUNE_NAMES.get(name, name)


def _dimensions(desc: Any, first: int) -> tuple[int, ...]:
    """The dimensions from axis `first` on, which no batch changes.

    Known as numbers while TensorRT times and writes a plugin, and as constant expressions while it infers shapes.
    """
    if desc.has_shape:
        return tuple(int(one) for one in tuple(desc.shape)[first:])
    return tuple(int(one.constant_value()) for one in tuple(desc.shape_expr)[first:])


def asked_call(op_type: str, tensors: Sequence[Any], attributes: Sequence[Any]) -> PluginCall:
    """The node that TensorRT asks about, by its descriptions of the inputs and the values of the attributes."""
    operation = OPERATIONS[op_type]
    inputs = tuple(
        (_dtype(desc), _dimensions(desc, first=0 if one.leading == "fixed" else 1))
        for one, desc in zip(operation.inputs, tensors, strict=True)
    )
    values = tuple(
        (name, int(np.asarray(value).item())) for name, value in zip(operation.attributes, attributes, strict=True)
    )
    return PluginCall(op_type, values, inputs)


def _units(operation: Operation, tensors: Sequence[Any]) -> Any:
    """The length of the axis that the operation counts by, as an expression."""
    names = [one.name for one in operation.inputs]
    return tensors[names.index(operation.unit)].shape_expr[0]


def _expression(trtp: Any, quantity: Quantity, units: Any) -> Any:
    """A quantity as TensorRT computes it: a number, or an expression of the units."""
    if not isinstance(quantity, Scaled):
        return quantity
    scaled = units if quantity.factor == 1 else units * quantity.factor
    return scaled if quantity.divisor == 1 else trtp.cdiv(scaled, quantity.divisor)


def _is_fake(tensors: Sequence[Any]) -> bool:
    """True where TensorRT asks for types alone."""
    return any(one.is_fake for one in tensors[0].shape_expr)


def _signature(
    tensors: Sequence[str], attributes: Sequence[str], tensor: Any, further: Sequence[str], returns: Any
) -> inspect.Signature:
    """The signature by which TensorRT learns what a plugin takes."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        *(inspect.Parameter(name, kind, annotation=tensor) for name in tensors),
        *(inspect.Parameter(name, kind, annotation=_ATTRIBUTE) for name in attributes),
        *(inspect.Parameter(name, kind) for name in further),
    ]
    return inspect.Signature(parameters, return_annotation=returns)


class Plugins:
    """Our nodes as plugins of one TensorRT in this process. It takes a plugin once, so what may change is set apart.

    target   what their kernels are built for
    failure  keeps the first exception out of what TensorRT calls
    """

    def __init__(
        self,
        trt: Any,
        compiled: Callable[[aot.Variant, str], aot.Compiled] = build,
        launches: Callable[[PluginCall], tuple[PluginLaunch, ...]] = plugin_launches,
    ) -> None:
        """trt       the package, with `tensorrt.plugin` imported
        compiled  what builds a kernel
        launches  what says how a node is launched
        """
        self.target, self.failure = aot.UNIVERSAL, Failure()
        self._trtp, self._compiled, self._launches = trt.plugin, compiled, launches
        self._tactics = offers_tactics(str(trt.__version__))
        self._lock, self._names = threading.Lock(), set[str]()

    def register(self, target: str, failure: Failure) -> None:
        """Make every node of ours a plugin whose kernel is built for `target`, such as sm_90; before parsing the graph.

        May be called again with another target. Compile what is needed before the build (`plugin_variants`, `build`).

        Raises ExportError for a target that no builds are made for.
        """
        targets = [one for one in aot.TARGETS if one.startswith("sm_")]
        if target not in targets:
            raise ExportError(f"plugins cannot be built for {target!r}. Expected one of {', '.join(targets)}.")
        with self._lock:
            self.target, self.failure = target, failure
            for op_type in OPERATIONS.keys() - self._names:
                self._register(self._trtp, op_type)
                self._names.add(op_type)

    def _outputs(self, op_type: str, tensors: Sequence[Any], attributes: Sequence[Any]) -> tuple[Any, ...]:
        operation = OPERATIONS[op_type]
        units = _units(operation, tensors)
        if _is_fake(tensors):
            shapes: list[tuple[Any, ...]] = [(units,) * output.rank for output in operation.outputs]
        else:
            best, *_ = self._launches(asked_call(op_type, tensors, attributes))
            shapes = [tuple(_expression(self._trtp, one, units) for one in shape) for shape in best.outputs]
        types = {torch_type: name for name, torch_type in _TYPES.items()}
        described = []
        for output, shape in zip(operation.outputs, shapes, strict=True):
            dtype = tensors[0].dtype
            if output.dtype is not None:
                dtype = getattr(type(dtype), types[output.dtype])
            described.append(self._trtp.from_shape_expr(shape, dtype))
        return tuple(described)

    def _tactic(self, op_type: str, launches: Sequence[PluginLaunch], tactic: int) -> PluginLaunch:
        """TensorRT's tactic 0 is the one of a plugin that offers none."""
        number = tactic if self._tactics else tactic + 1
        if not 1 <= number <= (len(launches) if self._tactics else 1):
            raise ExportError(
                f"TensorRT asks for tactic {tactic} of {op_type}, which has {len(launches)}. Its timing cache is from "
                "another version of tempme-export: delete it."
            )
        return launches[number - 1]

    def _implementation(self, op_type: str, tensors: Sequence[Any], attributes: Sequence[Any], tactic: int) -> Any:
        launch = self._tactic(op_type, self._launches(asked_call(op_type, tensors, attributes)), tactic)
        built = self._compiled(launch.variant, self.target)
        assert built.ptx is not None, "plugins are built for NVIDIA's targets alone"
        trtp, units = self._trtp, _units(OPERATIONS[op_type], tensors)
        params = trtp.KernelLaunchParams()
        params.grid_x, params.grid_y, params.grid_z = (_expression(trtp, one, units) for one in launch.grid)
        params.block_x, params.shared_mem = built.num_warps * _WARP, built.resources.shared
        scalars = trtp.SymIntExprs(len(launch.scalars))
        for index, (_, scalar) in enumerate(launch.scalars):
            scalars[index] = trtp.SymInt32(_expression(trtp, scalar, units))
        return built.name, built.ptx, params, scalars

    def _kept(self, function: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
        """The function under this signature; its first exception is kept."""

        def call(*args: Any, **attributes: Any) -> Any:
            with self.failure.kept():
                return function(*args, **attributes)

        call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    def _register(self, trtp: Any, op_type: str) -> None:
        operation = OPERATIONS[op_type]
        names = [one.name for one in operation.inputs]
        count, plugin_id = len(names), f"{DOMAIN}::{op_type}"

        def describe(*tensors: Any, **attributes: Any) -> Any:
            return self._outputs(op_type, tensors, [attributes[name] for name in operation.attributes])

        def autotune(*given: Any) -> Any:
            *inputs_and_attributes, outputs = given
            inputs, attributes = inputs_and_attributes[:count], inputs_and_attributes[count:]
            launches = self._launches(asked_call(op_type, inputs, attributes))
            types = ", ".join(_type_name(desc) for desc in (*inputs, *outputs))
            tactics = list(range(1, len(launches) + 1)) if self._tactics else None
            return [trtp.AutoTuneCombination(types, "LINEAR", tactics)]

        def implement(*given: Any) -> Any:
            *inputs_and_attributes, _, tactic = given
            return self._implementation(op_type, inputs_and_attributes[:count], inputs_and_attributes[count:], tactic)

        tensor, kernel = trtp.TensorDesc, tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]
        for add, function, further, returns in (
            (trtp.register, describe, (), tuple[(tensor,) * len(operation.outputs)]),  # type: ignore[misc]
            (trtp.autotune, autotune, ("outputs",), list[trtp.AutoTuneCombination]),
            (trtp.aot_impl, implement, ("outputs", "tactic"), kernel),
        ):
            add(plugin_id)(self._kept(function, _signature(names, operation.attributes, tensor, further, returns)))


@functools.cache
def installed() -> Plugins:
    """Those of the installed TensorRT. Raises BackendError without tensorrt.plugin."""
    try:
        trt = importlib.import_module("tensorrt")
        import_plugins()
    except ImportError as error:
        raise BackendError(
            f"plugins need TensorRT's Python package with tensorrt.plugin ({error}). Run: {install_command()}"
        ) from error
    return Plugins(trt)

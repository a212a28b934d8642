"""Our nodes as quick deployable plugins of TensorRT, built ahead of time: an engine holds PTX and needs no Python.

A plugin says what its outputs look like, which launch configurations are worth trying (TensorRT times them as
tactics, counted from 1), and for one of them hands over PTX, grid, block, shared memory and scalars as expressions
of the batch. All of it comes from `plugin_launches`. The kernel then takes inputs, scalars, outputs.

Tested against NVIDIA's bindings with a stand-in for the libraries; has not been run with TensorRT yet.
"""

import inspect
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tempme_export.errors import BackendError, ExportError
from tempme_export.exporters.plugin_functions import DOMAIN
from tempme_export.exporters.trt.plugin_builds import build
from tempme_export.exporters.trt.plugin_launches import PluginCall, PluginLaunch, Quantity, Scaled, plugin_launches
from tempme_export.exporters.trt.plugin_operations import OPERATIONS, Operation
from tempme_export.kernels import aot
from tempme_export.runtime.tensorrt_package import install_command

_WARP = 32
_TYPES = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT32": torch.int32}
_AUTOTUNE_NAMES = {"FLOAT": "FP32", "HALF": "FP16"}  # the other types keep their name
# An array of one element: the bindings before 11.2 hand whole numbers over in a way that NumPy 2.4 refuses.
_ATTRIBUTE = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class _Registration:
    """Plugins registered in this process. TensorRT takes a plugin once, so the target to build for is set apart."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.target = aot.UNIVERSAL
        self.names: set[str] = set()


_registration = _Registration()


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


def _call(op_type: str, tensors: Sequence[Any], attributes: Sequence[Any]) -> PluginCall:
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


def _outputs(trtp: Any, op_type: str, tensors: Sequence[Any], attributes: Sequence[Any]) -> tuple[Any, ...]:
    operation = OPERATIONS[op_type]
    units = _units(operation, tensors)
    if _is_fake(tensors):
        shapes: list[tuple[Any, ...]] = [(units,) * output.rank for output in operation.outputs]
    else:
        best, *_ = plugin_launches(_call(op_type, tensors, attributes))
        shapes = [tuple(_expression(trtp, one, units) for one in shape) for shape in best.outputs]
    types = {torch_type: name for name, torch_type in _TYPES.items()}
    described = []
    for output, shape in zip(operation.outputs, shapes, strict=True):
        dtype = tensors[0].dtype
        if output.dtype is not None:
            dtype = getattr(type(dtype), types[output.dtype])
        described.append(trtp.from_shape_expr(shape, dtype))
    return tuple(described)


def _tactic(op_type: str, launches: Sequence[PluginLaunch], tactic: int) -> PluginLaunch:
    if not 1 <= tactic <= len(launches):
        raise ExportError(
            f"TensorRT asks for tactic {tactic} of {op_type}, which has {len(launches)}. Its timing cache is from "
            "another version of tempme-export: delete it."
        )
    return launches[tactic - 1]


def _implementation(trtp: Any, op_type: str, tensors: Sequence[Any], attributes: Sequence[Any], tactic: int) -> Any:
    launch = _tactic(op_type, plugin_launches(_call(op_type, tensors, attributes)), tactic)
    built = build(launch.variant, _registration.target)
    assert built.ptx is not None, "plugins are built for NVIDIA's targets alone"
    units = _units(OPERATIONS[op_type], tensors)
    params = trtp.KernelLaunchParams()
    params.grid_x, params.grid_y, params.grid_z = (_expression(trtp, one, units) for one in launch.grid)
    params.block_x, params.shared_mem = built.num_warps * _WARP, built.resources.shared
    scalars = trtp.SymIntExprs(len(launch.scalars))
    for index, (_, scalar) in enumerate(launch.scalars):
        scalars[index] = trtp.SymInt32(_expression(trtp, scalar, units))
    return built.name, built.ptx, params, scalars


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


def _register(trtp: Any, op_type: str) -> None:
    operation = OPERATIONS[op_type]
    names = [one.name for one in operation.inputs]
    count, plugin_id = len(names), f"{DOMAIN}::{op_type}"

    def describe(*tensors: Any, **attributes: Any) -> Any:
        return _outputs(trtp, op_type, tensors, [attributes[name] for name in operation.attributes])

    def autotune(*given: Any) -> Any:
        *inputs_and_attributes, outputs = given
        inputs, attributes = inputs_and_attributes[:count], inputs_and_attributes[count:]
        launches = plugin_launches(_call(op_type, inputs, attributes))
        types = ", ".join(_type_name(desc) for desc in (*inputs, *outputs))
        return [trtp.AutoTuneCombination(types, "LINEAR", list(range(1, len(launches) + 1)))]

    def implement(*given: Any) -> Any:
        *inputs_and_attributes, _, tactic = given
        inputs, attributes = inputs_and_attributes[:count], inputs_and_attributes[count:]
        return _implementation(trtp, op_type, inputs, attributes, tactic)

    tensor, kernel = trtp.TensorDesc, tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]
    for function, further, returns in (
        (describe, (), tuple[(tensor,) * len(operation.outputs)]),  # type: ignore[misc]
        (autotune, ("outputs",), list[trtp.AutoTuneCombination]),
        (implement, ("outputs", "tactic"), kernel),
    ):
        signature = _signature(names, operation.attributes, tensor, further, returns)
        function.__signature__ = signature  # type: ignore[attr-defined]
    trtp.register(plugin_id)(describe)
    trtp.autotune(plugin_id)(autotune)
    trtp.aot_impl(plugin_id)(implement)


def register(target: str = aot.UNIVERSAL) -> None:
    """Make every node of ours a plugin that builds its kernel for `target`, such as sm_90; before parsing the graph.

    May be called again with another target. Compile what is needed before the build (`plugin_variants`, `build`):
    inside TensorRT an error is only logged.

    Raises ExportError for a target that no builds are made for, BackendError without tensorrt.plugin.
    """
    targets = [one for one in aot.TARGETS if one.startswith("sm_")]
    if target not in targets:
        raise ExportError(f"plugins cannot be built for {target!r}. Expected one of {', '.join(targets)}.")
    try:
        import tensorrt.plugin as trtp
    except ImportError as error:
        raise BackendError(
            f"plugins need TensorRT's Python package with tensorrt.plugin ({error}). Run: {install_command()}"
        ) from error
    with _registration.lock:
        _registration.target = target
        for op_type in OPERATIONS.keys() - _registration.names:
            _register(trtp, op_type)
            _registration.names.add(op_type)

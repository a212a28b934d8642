"""Kernel launches of a node's plugin, with every number as a function of the batch. Knows nothing of TensorRT.

Nothing about a kernel is written twice: its launcher is recorded at several batch sizes, and what differs between
the recordings is what scales with the batch. Each operation launches one kernel, without workspace.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from tempme_export.errors import BackendError, ExportError
from tempme_export.exporters.common import DTYPES
from tempme_export.exporters.plugin_nodes import PluginNode
from tempme_export.exporters.trt.plugin_operations import OPERATIONS, Operation, operation_of
from tempme_export.kernels import aot

# Recorded batches: any divisor that is a power of two up to 1024 divides the last, so that its ratio is exact.
_BATCHES = (1, 2, 3, 1024)


@dataclass(frozen=True)
class Scaled:
    """A whole number that grows with the batch: ceil(units * factor / divisor)."""

    factor: int
    divisor: int = 1


Quantity = int | Scaled


def value_at(quantity: Quantity, units: int) -> int:
    """The number behind a quantity for a length `units` of the axis that operations count by."""
    if isinstance(quantity, Scaled):
        return -(-units * quantity.factor // quantity.divisor)
    return quantity


@dataclass(frozen=True)
class PluginCall:
    """A node with all that is fixed about it.

    attributes  name and value, in the order of the operation
    inputs      dtype and dimensions of every input; of those behind the batch axis where it has one
    """

    op_type: str
    attributes: tuple[tuple[str, int], ...]
    inputs: tuple[tuple[torch.dtype, tuple[int, ...]], ...]


@dataclass(frozen=True)
class PluginLaunch:
    """One way to launch a node: a build, and what it is called with for any batch."""

    variant: aot.Variant
    grid: tuple[Quantity, Quantity, Quantity]
    scalars: tuple[tuple[str, Quantity], ...]
    outputs: tuple[tuple[Quantity, ...], ...]


def call_of(node: PluginNode, precision: str) -> PluginCall:
    """Plugin call of a node of the graph in one precision: all that is fixed about it.

    Raises ExportError for a node that is not what its plugin takes.
    """
    operation = operation_of(node.op_type)
    taken = [(one.name, one.leading != "fixed") for one in operation.inputs]
    given = [(one.name, one.batched) for one in node.inputs]
    missing = [name for name in operation.attributes if name not in node.attributes]
    if taken != given or missing:
        raise ExportError(
            f"a node {node.op_type} has inputs {given} and lacks attributes {missing}; its plugin takes {taken} "
            f"and {', '.join(operation.attributes)}. This is a fault of the exporter."
        )
    dtypes = {"T": DTYPES[precision], "float16": torch.float16, "float32": torch.float32, "int32": torch.int32}
    return PluginCall(
        op_type=node.op_type,
        attributes=tuple((name, node.attributes[name]) for name in operation.attributes),
        inputs=tuple((dtypes[one.kind], one.shape[1:] if one.batched else one.shape) for one in node.inputs),
    )


def _fewest_clips(call: PluginCall) -> int:
    """Clips come in multiples of this: joined clips, of which a whole number goes through all positions."""
    positions = [
        dims[0]
        for one, (_, dims) in zip(OPERATIONS[call.op_type].inputs, call.inputs, strict=True)
        if one.name == "position"
    ]
    return math.lcm(dict(call.attributes).get("factor", 1), *positions)


def units_of(call: PluginCall, clips: int) -> int:
    """The length of the axis that the operation counts by, for so many clips."""
    operation = OPERATIONS[call.op_type]
    counted = next(one.leading for one in operation.inputs if one.name == operation.unit)
    return clips if counted == "clips" else clips // dict(call.attributes).get("factor", 1)


def _tensors(call: PluginCall, clips: int) -> dict[str, Tensor]:
    """The inputs of a call for so many clips, without memory."""
    leading = {"clips": (clips,), "items": (clips // dict(call.attributes).get("factor", 1),), "fixed": ()}
    pairs = zip(OPERATIONS[call.op_type].inputs, call.inputs, strict=True)
    return {
        one.name: torch.empty(*leading[one.leading], *dims, dtype=dtype, device="meta") for one, (dtype, dims) in pairs
    }


def record(call: PluginCall, clips: int, operation: Operation | None = None) -> tuple[aot.Launch, ...]:
    """Launches of a node for so many clips, one for each configuration worth trying; equal ones once.

    operation  of the node; None: by its type

    Raises ExportError for what the kernel cannot take, BackendError without Triton.
    """
    operation, attributes = operation or operation_of(call.op_type), dict(call.attributes)
    try:
        tensors = _tensors(call, clips)
        found: dict[aot.Launch, None] = {}
        for config in operation.configurations(tensors, attributes):
            (one,) = aot.launches_of(functools.partial(operation.run, tensors, attributes, config))
            found[one] = None
    except ValueError as error:
        raise ExportError(f"the plugin {call.op_type} cannot be launched: {error}") from error
    except ImportError as error:
        raise BackendError(
            f"plugins are built from Triton kernels: {error}. Install them with pip install triton."
        ) from error
    return tuple(found)


Recorder = Callable[[PluginCall, int], tuple[aot.Launch, ...]]


def _fit(what: str, units: Sequence[int], values: Sequence[int]) -> Quantity:
    """The quantity that takes these values at these units."""
    if len(set(values)) == 1:
        return values[0]
    ratio = Fraction(values[-1], units[-1])
    quantity = Scaled(ratio.numerator, ratio.denominator)
    if [value_at(quantity, one) for one in units] != list(values):
        raise ExportError(f"{what} is {values} at {units} and follows no rule that TensorRT could be told.")
    return quantity


def _over_batches(operation: Operation, units: Sequence[int], same: Sequence[aot.Launch]) -> PluginLaunch:
    """One launch, recorded at several batches -> the launch at any batch."""
    first = same[0]
    if any(one.variant != first.variant for one in same):
        raise ExportError(f"{first.variant.name} would be another build for another batch.")

    def fit(what: str, values: Sequence[int]) -> Quantity:
        return _fit(f"{what} of {first.variant.name}", units, values)

    x, y, z = (fit("the grid", values) for values in zip(*(one.grid for one in same), strict=True))
    names = [name for name, _ in first.scalars]
    scalars = [fit(name, [dict(one.scalars)[name] for one in same]) for name in names]
    outputs = []
    for k, output in enumerate(operation.outputs):
        shapes = [one.outputs[k].shape for one in same]
        outputs.append(tuple(fit(output.name, values) for values in zip(*shapes, strict=True)))
    return PluginLaunch(first.variant, (x, y, z), tuple(zip(names, scalars, strict=True)), tuple(outputs))


@functools.cache
def plugin_launches(call: PluginCall, recorder: Recorder = record) -> tuple[PluginLaunch, ...]:
    """The launches worth trying for a node, by the length of its operation's unit; tactic k is number k - 1.

    recorder  says what is launched for so many clips

    Raises ExportError for what the kernel cannot take or what does not scale with the batch.
    """
    operation = operation_of(call.op_type)
    clips = [_fewest_clips(call) * batch for batch in _BATCHES]
    units = [units_of(call, count) for count in clips]
    recorded = [recorder(call, count) for count in clips]
    return tuple(_over_batches(operation, units, same) for same in zip(*recorded, strict=True))


def plugin_variants(nodes: Iterable[PluginNode], precision: str) -> tuple[aot.Variant, ...]:
    """Every build that an engine of these nodes can take, each once: what is compiled before TensorRT starts.

    Raises ExportError as `call_of` and `plugin_launches`, BackendError without Triton.
    """
    calls = dict.fromkeys(call_of(node, precision) for node in nodes)
    return tuple(dict.fromkeys(one.variant for call in calls for one in plugin_launches(call)))

"""A float32 graph -> the same graph with its products between QuantizeLinear and DequantizeLinear."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper
from torch import nn

from tempme_export.errors import ExportError
from tempme_export.quantization.products import Range, products

_VERSIONS = "This is a fault of the exporter with the installed versions; install those of constraints.txt."


def _key(weight: np.ndarray) -> tuple[tuple[int, ...], str]:
    return weight.shape, hashlib.sha256(np.ascontiguousarray(weight).tobytes()).hexdigest()


def find_products(proto: onnx.ModelProto, tower: nn.Module) -> dict[str, onnx.NodeProto]:
    """The MatMul of every product, found by its weights: the names in a graph are the exporter's own. Products with the
    same weights are told apart by their order.

    Raises ExportError for a product that the graph does not hold exactly once.
    """
    waiting: dict[object, list[str]] = defaultdict(list)  # names of the products with these weights
    for name, module in products(tower).items():
        waiting[_key(module.weight.numpy().T)].append(name)
    constants = {one.name: one for one in proto.graph.initializer}
    found: dict[str, onnx.NodeProto] = {}
    for node in proto.graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            key = _key(numpy_helper.to_array(constants[node.input[1]]))
            if key in waiting:
                if not waiting[key]:
                    raise ExportError(f"{node.output[0]} multiplies by weights that are spoken for. {_VERSIONS}")
                found[waiting[key].pop(0)] = node
    lost = [name for name in products(tower) if name not in found]
    if lost:
        raise ExportError(f"the graph has no product with the weights of {', '.join(lost)}. {_VERSIONS}")
    return found


def _ordered(nodes: Sequence[onnx.NodeProto], before: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that were there in the order they had, by their names, and each new one right before its reader."""
    made_by = {value: node for node in nodes for value in node.output}
    by_name = {node.name: node for node in nodes}
    ordered: list[onnx.NodeProto] = []
    placed: set[str] = set()

    def place(node: onnx.NodeProto) -> None:
        if node.name not in placed:
            placed.add(node.name)
            for value in node.input:
                if value in made_by:
                    place(made_by[value])
            ordered.append(node)

    for name in before:
        place(by_name[name])
    return ordered


def quantise(
    proto: onnx.ModelProto, tower: nn.Module, ranges: Mapping[str, Range], in_float: Collection[str]
) -> onnx.ModelProto:
    """The graph with its products between QuantizeLinear and DequantizeLinear; `proto` is used up.

    proto     float32 graph of `tower`
    ranges    of every product's input
    in_float  products that keep their float32 weights
    Raises ExportError where graph and tower do not belong together.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType  # other precisions do without the package
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    order = [node.name for node in proto.graph.node]
    nodes = {name: node for name, node in find_products(proto, tower).items() if name not in in_float}
    if not nodes:
        return proto  # to the quantizer an empty list means every node
    observed = {
        node.input[0]: TensorData(lowest=np.float32(ranges[name].lowest), highest=np.float32(ranges[name].highest))
        for name, node in nodes.items()
    }
    quantizer = QDQQuantizer(
        proto,
        per_channel=True,
        reduce_range=True,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, observed),
        nodes_to_quantize=[node.name for node in nodes.values()],
        nodes_to_exclude=[],
        op_types_to_quantize=["MatMul"],
        extra_options={"WeightSymmetric": True, "OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it warns of outputs that it is told to leave alone
    try:
        quantizer.quantize_model()
    finally:
        logging.root.setLevel(level)
    written = quantizer.model.model
    ordered = _ordered(written.graph.node, order)
    del written.graph.node[:]
    written.graph.node.extend(ordered)
    return written

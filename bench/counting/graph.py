"""Count the products of an ONNX graph from its static shapes, without running it and without its weights.

A product against a constant is the model's, unless what it multiplies was compared with something (counting and
placing tokens). One whose result reaches a Softmax through element-wise steps, or that reads a Softmax, is the
attention's. Every other one chooses or merges tokens. A product put down wrongly does not agree with the formula.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tempme_export.bench.counting.products import Kind, Product, Products
from tempme_export.errors import InputError

if TYPE_CHECKING:
    import onnx

_PRODUCTS = ("MatMul", "Gemm", "Conv")
_HIDING = ("MatMul", "Gemm", "Conv", "Attention", "Einsum", "LSTM", "GRU", "RNN", "Loop", "If", "Scan")
_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "ArgMax", "TopK")
_ENDS = (*_PRODUCTS, "Softmax", "LayerNormalization")  # what is behind them is no matter of the product before
_PLAIN = ("Add", "Mul", "Div", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Identity")
_RESHAPING = (
    *("Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Transpose", "Unsqueeze"),
)
_SMALL = 1024  # elements of a constant that shape inference may need the values of

Shape = tuple[int, ...]


def _load(graph: "onnx.ModelProto | Path") -> "tuple[onnx.ModelProto, str]":
    import onnx

    if not isinstance(graph, Path):
        return graph, "the graph"
    try:
        return onnx.load(str(graph), load_external_data=False), str(graph)
    except Exception as error:  # the file system's or protobuf's own
        raise InputError(f"{graph} cannot be loaded as an ONNX graph: {error}") from error


def _check(proto: "onnx.ModelProto", name: str) -> None:
    hiding = sorted(
        {
            f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            for node in proto.graph.node
            if node.domain not in ("", "ai.onnx")
            or (node.op_type not in _PRODUCTS and any(word in node.op_type for word in _HIDING))
        }
    )
    if hiding or proto.functions:
        raise InputError(
            f"{name} holds {', '.join(hiding) or 'local functions'}, whose products cannot be read from shapes. "
            "Count the graph as tempme-export writes it, before a runtime has rewritten it."
        )


def _without_values(proto: "onnx.ModelProto", videos: int) -> "onnx.ModelProto":
    """The same nodes with `videos` as the batch, and large constants as inputs: shapes stay, values go."""
    import onnx

    bare = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    bare.graph.name = proto.graph.name
    bare.graph.node.extend(proto.graph.node)
    constants = {tensor.name for tensor in proto.graph.initializer}
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64 and math.prod(tensor.dims) <= _SMALL:
            bare.graph.initializer.append(tensor)
        else:
            bare.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for value in proto.graph.input:
        if value.name not in constants:
            bare.graph.input.append(value)
            bare.graph.input[-1].type.tensor_type.shape.dim[0].Clear()
            bare.graph.input[-1].type.tensor_type.shape.dim[0].dim_value = videos
    for value in proto.graph.output:
        bare.graph.output.append(value)
        bare.graph.output[-1].type.tensor_type.ClearField("shape")
    return bare


class _Graph:
    """Nodes with what makes and uses each value, and the shape of every value."""

    def __init__(self, proto: "onnx.ModelProto", name: str, videos: int) -> None:
        import onnx

        self.name, self.nodes = name, list(proto.graph.node)
        self.made_by = {value: node for node in self.nodes for value in node.output}
        self.used_by: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for value in node.input:
                self.used_by[value].append(node)
        self.constants = {tensor.name for tensor in proto.graph.initializer}
        self.shapes = self._infer(_without_values(proto, videos))

    def _infer(self, bare: "onnx.ModelProto") -> dict[str, Shape]:
        import onnx

        try:
            inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True)
        except onnx.shape_inference.InferenceError as error:
            raise InputError(f"{self.name}: its shapes contradict each other: {error}") from error
        shapes = {tensor.name: tuple(tensor.dims) for tensor in inferred.graph.initializer}
        for value in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]:
            sizes = value.type.tensor_type
            if sizes.HasField("shape") and all(axis.HasField("dim_value") for axis in sizes.shape.dim):
                shapes[value.name] = tuple(axis.dim_value for axis in sizes.shape.dim)
        return shapes

    def shape(self, value: str) -> Shape:
        if value not in self.shapes:
            maker = self.made_by.get(value)
            raise InputError(
                f"{self.name}: the shape of {value!r} ({maker.op_type if maker else 'an input'}) is not known before "
                "the graph runs; operations are counted where all sizes but the batch are constant, as tempme-export "
                "writes them. Export anew."
            )
        return self.shapes[value]

    def is_constant(self, value: str) -> bool:
        """True for an initializer, or one that was only turned around."""
        maker = self.made_by.get(value)
        if maker is None:
            return value in self.constants
        return maker.op_type == "Constant" or (
            maker.op_type in _RESHAPING and all(self.is_constant(source) for source in maker.input if source)
        )

    def _reaches(
        self,
        start: Iterable["onnx.NodeProto"],
        step: Callable[["onnx.NodeProto"], Iterable["onnx.NodeProto"]],
        operators: Collection[str],
        goes_on: Callable[[str], bool],
    ) -> bool:
        """True where a walk from `start` meets one of `operators`, going on behind those that `goes_on` names."""
        waiting, seen = list(start), set()
        while waiting:
            node = waiting.pop()
            if node.op_type in operators:
                return True
            if node.output[0] not in seen and goes_on(node.op_type):
                seen.add(node.output[0])
                waiting += step(node)
        return False

    def makers(self, values: Iterable[str]) -> list["onnx.NodeProto"]:
        return [self.made_by[value] for value in values if value in self.made_by]

    def users(self, node: "onnx.NodeProto") -> list["onnx.NodeProto"]:
        return [user for value in node.output for user in self.used_by[value]]

    def is_attention(self, node: "onnx.NodeProto") -> bool:
        """True where its result reaches a Softmax, or it reads one, with nothing but element-wise steps between."""
        reads = self._reaches(
            self.makers(node.input), lambda one: self.makers(one.input), ("Softmax",), _RESHAPING.__contains__
        )
        return reads or self._reaches(self.users(node), self.users, ("Softmax",), _PLAIN.__contains__)

    def was_compared(self, value: str) -> bool:
        """True where a comparison is among what the value was made of since the last product or normalisation."""
        return self._reaches(
            self.makers([value]), lambda one: self.makers(one.input), _COMPARISONS, lambda kind: kind not in _ENDS
        )


def _product(graph: _Graph, node: "onnx.NodeProto") -> Product:
    out, name = graph.shape(node.output[0]), node.output[0]
    if node.op_type == "Conv":
        weight = graph.shape(node.input[1])
        return Product("convolution", 1, math.prod(out) // out[1], math.prod(weight[1:]), weight[0])
    a, b = graph.shape(node.input[0]), graph.shape(node.input[1])
    if min(len(a), len(b)) < 2:
        raise InputError(f"{graph.name}: {name!r} multiplies a vector, {list(a)} by {list(b)}, expected matrices.")
    transposed = {attribute.name: attribute.i for attribute in node.attribute if attribute.name == "transA"}
    inner = a[-2] if transposed.get("transA") else a[-1]
    if graph.is_constant(node.input[1]) and len(b) == 2 and not graph.was_compared(node.input[0]):
        return Product("weights", 1, math.prod(out[:-1]), inner, out[-1])
    kind: Kind = "attention" if graph.is_attention(node) else "merging"
    return Product(kind, math.prod(out[:-2]), out[-2], inner, out[-1])


def count_graph(graph: "onnx.ModelProto | Path", videos: int = 1) -> Products:
    """Count the products of a video tower's graph, given as a file or in memory, for `videos` videos.

    Raises InputError for what is no ONNX graph, for operators that hide products, and for products whose shapes are
    not constant apart from the batch.
    """
    proto, name = _load(graph)
    _check(proto, name)
    whole = _Graph(proto, name, videos)
    return Products(tuple(_product(whole, node) for node in whole.nodes if node.op_type in _PRODUCTS), videos)

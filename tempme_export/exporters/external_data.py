"""Weights beside their graph: ONNX external data, for what one protobuf message cannot hold.

`video.onnx` then names places in `video.onnx.data`, which lies in the same folder and is of no use alone.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from tempme_export.artifacts.graph_files import data_path

if TYPE_CHECKING:
    import onnx
    import onnx_ir

LARGEST_FILE = 2**31 - 1  # bytes of one protobuf message
_ALIGNMENT = 2**16  # what any system maps into memory at: 4 KiB pages, 64 KiB on Windows
_SMALL = 2**16  # bytes; what is smaller stays in the graph, where shape inference looks for it


def put_aside(model: "onnx_ir.Model", graph: Path) -> None:
    """Write the large weights of a model into the data file of `graph`; the model then names their places there.

    One weight at a time is copied.
    """
    import onnx_ir

    data = data_path(graph)
    with data.open("wb") as stream:
        for name, value in model.graph.initializers.items():
            weight = value.const_value
            if weight is None or weight.nbytes < _SMALL:
                continue
            stream.write(bytes(-stream.tell() % _ALIGNMENT))
            place = onnx_ir.ExternalTensor(
                data.name,
                stream.tell(),
                weight.nbytes,
                weight.dtype,
                shape=onnx_ir.Shape(weight.shape.numpy()),
                name=name,
                base_dir=data.parent,
            )
            stream.write(weight.tobytes())
            value.const_value = place


def put_aside_above(model: "onnx_ir.Model", graph: Path, limit: int) -> None:
    """`put_aside` where the weights alone take more than `limit` bytes."""
    constants = (value.const_value for value in model.graph.initializers.values())
    if sum(constant.nbytes for constant in constants if constant is not None) > limit:
        put_aside(model, graph)


def message_of(proto: "onnx.ModelProto", graph: Path, limit: int) -> bytes:
    """The graph as one message of at most `limit` bytes, or as what is left of it once its weights are put aside."""
    import onnx
    import onnx_ir

    weights = proto.graph.initializer
    if any(one.data_location == onnx.TensorProto.EXTERNAL for one in weights):
        return proto.SerializeToString()
    # Above its own limit protobuf does not serialise, nor count.
    if sum(len(one.raw_data) for one in weights) <= limit:
        message = proto.SerializeToString()
        if len(message) <= limit:
            return message
    model = onnx_ir.from_proto(proto)
    put_aside(model, graph)
    return onnx_ir.to_proto(model).SerializeToString()

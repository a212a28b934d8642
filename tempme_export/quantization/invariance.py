"""Batch invariance of the float steps: where in a batch a video lies must not matter, since a last bit turns a rounding
to 8 bits, and that is no longer a last bit.

ONNX Runtime computes a logarithm eight values at a time and what is left over one by one, with another last bit, so
that the batch decides who is left over. Sizes are whole numbers, so their logarithms can be looked up.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_TABLE = "log_of_size"


def look_up_logarithms(proto: onnx.ModelProto, largest: int) -> None:
    """Replace every Log, in place, by a table of the logarithms of 0 to `largest`; the inputs are whole numbers."""
    nodes = list(proto.graph.node)
    if not any(node.op_type == "Log" for node in nodes):
        return
    table = np.log(np.maximum(np.arange(largest + 1), 1)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(table, _TABLE))
    del proto.graph.node[:]
    for node in nodes:
        if node.op_type != "Log":
            proto.graph.node.append(node)
            continue
        (size,), (log,) = node.input, node.output
        index = f"{log}_index"
        proto.graph.node.append(helper.make_node("Cast", [size], [index], name=f"{index}_cast", to=TensorProto.INT32))
        proto.graph.node.append(helper.make_node("Gather", [_TABLE, index], [log], name=f"{log}_gather"))

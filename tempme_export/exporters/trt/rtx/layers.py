"""Layers that TensorRT-RTX's builder made of a graph: its log's listing of the engine's layers, read and counted.

An engine can be inspected only where it can be loaded, which takes a GPU. With detailed profiling verbosity the
builder logs the same facts: one message with a line for every layer, its kind, its tensors and the ONNX nodes in it.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tempme_export.errors import ExportError

_LISTING = "Layers:\nName: "
_LAYER = re.compile(
    r"Name: (?P<name>.+?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*)\], TacticName: (?P<tactic>.*), StreamId: .*, Metadata: ?(?P<nodes>.*)"
)
_TENSOR = re.compile(r"\{ Name: [^,]*(?:, Dimensions: \[(?P<axes>[^\]]*)\])?[^}]*?, Datatype: (?P<dtype>\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_NO_OUTPUT = "none"  # what computes shapes alone


@dataclass(frozen=True)
class Layer:
    """One layer of an engine.

    kind   the builder's word for how it computes: gemm, kgen (generated code), runtime_fusion, ...
    dtype  of its first output, in the builder's words: Half, Float, Int32, ...; "none" without outputs
    nodes  names of the ONNX nodes that became part of it
    """

    name: str
    kind: str
    dtype: str
    nodes: tuple[str, ...]


def read_layers(messages: Iterable[str]) -> tuple[Layer, ...]:
    """The layers that a builder's log lists; the last listing counts.

    Raises ExportError for a log without a listing, or a line of it that reads otherwise than expected.
    """
    layers = []
    for found in _listed(messages):
        dtypes = [one["dtype"] for one in _TENSOR.finditer(found["outputs"])]
        dtype = dtypes[0] if dtypes else _NO_OUTPUT
        layers.append(Layer(found["name"], found["kind"], dtype, tuple(_NODE.findall(found["nodes"]))))
    return tuple(layers)


def inspector_report(messages: Iterable[str]) -> str:
    """The same layers in the JSON of an engine inspector, which needs an engine that is loaded. Raises ExportError."""
    entries = [
        {
            "Name": found["name"],
            "LayerType": found["kind"],
            **{field: _tensors(found[field.lower()]) for field in ("Inputs", "Constants", "Outputs")},
            "TacticName": found["tactic"],
            "Metadata": found["nodes"],
        }
        for found in _listed(messages)
    ]
    return json.dumps({"Layers": entries})


def _tensors(text: str) -> list[dict[str, Any]]:
    return [
        {"Dimensions": [int(axis) for axis in (one["axes"] or "").split(",") if axis], "Datatype": one["dtype"]}
        for one in _TENSOR.finditer(text)
    ]


def _listed(messages: Iterable[str]) -> Iterator[re.Match[str]]:
    listing = None
    for message in messages:
        if message.startswith(_LISTING):
            listing = message
    if listing is None:
        raise ExportError(
            "the builder's log lists no layers, so nothing can be counted. It was to be built with detailed profiling "
            "verbosity and a verbose logger, by the version of TensorRT-RTX that the Makefile pins."
        )
    for line in listing.split("\n\n")[0].splitlines()[1:]:
        if line:
            yield _read_line(line)


def _read_line(line: str) -> re.Match[str]:
    found = _LAYER.fullmatch(line)
    if found is None:
        raise ExportError(
            f"a line of the builder's listing of layers reads {line[:120]!r}, expected 'Name: ..., LayerType: ..., "
            "... Outputs: [...], TacticName: ..., Metadata: ...'. Use the TensorRT-RTX that the Makefile pins."
        )
    return found


def fused_attentions(layers: Sequence[Layer], operators: Mapping[str, str]) -> int:
    """Number of layers that compute a whole attention: the softmax and both matrix products around it.

    Products that another layer has a part in do not count: a softmax alone may take over the padding of both.

    operators  ONNX node name -> op_type
    """
    parts = Counter(node for layer in layers for node in set(layer.nodes))
    whole = (Counter(operators.get(node) for node in layer.nodes if parts[node] == 1) for layer in layers)
    return sum(count["Softmax"] == 1 and count["MatMul"] >= 2 for count in whole)


def by_dtype(layers: Iterable[Layer]) -> dict[str, int]:
    """Number of layers that give each type of number, most first."""
    return dict(Counter(layer.dtype for layer in layers).most_common())

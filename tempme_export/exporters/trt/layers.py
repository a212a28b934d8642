"""Content of a finished engine, from the engine inspector's JSON: layers by precision, plugins, attentions.

The wordings of TensorRT 10 and 11 are read: a tensor's type stands under `Format/Datatype` or `Datatype`, as `Half` or
inside a sentence, and products are `gemm`, `runtime_fusion`, `_gemm_mha_v2` and so on. Written after what documentation
shows and TensorRT-RTX 1.7 reports of this graph; has not been run on an engine of TensorRT yet.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tempme_export.errors import ExportError

NONE, UNKNOWN = "none", "unknown"
_LISTED = 8
# Narrowest first: the operand that a product is computed in.
_WORDS = (
    ("fp4", r"fp4|e2m1"),
    ("int4", r"int4"),
    ("fp8", r"fp8|e4m3"),
    ("int8", r"int8"),
    ("bf16", r"bf16|bfloat16|bfloat"),
    ("fp16", r"half|fp16|float16"),
    ("fp32", r"float|fp32|float32"),
)
_TYPES = {name: re.compile(rf"(?<![a-z0-9])k?(?:{words})(?![a-z0-9])", re.IGNORECASE) for name, words in _WORDS}
_NARROW = tuple(name for name, _ in _WORDS)
_PRODUCT_TYPE = re.compile(
    r"gemm|matmul|matrixmultiply|matrix_multiply|conv(?!ert)|fullyconnected|runtime_fusion", re.I
)
_PRODUCT_TACTIC = re.compile(r"gemm|fprop|fmha|(?<![a-z])mha", re.I)
_PRODUCT_NAME = re.compile(r"_gemm_|__myl_(?:[A-Z][a-z]*)*Fc(?![a-z])")
_ATTENTION = re.compile(r"_mha_|fmha|flash_?att|fused_?attention", re.I)
_TF32 = re.compile(r"tf32", re.I)
_PLUGIN = re.compile(r"plugin", re.I)
_SUFFIX = re.compile(r"_myl\d+_\d+$")  # of a layer that was a node
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


@dataclass(frozen=True)
class Layer:
    """One layer of an engine.

    kind       LayerType as the inspector says
    is_plugin  whether it is a plugin; the graph calls no plugins but ours
    operands   types of its floating-point inputs and constants of more than one element
    results    types of its floating-point outputs
    """

    name: str
    kind: str
    tactic: str
    is_plugin: bool
    operands: tuple[str, ...]
    results: tuple[str, ...]

    @property
    def is_attention(self) -> bool:
        """True for a whole attention: two products and the softmax between them."""
        return any(_ATTENTION.search(text) for text in (self.name, self.kind, self.tactic))

    @property
    def is_product(self) -> bool:
        """True for a layer that multiplies matrices."""
        if self.is_plugin:
            return False
        found = (_PRODUCT_TYPE.search(self.kind), _PRODUCT_TACTIC.search(self.tactic), _PRODUCT_NAME.search(self.name))
        return self.is_attention or any(found)

    @property
    def precision(self) -> str:
        """The narrowest type it touches; "none" without a floating-point tensor."""
        return _narrowest((*self.operands, *self.results)) or NONE

    @property
    def product_precision(self) -> str:
        """Precision of a product's operands; "tf32" where the kernel rounds float32 to it, "unknown" otherwise."""
        found = _narrowest(self.operands)
        if found == "fp32" and _TF32.search(self.tactic):
            return "tf32"
        return found or UNKNOWN


@dataclass(frozen=True)
class EngineLayers:
    """All layers of an engine."""

    layers: tuple[Layer, ...]

    @property
    def by_precision(self) -> dict[str, int]:
        """Layers by precision."""
        return dict(Counter(layer.precision for layer in self.layers))

    @property
    def products(self) -> dict[str, int]:
        """Matrix products by the precision of their operands."""
        return dict(Counter(layer.product_precision for layer in self.layers if layer.is_product))

    @property
    def plugins(self) -> int:
        """Plugin layers."""
        return sum(layer.is_plugin for layer in self.layers)

    @property
    def attentions(self) -> int:
        """Fused attentions."""
        return sum(layer.is_attention for layer in self.layers)


def _narrowest(types: Iterable[str]) -> str | None:
    found = set(types)
    return next((name for name in _NARROW if name in found), None)


def _tensor_type(tensor: Mapping[str, Any]) -> str | None:
    """None for integers, booleans and tensors whose type is not told."""
    told = [str(value) for key, value in tensor.items() if key.lower().replace(" ", "").endswith("datatype")]
    told = told or [str(value) for key, value in tensor.items() if key.lower() == "format"]
    return next((name for text in told for name in _NARROW if _TYPES[name].search(text)), None)


def _elements(tensor: Mapping[str, Any]) -> float:
    """Elements of a tensor; a dynamic axis counts as many, and so does an untold shape."""
    axes = [int(axis) for axis in tensor.get("Dimensions") or (-1,)]
    return math.inf if min(axes) < 0 else math.prod(axes)


def _types(tensors: Any, at_least: int) -> tuple[str, ...]:
    """Floating-point types of the tensors of at least so many elements."""
    listed = [tensor for tensor in tensors or () if isinstance(tensor, Mapping) and _elements(tensor) >= at_least]
    return tuple(name for tensor in listed if (name := _tensor_type(tensor)) is not None)


def _is_plugin(entry: Mapping[str, Any], plugin_nodes: Collection[str]) -> bool:
    """By its type, or because it is nothing but one node that the parser made a plugin of."""
    nodes = _NODE.findall(str(entry.get("Metadata", ""))) or [_SUFFIX.sub("", str(entry.get("Name", "")))]
    return bool(_PLUGIN.search(str(entry.get("LayerType", "")))) or (len(nodes) == 1 and nodes[0] in plugin_nodes)


def _layer(entry: Mapping[str, Any], plugin_nodes: Collection[str]) -> Layer:
    operands = (*_types(entry.get("Inputs"), 2), *_types(entry.get("Constants"), 2))
    weights = entry.get("Weights")
    if isinstance(weights, Mapping) and int(weights.get("Count", 0)) > 1:
        operands += _types([{"Datatype": weights.get("Type", "")}], 1)
    return Layer(
        name=str(entry.get("Name", "")),
        kind=str(entry.get("LayerType", "")),
        tactic=str(entry.get("TacticName", "")),
        is_plugin=_is_plugin(entry, plugin_nodes),
        operands=operands,
        results=_types(entry.get("Outputs"), 1),
    )


def read_layers(text: str, plugin_nodes: Collection[str] = ()) -> EngineLayers:
    """The inspector's JSON of a whole engine; `plugin_nodes` names the nodes that the parser made plugins of.

    Raises ExportError for other text, and where layers are named only: the engine was then built without detailed
    profiling verbosity, and nothing can be proven about it.
    """
    try:
        document = json.loads(text, strict=False)  # Metadata is parted by control characters
    except ValueError as error:
        raise ExportError(
            f"the engine inspector's report is no JSON: {error}. Nothing is known about the engine."
        ) from error
    entries = document.get("Layers") if isinstance(document, dict) else document
    if not isinstance(entries, list) or not entries:
        raise ExportError("the engine inspector reports no layers, so nothing is known about the engine.")
    if not all(isinstance(entry, dict) for entry in entries):
        raise ExportError(
            "the engine inspector reports names of layers alone. The engine was built without detailed profiling "
            "verbosity, so its precision cannot be proven."
        )
    return EngineLayers(tuple(_layer(entry, plugin_nodes) for entry in entries))


def prove(found: EngineLayers, precision: str) -> None:
    """Raise ExportError unless every matrix product is in the precision asked for and a plugin of ours is inside."""
    products = [layer for layer in found.layers if layer.is_product]
    if not products:
        raise ExportError(
            f"the engine inspector reports {len(found.layers)} layers and no matrix product among them, so that the "
            "engine is in the asked-for precision cannot be proven."
        )
    wrong = [layer for layer in products if not _is_in(layer, precision)]
    if wrong:
        listed = "".join(f"\n  {layer.product_precision:<8}{layer.name} ({layer.kind})" for layer in wrong[:_LISTED])
        more = f"\n  and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        raise ExportError(
            f"the engine is not in {precision}: {len(wrong)} of its {len(products)} matrix products are not, or cannot "
            f"be proven to be. It is not kept.{listed}{more}"
        )
    if not found.plugins:
        raise ExportError(
            f"the engine holds none of our plugins among its {len(found.layers)} layers: the merge steps were built "
            "from standard operators, which is slower. It is not kept."
        )


def _is_in(layer: Layer, precision: str) -> bool:
    if precision == "fp32":
        return layer.product_precision == "fp32" and set(layer.results) <= {"fp32"}
    return layer.product_precision == precision and set(layer.operands) <= {precision, "fp32"}

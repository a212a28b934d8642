"""Function bodies of the nodes in `plugin_nodes`: standard operators that decide and merge as `kernels.dense` does.

A runtime without our plugins runs these. One body serves every shape of its node type: sizes come from the node's
attributes, so no Shape remains, and every Range has constant bounds.
"""

import math
from collections.abc import Iterable

import onnx
from onnx import AttributeProto, TensorProto, helper

from tempme_export.exporters.plugin_nodes import PluginNode
from tempme_export.kernels import SNAP_STEPS
from tempme_export.kernels.dense_block import EPS

DOMAIN = "tempme"
VERSION = 1
PLUGIN_ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": str(VERSION)}

_HIGH_STEPS, _LOW_STEPS = 2.0**11, 2.0**12  # as in kernels.jit.match
_END = 2**63 - 1


class _Body:
    """The nodes of one function as they are written down; every value gets a name of its own, and so does its node."""

    def __init__(self, op_type: str) -> None:
        self.op_type = op_type
        self.nodes: list[onnx.NodeProto] = []

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: object) -> str:
        """The first output of a new node; `name` where it is an output of the function."""
        output = name or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"{self.op_type}_{output}", **attributes))
        return output

    def of(self, attribute: str) -> str:
        """The function's attribute as an int64 scalar."""
        output = self.op("Constant")
        reference = AttributeProto(name="value_int", ref_attr_name=attribute, type=AttributeProto.INT)
        self.nodes[-1].attribute.append(reference)
        return output

    def whole(self, value: int | str) -> str:
        """An int64 scalar: a number, or the function's attribute of that name."""
        return self.of(value) if isinstance(value, str) else self.op("Constant", value_int=value)

    def real(self, value: float) -> str:
        """A float32 scalar."""
        return self.op("Constant", value_float=value)

    def vector(self, *values: int | str) -> str:
        """int64 [len(values)] of numbers and attributes."""
        if not any(isinstance(value, str) for value in values):
            return self.op("Constant", value_ints=list(values))
        axis = self.op("Constant", value_ints=[0])
        return self.op("Concat", *(self.op("Unsqueeze", self.whole(value), axis) for value in values), axis=0)

    def unsqueeze(self, x: str, axis: int) -> str:
        return self.op("Unsqueeze", x, self.vector(axis))

    def reshape(self, x: str, *shape: int | str) -> str:
        return self.op("Reshape", x, self.vector(*shape))

    def cast(self, x: str, to: int = TensorProto.FLOAT, name: str | None = None) -> str:
        return self.op("Cast", x, to=to, name=name)

    def slice(self, x: str, start: int | str, end: int | str, *, step: int = 1, axis: int = 1) -> str:
        return self.op("Slice", x, *(self.vector(value) for value in (start, end, axis, step)))

    def span(self, first: int | str, last: int | str) -> str:
        """first, ..., last - 1 as an int64 vector."""
        return self.op("Range", self.whole(first), self.whole(last), self.whole(1))

    def sum(self, x: str, axis: int, keepdims: int = 0) -> str:
        return self.op("ReduceSum", x, self.vector(axis), keepdims=keepdims)

    def where_zero(self, x: str, value: float, other: str) -> str:
        """`value` where x is 0, `other` elsewhere."""
        return self.op("Where", self.op("Equal", x, self.real(0.0)), self.real(value), other)


def _set_a(body: _Body, x: str) -> str:
    return body.slice(x, "start_a", _END, step=2)


def _set_b(body: _Body, x: str) -> str:
    return body.slice(x, "start_b", _END, step=2)


def _join(body: _Body, x: str, *rest: str) -> str:
    """[B * factor, tokens, ...] -> [B, factor * tokens, ...], class tokens first; `rest` names the further axes."""
    clips = body.reshape(x, -1, "factor", "tokens", *rest)
    parts = body.slice(clips, 0, "cls_in", axis=2), body.slice(clips, "cls_in", _END, axis=2)
    return body.op("Concat", *(body.reshape(part, 0, -1, *rest) for part in parts), axis=1)


def _mean_key(body: _Body, keys: str) -> str:
    """[B, N, D] of any precision -> float32 [B, N, D / heads]."""
    heads = body.reshape(body.cast(keys), 0, 0, "heads", -1)
    return body.op("ReduceMean", heads, body.vector(2), keepdims=0)


def _unit_rows(body: _Body, metric: str) -> tuple[str, str, str]:
    """float32 rows of length 1 (0 for a zero norm), their first 11 fractional bits, and the remainder."""
    norm = body.op("Sqrt", body.sum(body.op("Mul", metric, metric), 2, keepdims=1))
    unit = body.op("Div", metric, body.where_zero(norm, 1.0, norm))
    steps = body.real(_HIGH_STEPS)
    high = body.op("Div", body.op("Round", body.op("Mul", unit, steps)), steps)
    return unit, high, body.op("Sub", unit, high)


def _square(body: _Body, high: str, low: str, whole: str) -> str:
    """Squared norm [B, N] of high + low, where whole is their sum."""
    cross = body.op("Mul", low, body.op("Add", high, whole))
    return body.op("Add", body.sum(body.op("Mul", high, high), 2), body.sum(cross, 2))


def _inverse_root(body: _Body, square: str) -> str:
    """1 / sqrt, and 1 where square is 0."""
    return body.op("Reciprocal", body.op("Sqrt", body.where_zero(square, 1.0, square)))


def _product(body: _Body, a: str, b: str) -> str:
    """[B, I, C], [B, J, C] -> [B, I, J]."""
    return body.op("MatMul", a, body.op("Transpose", b, perm=[0, 2, 1]))


def _scaled(body: _Body, cosine: str, scale: str) -> str:
    """[B, |A|, |B|] times the scales [B, N] of both, in whole snapping steps."""
    cosine = body.op("Mul", cosine, body.unsqueeze(_set_a(body, scale), 2))
    cosine = body.op("Mul", cosine, body.unsqueeze(_set_b(body, scale), 1))
    return body.op("Round", body.op("Mul", cosine, body.real(float(SNAP_STEPS))))


def _take_best(body: _Body, scores: str) -> None:
    """Snapped scores [B, |A|, |B|] -> the values best and best_b [B, |A|]."""
    scores = body.op("Where", body.op("IsNaN", scores), body.real(-math.inf), scores)
    body.op("ReduceMax", scores, body.vector(2), keepdims=0, name="best")
    body.cast(body.op("ArgMax", scores, axis=2, keepdims=0), TensorProto.INT32, name="best_b")


def _select(body: _Body) -> None:
    """The values best and best_b -> the output assign: stable ranks by counting, no sort."""
    best, best_b = "best", "best_b"
    order = body.span(0, "n_a")
    earlier = body.op("Less", body.unsqueeze(order, 0), body.unsqueeze(order, 1))  # [i, j]: j before i
    other, mine = body.unsqueeze(best, 1), body.unsqueeze(best, 2)
    tied = body.op("And", body.op("Equal", other, mine), earlier)
    rank = body.sum(body.cast(body.op("Or", body.op("Greater", other, mine), tied)), 2)
    kept = body.op("GreaterOrEqual", rank, body.cast(body.of("r")))
    kept_earlier = body.sum(body.cast(body.op("And", body.unsqueeze(kept, 1), earlier)), 2)
    kept_row = body.op(
        "Add", body.cast(kept_earlier, TensorProto.INT32), body.cast(body.of("n_cls"), TensorProto.INT32)
    )
    joined_row = body.op("Add", best_b, body.cast(body.of("row_b"), TensorProto.INT32))
    assign_a = body.op("Where", kept, kept_row, joined_row)

    position, two = body.span(0, "n_tokens"), body.whole(2)
    is_class = body.op("Less", position, body.of("n_cls"))
    even = body.op("Equal", body.op("Mul", body.op("Div", position, two), two), position)
    is_a = body.op("And", body.op("Not", is_class), even)
    index_a = body.op("Div", body.op("Sub", position, body.of("start_a")), two)
    index_a = body.op("Max", index_a, body.whole(0))
    index_a = body.op("Min", index_a, body.op("Sub", body.of("n_a"), body.whole(1)))
    row_of_b = body.op("Add", body.op("Div", body.op("Sub", position, body.of("start_b")), two), body.of("row_b"))
    fixed = body.cast(body.op("Where", is_class, position, row_of_b), TensorProto.INT32)
    body.op("Where", is_a, body.op("Gather", assign_a, index_a, axis=1), fixed, name="assign")


def _match_keys(body: _Body) -> None:
    unit, high, low = _unit_rows(body, _mean_key(body, "keys"))
    exact = _product(body, _set_a(body, high), _set_b(body, high))
    rest_a = body.op("Concat", _set_a(body, low), _set_a(body, unit), axis=2)
    rest_b = body.op("Concat", _set_b(body, high), _set_b(body, low), axis=2)
    cosine = body.op("Add", exact, _product(body, rest_a, rest_b))
    _take_best(body, _scaled(body, cosine, _inverse_root(body, _square(body, high, low, unit))))
    _select(body)


def _sum_of(body: _Body, high: str, low: str) -> str:
    """high + low steps, rounded to float16, in float32."""
    whole = body.op("Add", high, body.op("Div", low, body.real(_LOW_STEPS)))
    return body.cast(body.cast(whole, TensorProto.FLOAT16))


def _split(body: _Body, metric: str) -> None:
    """float32 [C, n, W] -> the outputs high, low and scale: what the kernels write, so that they can be mixed."""
    _, high, low = _unit_rows(body, metric)
    body.cast(high, TensorProto.FLOAT16, name="high")
    low = body.cast(body.op("Mul", low, body.real(_LOW_STEPS)), TensorProto.FLOAT16, name="low")
    low = body.cast(low)
    square = _square(body, high, body.op("Div", low, body.real(_LOW_STEPS)), _sum_of(body, high, low))
    inverse = _inverse_root(body, square)
    body.op("Where", body.op("Equal", square, body.real(0.0)), body.real(0.0), inverse, name="scale")


def _split_keys(body: _Body) -> None:
    _split(body, _mean_key(body, "keys"))


def _split_clips(body: _Body) -> None:
    _split(body, body.cast(body.op("Add", "x", "delta")))


def _score_rows(body: _Body) -> None:
    high, low = (body.cast(_join(body, part, "width")) for part in ("high", "low"))
    exact = _product(body, _set_a(body, high), _set_b(body, high))
    rest_a = body.op("Concat", _set_a(body, high), _set_a(body, low), axis=2)
    rest_b = body.op("Concat", _set_b(body, low), _set_b(body, _sum_of(body, high, low)), axis=2)
    rest = body.op("Div", _product(body, rest_a, rest_b), body.real(_LOW_STEPS))
    _take_best(body, _scaled(body, body.op("Add", exact, rest), _join(body, "scale")))


def _merge_norm(body: _Body, sized: bool, placed: bool) -> None:
    """Output rows behind the class tokens in one product: kept A tokens, whose share is 1, and B with what joins it."""
    x = body.op("Add", "x", "delta")
    if placed:
        x = body.reshape(x, -1, "n_positions", "tokens", "width")
        x = body.op("Add", x, body.unsqueeze("position", 1))
    x = body.cast(_join(body, x, "width"))
    row = body.cast(body.span("n_cls", "n_out"), TensorProto.INT32)
    goes = body.op("Equal", body.unsqueeze(_set_a(body, "assign"), 1), body.unsqueeze(row, 1))
    weight = body.cast(goes)  # [B, rows, |A|]
    if sized:
        size = _join(body, "size")
        weight = body.op("Mul", weight, body.unsqueeze(_set_a(body, size), 1))
        own = body.op("Pad", _set_b(body, size), body.vector(0, "n_kept", 0, 0))
        total = body.op("Add", body.sum(weight, 2), own)
    else:
        one, joined = body.real(1.0), body.sum(weight, 2)
        is_b = body.op("GreaterOrEqual", row, body.cast(body.of("row_b"), TensorProto.INT32))
        own = body.op("Where", is_b, one, body.real(0.0))
        total = body.op("Where", is_b, body.op("Add", joined, one), joined)  # OpenVINO takes joined + own for joined
    share = body.op("Div", own, total)
    of_a = body.op("MatMul", body.op("Div", weight, body.unsqueeze(total, 2)), _set_a(body, x))
    of_b = body.op("Pad", _set_b(body, x), body.vector(0, "n_kept", 0, 0, 0, 0))
    merged = body.op("Add", body.op("Mul", of_b, body.unsqueeze(share, 2)), of_a)
    merged = body.op("Concat", body.slice(x, 0, "n_cls"), merged, axis=1)
    merged = body.op("CastLike", merged, "x", name="merged")
    normed = body.op("LayerNormalization", body.cast(merged), "weight", "bias", axis=-1, epsilon=EPS)
    body.op("CastLike", normed, "x", name="normed")
    if sized:
        sizes = body.op("Concat", body.slice(size, 0, "n_cls"), total, axis=1, name="sizes")
    else:
        sizes = body.op("Pad", total, body.vector(0, "n_cls", 0, 0), body.real(1.0), name="sizes")
    body.op("Log", sizes, name="log_sizes")


def _write(body: _Body, op_type: str) -> None:
    simple = {
        "MatchKeys": _match_keys,
        "SplitKeys": _split_keys,
        "SplitClips": _split_clips,
        "ScoreRows": _score_rows,
        "SelectRows": _select,
    }
    if op_type in simple:
        simple[op_type](body)
    else:
        _merge_norm(body, "Sized" in op_type, "Placed" in op_type)


def functions_of(nodes: Iterable[PluginNode], opset: int) -> list[onnx.FunctionProto]:
    """One function for every node type, in the order met, with a body in standard operators of `opset`."""
    functions: dict[str, onnx.FunctionProto] = {}
    for node in nodes:
        if node.op_type in functions:
            continue
        body = _Body(node.op_type)
        _write(body, node.op_type)
        functions[node.op_type] = helper.make_function(
            DOMAIN,
            node.op_type,
            [value.name for value in node.inputs],
            [value.name for value in node.outputs],
            body.nodes,
            [helper.make_opsetid("", opset)],
            attributes=list(node.attributes),
            attribute_protos=[helper.make_attribute(*item) for item in PLUGIN_ATTRIBUTES.items()],
        )
    return list(functions.values())

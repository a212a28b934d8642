"""Inputs and outputs of each of our nodes, and the kernel launcher behind it: data, without TensorRT."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tempme_export.errors import ExportError
from tempme_export.kernels import launch, match, merge


@dataclass(frozen=True)
class Input:
    """An input of a node, in the order of the kernel's pointers.

    leading  what its first axis counts: clips, items (joined clips), or nothing that the batch changes
    """

    name: str
    leading: Literal["clips", "items", "fixed"]


@dataclass(frozen=True)
class Output:
    """An output of a node, in the order of the kernel's pointers; dtype None: that of the first input."""

    name: str
    dtype: torch.dtype | None
    rank: int


@dataclass(frozen=True)
class Operation:
    """Launch of the nodes of one op_type.

    attributes      in alphabetical order: the bindings hand their values over in the order that the parser found them
    unit            the input whose first axis stands for the batch
    configurations  input tensors and attributes -> the launch configurations worth trying, best guess first
    run             input tensors, attributes and a configuration -> calls the launcher, which launches one kernel
    """

    inputs: tuple[Input, ...]
    attributes: tuple[str, ...]
    outputs: tuple[Output, ...]
    unit: str
    configurations: Callable[[Mapping[str, Tensor], Mapping[str, int]], tuple[Any, ...]]
    run: Callable[[Mapping[str, Tensor], Mapping[str, int], Any], object]


def _counts(tokens: int, attributes: Mapping[str, int]) -> int:
    return launch.check_counts(tokens * attributes.get("factor", 1), attributes["n_cls"], attributes["r"])


def _with_warps(config: launch.RowsConfig) -> tuple[launch.RowsConfig, ...]:
    """The launcher's choice, and twice the warps, which finish a row sooner where there are few rows."""
    return config, dataclasses.replace(config, num_warps=2 * config.num_warps)


def _parts(keys: Tensor, heads: int) -> Tensor:
    """keys [B, N, D] -> [B, heads, N, D / heads] in place, as matching by the mean over heads reads them."""
    if heads < 1 or keys.shape[2] % heads:
        raise ValueError(f"keys of width {keys.shape[2]} are not those of {heads} heads.")
    return keys.unflatten(-1, (heads, -1)).transpose(1, 2)


def _resident_configurations(tensors: Mapping[str, Tensor], attributes: Mapping[str, int]) -> tuple[Any, ...]:
    keys = tensors["keys"]
    n_a, width = _counts(keys.shape[1], attributes), keys.shape[2] // attributes["heads"]
    few, many = (launch.match_config(n_a, width, items, True) for items in (1, launch.MANY_PROGRAMS))
    if not few.resident:
        raise ValueError(
            f"|A| = {n_a} and heads of width {width} are too large for one program. Use SplitKeys, ScoreRows and "
            "SelectRows."
        )
    return few, many


def _score_configurations(tensors: Mapping[str, Tensor], attributes: Mapping[str, int]) -> tuple[Any, ...]:
    return launch.STREAMED, dataclasses.replace(launch.STREAMED, block_a=2 * launch.STREAMED.block_a)


def _merge_configurations(tensors: Mapping[str, Tensor], attributes: Mapping[str, int]) -> tuple[Any, ...]:
    x = tensors["x"]
    return _with_warps(launch.rows_config(x.shape[2], _counts(x.shape[1], attributes)))


def _only_one(tensors: Mapping[str, Tensor], attributes: Mapping[str, int]) -> tuple[Any, ...]:
    return (launch.STREAMED,)


def _match_keys(tensors: Mapping[str, Tensor], attributes: Mapping[str, int], config: Any) -> object:
    metric = _parts(tensors["keys"], attributes["heads"])
    return match.match_parts(metric, None, 1, attributes["n_cls"], attributes["r"], config)


def _split_keys(tensors: Mapping[str, Tensor], attributes: Mapping[str, int], config: Any) -> object:
    return match.split_rows(_parts(tensors["keys"], attributes["heads"]), None)


def _split_clips(tensors: Mapping[str, Tensor], attributes: Mapping[str, int], config: Any) -> object:
    return match.split_rows(tensors["x"].unsqueeze(1), tensors["delta"])


def _score_rows(tensors: Mapping[str, Tensor], attributes: Mapping[str, int], config: Any) -> object:
    high, low, scale = (tensors[name] for name in ("high", "low", "scale"))
    return match.score_rows(high, low, scale, attributes["factor"], attributes["n_cls"], config)


def _select_rows(tensors: Mapping[str, Tensor], attributes: Mapping[str, int], config: Any) -> object:
    n_tokens, n_cls, r = (attributes[name] for name in ("n_tokens", "n_cls", "r"))
    return match.select_rows(tensors["best"], tensors["best_b"], n_tokens, n_cls, r, config)


def _merge_norm(tensors: Mapping[str, Tensor], attributes: Mapping[str, int], config: Any) -> object:
    return merge.merge_norm(
        tensors["x"],
        tensors["delta"],
        tensors.get("size"),
        tensors["assign"],
        tensors.get("position"),
        tensors["weight"],
        tensors["bias"],
        attributes["factor"],
        attributes["n_cls"],
        attributes["r"],
        config,
    )


_ROWS = (
    Output("high", torch.float16, 3),
    Output("low", torch.float16, 3),
    Output("scale", torch.float32, 2),
)
_BEST = (Output("best", torch.float32, 2), Output("best_b", torch.int32, 2))


def _merging(sized: bool, placed: bool) -> Operation:
    optional = {"size": sized, "position": placed}
    inputs = (
        *(Input(name, "clips") for name in ("x", "delta", "size")),
        Input("assign", "items"),
        *(Input(name, "fixed") for name in ("position", "weight", "bias")),
    )
    return Operation(
        inputs=tuple(one for one in inputs if optional.get(one.name, True)),
        attributes=("factor", "n_cls", "r"),
        outputs=(
            Output("merged", None, 3),
            Output("normed", None, 3),
            Output("sizes", torch.float32, 2),
            Output("log_sizes", torch.float32, 2),
        ),
        unit="assign",
        configurations=_merge_configurations,
        run=_merge_norm,
    )


OPERATIONS: Mapping[str, Operation] = {
    "MatchKeys": Operation(
        inputs=(Input("keys", "items"),),
        attributes=("heads", "n_cls", "r"),
        outputs=(Output("assign", torch.int32, 2),),
        unit="keys",
        configurations=_resident_configurations,
        run=_match_keys,
    ),
    "SplitKeys": Operation(
        inputs=(Input("keys", "items"),),
        attributes=("heads",),
        outputs=_ROWS,
        unit="keys",
        configurations=_only_one,
        run=_split_keys,
    ),
    "SplitClips": Operation(
        inputs=(Input("x", "clips"), Input("delta", "clips")),
        attributes=(),
        outputs=_ROWS,
        unit="x",
        configurations=_only_one,
        run=_split_clips,
    ),
    "ScoreRows": Operation(
        inputs=tuple(Input(name, "clips") for name in ("high", "low", "scale")),
        attributes=("factor", "n_cls"),
        outputs=_BEST,
        unit="high",
        configurations=_score_configurations,
        run=_score_rows,
    ),
    "SelectRows": Operation(
        inputs=tuple(Input(output.name, "items") for output in _BEST),
        attributes=("n_cls", "n_tokens", "r"),
        outputs=(Output("assign", torch.int32, 2),),
        unit="best",
        configurations=_only_one,
        run=_select_rows,
    ),
    "MergeNorm": _merging(sized=False, placed=False),
    "MergeNormSized": _merging(sized=True, placed=False),
    "MergeNormPlaced": _merging(sized=False, placed=True),
    "MergeNormSizedPlaced": _merging(sized=True, placed=True),
}


def operation_of(op_type: str) -> Operation:
    """Raises ExportError for an op_type that has no plugin."""
    if op_type not in OPERATIONS:
        raise ExportError(f"{op_type} has no plugin. Expected one of {', '.join(OPERATIONS)}.")
    return OPERATIONS[op_type]

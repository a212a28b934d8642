"""Encoder -> ONNX for TensorRT: the graph of `video.onnx` with every match and every merge a node of domain `tempme`.

The nodes are model-local functions with complete bodies (`plugin_functions`), so any runtime that inlines functions
runs the file; TensorRT takes our fused kernels instead where they are registered as plugins `tempme::<op_type>`.
Everything else, the attention too, stays standard operators, which TensorRT fuses itself.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from tempme_export.artifacts.artifact import Artifact, Making, Spec
from tempme_export.encoder import ops
from tempme_export.encoder.model import VideoEncoder
from tempme_export.encoder.recipe import Recipe
from tempme_export.errors import ExportError
from tempme_export.exporters import plugin_nodes as nodes_of
from tempme_export.exporters.common import DTYPES, graph_names, tower_bytes, video_inputs
from tempme_export.exporters.external_data import LARGEST_FILE, put_aside_above
from tempme_export.exporters.onnx import TRACED_BATCH, TracedVideo, check_graph, finish, save, to_proto
from tempme_export.exporters.plugin_functions import DOMAIN, PLUGIN_ATTRIBUTES, VERSION, functions_of
from tempme_export.exporters.plugin_nodes import PluginNode, Tokens, plugin_nodes

DEFAULT_OPSET = 20


def _emit(node: PluginNode, inputs: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """The outputs of a node of ours in the graph being traced."""
    dtypes = {"T": dtype, "float16": torch.float16, "float32": torch.float32, "int32": torch.int32}
    return torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{node.op_type}",
        inputs,
        {**node.attributes, **PLUGIN_ATTRIBUTES},
        dtypes=[dtypes[value.kind] for value in node.outputs],
        shapes=[value.shape for value in node.outputs],
        version=VERSION,
    )


def _chain(nodes: Sequence[PluginNode], *inputs: Tensor) -> Tensor:
    """The output of the last node; each node takes all outputs of the one before."""
    values: Sequence[Tensor] = inputs
    for node in nodes:
        values = _emit(node, values, inputs[0].dtype)
    (last,) = values
    return last


def _tokens(x: Tensor, factor: int = 1) -> Tokens:
    clips, tokens, width = x.shape
    return Tokens(clips, tokens, width, factor)


def _match_keys(qkv: Tensor, heads: int, n_cls: int, r: int) -> Tensor:
    # TensorRT-RTX 1.7 does not build keys that are cut out of a flat qkv beside the attention.
    keys = qkv.unflatten(-1, (3, heads, -1))[:, :, 1].flatten(2)
    return _chain(nodes_of.match_keys(_tokens(keys), heads, n_cls, r), keys)


def _attention_match(qkv: Tensor, bias: Tensor | None, heads: int, n_cls: int, r: int) -> tuple[Tensor, Tensor]:
    return ops.attention(qkv, bias, heads), _match_keys(qkv, heads, n_cls, r)


def _summand(x: Tensor, delta: Tensor | None) -> Tensor:
    """Plugins take no optional inputs, and zeros of x's shape need no shape this way."""
    return x - x if delta is None else delta


def _match_clips(x: Tensor, delta: Tensor | None, factor: int, n_cls: int, r: int) -> Tensor:
    return _chain(nodes_of.match_clips(_tokens(x, factor), n_cls, r), x, _summand(x, delta))


def _merge_norm(
    x: Tensor,
    delta: Tensor | None,
    size: Tensor | None,
    assign: Tensor,
    position: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    factor: int,
    n_cls: int,
    r: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    positions = 0 if position is None else len(position)
    node = nodes_of.merge_norm(_tokens(x, factor), n_cls, r, sized=size is not None, positions=positions)
    given = (x, _summand(x, delta), size, assign, position, weight, bias)
    merged, normed, sizes, log_sizes = _emit(node, [tensor for tensor in given if tensor is not None], x.dtype)
    return merged, normed, sizes, log_sizes


_PLUGIN_FORMS: dict[Any, Any] = {
    **ops.DENSE_FORMS,
    torch.ops.tempme.match_keys.default: _match_keys,
    torch.ops.tempme.match_clips.default: _match_clips,
    torch.ops.tempme.attention_match.default: _attention_match,
    torch.ops.tempme.merge_norm.default: _merge_norm,
}


def _whole_numbers(node: onnx.NodeProto) -> Mapping[str, int]:
    return {one.name: one.i for one in node.attribute if one.type == onnx.AttributeProto.INT}


def check_plugin_graph(proto: onnx.ModelProto, nodes: Sequence[PluginNode]) -> None:
    """Raise ExportError unless the graph's nodes of ours are `nodes` and all others are what `check_graph` allows."""
    ours = [node for node in proto.graph.node if node.domain == DOMAIN]
    found = [(node.op_type, _whole_numbers(node)) for node in ours]
    expected = [(node.op_type, dict(node.attributes)) for node in nodes]
    if found != expected:
        raise ExportError(
            f"the graph holds {len(found)} nodes of domain {DOMAIN}, and not the {len(expected)} of its schedule. "
            "This is a fault of the exporter with the installed torch and onnxscript versions; "
            "install the versions of constraints.txt."
        )
    others = onnx.ModelProto()
    others.graph.node.extend(node for node in proto.graph.node if node.domain != DOMAIN)
    check_graph(others)


def export_plugin_video(
    recipe: Recipe,
    path: Path,
    precision: str = "fp32",
    frame_mask: bool = False,
    opset: int = DEFAULT_OPSET,
    *,
    largest_file: int = LARGEST_FILE,
) -> None:
    """Write the video tower with its merges as functions to `path`.

    largest_file  bytes; above them the weights go to `external_data.data_path(path)`

    Inputs and output are those of `export_video`; the merges' values have its names too (`assign_00`, ...).
    Raises ExportError for a profile that never merges, an untested opset, and operators that do not belong.
    """
    nodes = plugin_nodes(recipe)
    if not nodes:
        raise ExportError(
            f"profile {recipe.profile.name} merges no tokens, so its graph has no step that a plugin could take. "
            "Export it without --trt: its video.onnx holds the whole encoder; or choose a profile that merges."
        )
    names = [name for merge in recipe.schedule.merges for name in (merge.assign_name, merge.tokens_name)]
    encoder = TracedVideo(VideoEncoder(recipe, DTYPES[precision]))
    inputs = video_inputs(recipe, TRACED_BATCH, frame_mask)
    aside = partial(put_aside_above, graph=path, limit=largest_file)
    proto = to_proto(encoder, inputs, ["video_embedding", *names], opset, _PLUGIN_FORMS, aside)
    finish(proto, {"profile": recipe.profile.to_dict(), "precision": precision})
    proto.functions.extend(functions_of(nodes, opset))
    save(proto, path, lambda graph: check_plugin_graph(graph, nodes), largest_file)


def check(spec: Spec) -> None:
    """Nothing of its own: it is written where an engine can be built from it."""


def check_recipe(recipe: Recipe, spec: Spec) -> None:
    """Nothing of its own."""


def files(artifact: Artifact, recipe: Recipe, spec: Spec) -> list[str]:
    """The graph and, where it is too large for one file, its weights."""
    return graph_names(artifact.file, tower_bytes(recipe, "video", spec.precision), spec.largest_file)


def size(artifact: Artifact, recipe: Recipe, spec: Spec) -> int:
    """Its weights."""
    return tower_bytes(recipe, "video", spec.precision)


def scratch(artifact: Artifact, recipe: Recipe, spec: Spec) -> int:
    """Nothing."""
    return 0


def preview(recipe: Recipe, spec: Spec) -> None:
    """Nothing."""


def build(artifact: Artifact, making: Making) -> None:
    """Raises as `export_plugin_video`."""
    spec, path = making.spec, making.folder / artifact.file
    export_plugin_video(making.recipe, path, spec.precision, spec.frame_mask, largest_file=spec.largest_file)

"""Encoder -> ONNX: standard operators only, static shapes apart from the batch, checked before it is believed.

Our operators are decomposed into their dense forms. Every merge leaves two named values in the graph,
`assign_K` and `tokens_K`, so that parity can look inside the artifact that ships.
"""

import json
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import onnx
import onnx_ir
import onnx_ir.passes.common as passes
import torch
from onnxscript.optimizer import fold_constants
from torch import Tensor, nn

from tempme_export.encoder.model import Merges, TextEncoder, VideoEncoder
from tempme_export.encoder.ops import DENSE_FORMS
from tempme_export.encoder.recipe import Recipe
from tempme_export.errors import ExportError
from tempme_export.exporters.common import DTYPES, video_inputs
from tempme_export.exporters.external_data import LARGEST_FILE, message_of, put_aside_above
from tempme_export.files import library_path

OPSETS = (18, 20, 23)
DEFAULT_OPSET = 18
FORBIDDEN = ("Shape", "Size", "Range", "Scatter", "NonZero", "Loop", "If", "Scan", "Unique", "Compress")
_INT64_MAX = 2**63 - 1
Encoder = TypeVar("Encoder", VideoEncoder, TextEncoder)
TRACED_BATCH = 3  # tracing a symbolic batch takes twice as long; `_free_batch` makes it one


@dataclass(frozen=True)
class Prepared(Generic[Encoder]):
    """A tower whose products were made ready for another precision, and the last step on its graph before the check."""

    encoder: Encoder
    rewrite: Callable[[onnx.ModelProto], onnx.ModelProto]


class TracedVideo(nn.Module):
    """The encoder with its merges as further outputs."""

    def __init__(self, encoder: VideoEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, frames: Tensor, frame_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """The embedding [B, E], then assign and merged tokens of every merge."""
        merges = Merges()
        embedding = self.encoder.encode(frames, frame_mask, merges)
        return embedding, *(tensor for merge in merges for tensor in merge)


def _free_batch(graph: onnx_ir.Graph) -> None:
    """Let every Reshape infer its first axis, the only place where the traced batch was written down.

    The model never asks for the batch size: it leads every tensor, alone or times the clips of a video.
    """
    for node in graph:
        shape = node.outputs[0].shape
        if node.op_type == "Reshape" and shape is not None:
            name = f"{node.outputs[0].name}_shape"
            target = onnx_ir.tensor([-1, *shape.numpy()[1:]], dtype=onnx_ir.DataType.INT64, name=name)
            value = onnx_ir.val(name, const_value=target)
            graph.register_initializer(value)
            node.replace_input_with(1, value)


def _drop_whole_slices(graph: onnx_ir.Graph) -> None:
    """Remove the slices that take a whole axis, which decomposition writes for every `:` of an index."""
    for node in graph:
        if node.op_type != "Slice" or len(node.inputs) < 4 or (data := node.inputs[0]) is None:
            continue
        bounds = [value.const_value for value in node.inputs[1:] if value is not None]
        if all(bound is not None for bound in bounds):
            start, end, _, *step = (bound.numpy().tolist() for bound in bounds if bound is not None)
            if start == [0] and end == [_INT64_MAX] and step in ([], [[1]]):
                onnx_ir.convenience.replace_all_uses_with(node.outputs[0], data)


def _simplify(model: onnx_ir.Model) -> None:
    """Inline, free the batch, fold constants, drop what is unused.

    onnxscript's whole optimiser also tries each of its rewrite rules on every node, which takes two thirds
    of an export and finds nothing more here.
    """
    passes.InlinePass()(model)
    _free_batch(model.graph)
    fold_constants(model)
    _drop_whole_slices(model.graph)
    onnx_ir.passes.Sequential(
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.NameFixPass(),
    )(model)


def to_proto(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: list[str],
    opset: int,
    forms: Mapping[Any, Any] = MappingProxyType(DENSE_FORMS),
    put_aside: Callable[[onnx_ir.Model], None] | None = None,
) -> onnx.ModelProto:
    """The graph of `module`, traced on inputs whose batch stands for any.

    forms      what each of our operators becomes
    put_aside  takes weights out before the graph becomes one message; None: all stay in

    Raises ExportError for an untested opset.
    """
    if opset not in OPSETS:
        raise ExportError(f"opset: found {opset}, expected one of {', '.join(map(str, OPSETS))}, which are tested.")
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(module.eval(), tuple(inputs.values())).run_decompositions(dict(forms))
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=outputs,
                optimize=False,
                verbose=False,
            )
            assert exported is not None, "torch.onnx.export returns a program with dynamo=True"
            _simplify(exported.model)
            if put_aside is not None:
                put_aside(exported.model)
    finally:
        exporter_log.setLevel(level)
    proto: onnx.ModelProto = exported.model_proto
    return proto


def finish(
    proto: onnx.ModelProto, metadata: Mapping[str, Any], kept: Mapping[str, str] = MappingProxyType({})
) -> onnx.ModelProto:
    """Keep the first output, name the batch axis, and write the metadata in.

    kept  further outputs to keep, in the order they were traced: name -> name of the first axis
    """
    graph = proto.graph
    further = [value for value in graph.output[1:] if value.name in kept]
    del graph.output[1:], graph.value_info[:]
    for value in [*graph.input, *graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    graph.output.extend(further)
    for value in graph.output[1:]:
        value.type.tensor_type.shape.dim[0].dim_param = kept[value.name]
    proto.producer_name = "tempme-export"
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = f"tempme.{key}", json.dumps(value)
    for node in proto.graph.node:
        del node.metadata_props[:]
    for value in [*proto.graph.input, *proto.graph.output]:
        del value.metadata_props[:]
    return proto


def check_graph(proto: onnx.ModelProto) -> None:
    """Raise ExportError for an operator that is not standard or would make shapes depend on data."""
    bad = sorted(
        {
            f"{n.domain or 'ai.onnx'}.{n.op_type}"
            for n in proto.graph.node
            if n.domain not in ("", "ai.onnx") or n.op_type.startswith(FORBIDDEN)
        }
    )
    if bad or proto.functions:
        raise ExportError(
            f"the graph holds {', '.join(bad) or 'local functions'}, which other runtimes refuse. "
            "This is a fault of the exporter with the installed torch and onnxscript versions; "
            "install the versions of constraints.txt."
        )


def save(
    proto: onnx.ModelProto,
    path: Path,
    check: Callable[[onnx.ModelProto], None] = check_graph,
    largest_file: int = LARGEST_FILE,
) -> None:
    """Write a graph that passes `check`, its weights beside it where it would take more than `largest_file` bytes.

    Raises what `check` raises.
    """
    check(proto)
    path.write_bytes(message_of(proto, path, largest_file))
    with library_path(path) as named:
        onnx.checker.check_model(named, full_check=True)


def _merge_axes(recipe: Recipe) -> dict[str, str]:
    """Every merge's assignment and the name of its first axis, which counts the clips of all videos."""
    clips = {block.index: block.clips for block in recipe.schedule.blocks}
    counts = {merge.assign_name: clips[merge.block] for merge in recipe.schedule.merges}
    return {name: "batch" if count == 1 else f"batch_times_{count}" for name, count in counts.items()}


def export_video(
    recipe: Recipe,
    path: Path,
    precision: str = "fp32",
    opset: int = DEFAULT_OPSET,
    frame_mask: bool = False,
    expose_merges: bool = False,
    *,
    prepared: Prepared[VideoEncoder] | None = None,
    largest_file: int = LARGEST_FILE,
) -> None:
    """Write the video tower to `path`.

    prepared      the tower of this recipe for another precision; None: as the recipe has it
    largest_file  bytes; above them the weights go to `external_data.data_path(path)`

    Input `frames` float32 [batch, F, 3, S, S], with `frame_mask` also bool [batch, F]; output
    `video_embedding` float32 [batch, E] of unit length, whatever the precision inside. With
    `expose_merges` the merges follow in execution order: `assign_00`, ... int32 [batch * clips, N], the row that every
    token goes to.
    Raises ExportError for an untested opset and for operators that do not belong.
    """
    inputs = video_inputs(recipe, TRACED_BATCH, frame_mask)
    names = [name for merge in recipe.schedule.merges for name in (merge.assign_name, merge.tokens_name)]
    encoder = prepared.encoder if prepared else VideoEncoder(recipe, DTYPES[precision])
    aside = partial(put_aside_above, graph=path, limit=largest_file) if prepared is None else None
    proto = to_proto(TracedVideo(encoder), inputs, ["video_embedding", *names], opset, put_aside=aside)
    proto = prepared.rewrite(proto) if prepared else proto
    kept = _merge_axes(recipe) if expose_merges else {}
    finish(proto, {"profile": recipe.profile.to_dict(), "precision": precision}, kept)
    save(proto, path, largest_file=largest_file)


def export_text(
    recipe: Recipe,
    path: Path,
    precision: str = "fp32",
    opset: int = DEFAULT_OPSET,
    *,
    prepared: Prepared[TextEncoder] | None = None,
    largest_file: int = LARGEST_FILE,
) -> None:
    """Write the text tower to `path`: `token_ids` int64 [batch, L] -> `text_embedding` float32 [batch, E].

    prepared, largest_file  as for `export_video`, whose errors it raises
    """
    length = recipe.profile.text_length
    inputs = {"token_ids": torch.zeros(TRACED_BATCH, length, dtype=torch.int64)}
    encoder = prepared.encoder if prepared else TextEncoder(recipe, DTYPES[precision])
    aside = partial(put_aside_above, graph=path, limit=largest_file) if prepared is None else None
    proto = to_proto(encoder, inputs, ["text_embedding"], opset, put_aside=aside)
    proto = prepared.rewrite(proto) if prepared else proto
    finish(proto, {"profile": recipe.profile.to_dict(), "precision": precision})
    save(proto, path, largest_file=largest_file)

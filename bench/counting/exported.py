"""The ONNX graph that is exported for a recipe, kept in memory: to be counted, not to be shipped."""

from typing import TYPE_CHECKING

from tempme_export.encoder.model import VideoEncoder
from tempme_export.encoder.recipe import Recipe
from tempme_export.exporters.common import DTYPES, video_inputs
from tempme_export.exporters.onnx import DEFAULT_OPSET, TracedVideo, check_graph, to_proto

if TYPE_CHECKING:
    import onnx


def graph_of(recipe: Recipe, precision: str = "fp32") -> "onnx.ModelProto":
    """The graph of `export_video`, merges as further outputs; the recipe's tensors may be zeros.

    Saves the checks of the written file, a third of an export. Raises ExportError for operators that do not belong.
    """
    merges = [name for merge in recipe.schedule.merges for name in (merge.assign_name, merge.tokens_name)]
    encoder = TracedVideo(VideoEncoder(recipe, DTYPES[precision]))
    proto = to_proto(encoder, video_inputs(recipe, 1, False), ["video_embedding", *merges], DEFAULT_OPSET)
    check_graph(proto)
    return proto

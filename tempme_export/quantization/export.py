"""Prepared towers -> int8 ONNX files."""

from pathlib import Path

import onnx

from tempme_export.encoder.model import TextEncoder, VideoEncoder
from tempme_export.encoder.recipe import Recipe
from tempme_export.exporters import onnx as float_onnx
from tempme_export.exporters.external_data import LARGEST_FILE
from tempme_export.exporters.onnx import Encoder, Prepared
from tempme_export.parity.tolerance import INT8
from tempme_export.quantization.invariance import look_up_logarithms
from tempme_export.quantization.qdq import quantise
from tempme_export.quantization.towers import Tower


def _prepared(tower: Tower[Encoder], largest_size: int) -> Prepared[Encoder]:
    def rewrite(proto: onnx.ModelProto) -> onnx.ModelProto:
        proto = quantise(proto, tower.module, tower.ranges, tower.in_float)
        look_up_logarithms(proto, largest_size)
        return proto

    return Prepared(tower.module, rewrite)


def export_video(
    recipe: Recipe,
    tower: Tower[VideoEncoder],
    path: Path,
    opset: int = float_onnx.DEFAULT_OPSET,
    frame_mask: bool = False,
    expose_merges: bool = False,
    *,
    largest_file: int = LARGEST_FILE,
) -> None:
    """Write the video tower in int8; contract and errors are those of `exporters.onnx.export_video`."""
    largest = recipe.schedule.frames * recipe.schedule.tokens_per_frame
    prepared = _prepared(tower, largest)
    float_onnx.export_video(
        recipe, path, INT8, opset, frame_mask, expose_merges, prepared=prepared, largest_file=largest_file
    )


def export_text(
    recipe: Recipe,
    tower: Tower[TextEncoder],
    path: Path,
    opset: int = float_onnx.DEFAULT_OPSET,
    *,
    largest_file: int = LARGEST_FILE,
) -> None:
    """Write the text tower in int8; contract and errors are those of `exporters.onnx.export_text`."""
    float_onnx.export_text(recipe, path, INT8, opset, prepared=_prepared(tower, 0), largest_file=largest_file)

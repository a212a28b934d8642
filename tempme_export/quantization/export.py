"""Prepared towers -> int8 ONNX files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from tempme_export.export import to_onnx
from tempme_export.export.external_data import LARGEST_FILE
from tempme_export.model import TextEncoder, VideoEncoder
from tempme_export.quantization.invariance import look_up_logarithms
from tempme_export.quantization.qdq import quantise
from tempme_export.quantization.towers import Tower
from tempme_export.recipe import Recipe
from tempme_export.tolerance import INT8


def _rewrite(tower: Tower[Any], largest_size: int) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    def rewrite(proto: onnx.ModelProto) -> onnx.ModelProto:
        proto = quantise(proto, tower.module, tower.ranges, tower.in_float)
        look_up_logarithms(proto, largest_size)
        return proto

    return rewrite


def export_video(
    recipe: Recipe,
    tower: Tower[VideoEncoder],
    path: Path,
    opset: int = to_onnx.DEFAULT_OPSET,
    frame_mask: bool = False,
    trace: bool = False,
    *,
    largest_file: int = LARGEST_FILE,
) -> None:
    """Write the video tower in int8; the file's contract is that of `to_onnx.export_video`, whose errors it raises."""
    largest = recipe.plan.frames * recipe.plan.tokens_per_frame
    rewrite = _rewrite(tower, largest)
    to_onnx.export_video(
        recipe,
        path,
        INT8,
        opset,
        frame_mask,
        trace,
        encoder=tower.module,
        rewrite=rewrite,
        largest_file=largest_file,
    )


def export_text(
    recipe: Recipe,
    tower: Tower[TextEncoder],
    path: Path,
    opset: int = to_onnx.DEFAULT_OPSET,
    *,
    largest_file: int = LARGEST_FILE,
) -> None:
    """Write the text tower in int8; the file's contract is that of `to_onnx.export_text`, whose errors it raises."""
    rewrite = _rewrite(tower, 0)
    to_onnx.export_text(recipe, path, INT8, opset, encoder=tower.module, rewrite=rewrite, largest_file=largest_file)

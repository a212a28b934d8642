"""The graphs that every bundle has, in a float or, from calibrated towers, in int8."""

from typing import Any

from tempme_export.artifacts.artifact import Artifact, Making, Spec
from tempme_export.encoder.recipe import Recipe
from tempme_export.errors import UsageError
from tempme_export.exporters.common import graph_names, tower_bytes
from tempme_export.exporters.onnx import OPSETS, export_text, export_video
from tempme_export.parity.tolerance import INT8
from tempme_export.quantization import export as int8
from tempme_export.quantization.calibration import FEWEST
from tempme_export.quantization.ranges import check_method


def check(spec: Spec) -> None:
    """Raises UsageError for an opset that is not tested, and for an int8 that is asked for in part or where it is not
    proven."""
    if spec.opset not in OPSETS:
        raise UsageError(f"opset: found {spec.opset}, expected one of {', '.join(map(str, OPSETS))}, which are tested.")
    if spec.ranges is not None:
        check_method(spec.ranges)
    if spec.precision != INT8:
        for found, purpose in (("calibration data", spec.calibrate), (f"--ranges {spec.ranges}", spec.ranges)):
            if purpose is not None:
                what = "Calibration is" if purpose is spec.calibrate else "Ranges are"
                raise UsageError(f"found {found} and precision {spec.precision}. {what} for --precision int8.")
        return
    if spec.calibrate is None:
        raise UsageError(
            "--precision int8 fixes its scales on videos: give --calibrate with a folder of at least "
            f"{FEWEST} like those that will be indexed, or with annotations as --gate takes them."
        )
    if spec.device != "cpu":
        raise UsageError(f"--precision int8 is for ONNX on CPUs, found --device {spec.device}. Use fp16 or bf16 there.")


def check_recipe(recipe: Recipe, spec: Spec) -> None:
    """Raises UsageError for the merges of a model that has none."""
    if spec.expose_merges and not recipe.schedule.merges:
        raise UsageError(
            f"profile {recipe.profile.name} merges no tokens, and every merge is one output. Leave out "
            "--expose-merges, or choose a --profile that merges."
        )


def files(artifact: Artifact, recipe: Recipe, spec: Spec) -> list[str]:
    """The graph and, where it is too large for one file, its weights."""
    return graph_names(artifact.file, tower_bytes(recipe, artifact.tower, spec.precision), spec.largest_file)


def size(artifact: Artifact, recipe: Recipe, spec: Spec) -> int:
    """Its weights."""
    return tower_bytes(recipe, artifact.tower, spec.precision)


def scratch(artifact: Artifact, recipe: Recipe, spec: Spec) -> int:
    """Nothing."""
    return 0


def preview(recipe: Recipe, spec: Spec) -> None:
    """Nothing."""


def build(artifact: Artifact, making: Making) -> dict[str, Any] | None:
    """Raises ExportError as the exporters below it."""
    recipe, spec, towers = making.recipe, making.spec, making.quantized
    path, largest = making.folder / artifact.file, making.spec.largest_file
    if artifact.tower == "text" and towers is None:
        export_text(recipe, path, spec.precision, spec.opset, largest_file=largest)
    elif artifact.tower == "text":
        int8.export_text(recipe, towers.text, path, spec.opset, largest_file=largest)
    elif towers is None:
        export_video(
            recipe, path, spec.precision, spec.opset, spec.frame_mask, spec.expose_merges, largest_file=largest
        )
    else:
        int8.export_video(
            recipe, towers.video, path, spec.opset, spec.frame_mask, spec.expose_merges, largest_file=largest
        )
    return None

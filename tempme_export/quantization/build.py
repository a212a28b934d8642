"""Recipe + calibration -> the towers of an int8 bundle, and what the manifest says of them."""

from dataclasses import dataclass
from typing import Any

from tempme_export.encoder.model import TextEncoder, VideoEncoder
from tempme_export.encoder.recipe import Recipe
from tempme_export.media.preprocess import preprocess_for
from tempme_export.progress import SILENT, Progress
from tempme_export.quantization.calibration import Calibration
from tempme_export.quantization.ranges import DEFAULT_METHOD
from tempme_export.quantization.towers import Tower, prepare_text, prepare_video


@dataclass(frozen=True)
class Quantization:
    """Both towers of a recipe, ready to be written in int8."""

    calibration: Calibration
    method: str
    video: Tower[VideoEncoder]
    text: Tower[TextEncoder]

    def to_dict(self) -> dict[str, Any]:
        """Values for the manifest."""
        return {
            "calibration": self.calibration.to_dict(),
            "method": self.method,
            "video": self.video.to_dict(),
            "text": self.text.to_dict(),
        }


def prepare(
    recipe: Recipe, calibration: Calibration, method: str = DEFAULT_METHOD, progress: Progress = SILENT
) -> Quantization:
    """Calibrate both towers.

    Raises UsageError for a method that does not exist, CheckpointError where activations overflow.
    """
    with progress.step("int8: the video tower"):
        video = prepare_video(recipe, calibration.video_calls(preprocess_for(recipe)), method, progress=progress)
    with progress.step("int8: the text tower"):
        text = prepare_text(recipe, calibration.text_calls(), method, progress=progress)
    return Quantization(calibration, method, video, text)

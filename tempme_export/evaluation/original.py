"""The original path, which the gate compares artifacts with: the float32 reference on the device that is verified."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tempme_export.encoder.recipe import Recipe
from tempme_export.encoder.reference import MergeLog, ReferenceText, ReferenceVideo
from tempme_export.evaluation.agreement import Floats


@contextmanager
def _full_float32() -> Iterator[None]:
    """On a GPU, convolutions would otherwise round to TF32, and the original path would not be float32."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


class Original:
    """The original path on the device that is verified, or on the CPU where torch does not have it."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        self._device = device if torch.cuda.is_available() else "cpu"
        self._video = ReferenceVideo(recipe, device=self._device)
        self._text = ReferenceText(recipe, device=self._device)

    def video(self, frames: Floats) -> tuple[Floats, list[NDArray[np.int32]], Floats]:
        """[B, F, 3, S, S] -> unit [B, E], the assignments [B, clips * N] and the gaps [B, merges]."""
        log = MergeLog()
        with _full_float32():
            feature = self._video.video_feature(torch.from_numpy(frames).to(self._device), log=log)
        assigns = [step.assign.reshape(len(frames), -1).cpu().numpy() for step in log.steps]
        gaps = [step.gap.reshape(len(frames), -1).amin(dim=1).cpu().numpy() for step in log.steps]
        stacked = np.stack(gaps, axis=1) if gaps else np.zeros((len(frames), 0), np.float32)
        return F.normalize(feature, dim=-1).cpu().numpy(), assigns, stacked

    def text(self, token_ids: NDArray[np.int64]) -> Floats:
        """[T, L] -> unit [T, E]."""
        with _full_float32():
            return self._text(torch.from_numpy(token_ids).to(self._device)).cpu().numpy()

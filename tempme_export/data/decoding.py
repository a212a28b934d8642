"""Videos to frames, and what is wrong with those that have none; in worker processes where asked for."""

import importlib.metadata
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tempme_export.data.clip import ChangedClip, Clip
from tempme_export.data.workers import answers
from tempme_export.errors import InputError, VideoError
from tempme_export.media.preprocess import Preprocess
from tempme_export.media.video import check_video, decoder_version, read_frames
from tempme_export.progress import SILENT, Progress

Decoded = Generator[tuple[int, NDArray[np.uint8] | VideoError], None, None]


def decode(
    clips: Sequence[Clip], frames: int, preprocess: Preprocess, workers: int, allow_damaged: bool = False
) -> Decoded:
    """Read the sampled frames of many clips, in order.

    workers        processes; 0 decodes in this one
    allow_damaged  take damaged pictures as the decoder shows them
    Yields (index, uint8 [F, S, S, 3]), or (index, VideoError) for a video that cannot be read. Raises BackendError
    without PyAV, ExportError when a process dies, InputError for fewer than 1 frame or 0 workers.
    """
    if frames < 1:
        raise InputError(f"found {frames} frames to read, expected at least 1. Ask for more.")
    job = partial(_read, frames=frames, preprocess=preprocess, allow_damaged=allow_damaged)
    return answers(job, clips, workers)


def probe(clips: Sequence[Clip], workers: int = 0, progress: Progress = SILENT) -> dict[int, str]:
    """Find files that are missing, empty, no video or cut short, without decoding: index -> what is wrong.

    Raises what `decode` raises.
    """
    found = {}
    with (
        progress.step("looking at videos", len(clips), "videos") as step,
        closing(answers(_complaint, clips, workers)) as complaints,
    ):
        for index, complaint in complaints:
            if complaint is not None:
                found[index] = complaint
            step.advance(index + 1)
    return found


def made_by(frames: int, size: int) -> dict[str, Any]:
    """Everything that a file's frames depend on: a part of the key of all that is kept of them.

    Raises BackendError without PyAV.
    """
    return {
        "frames": frames,
        "size": size,
        "decoder": decoder_version(),
        **{name: importlib.metadata.version(name) for name in ("pillow", "tempme-export")},
    }


def _read(clip: Clip, frames: int, preprocess: Preprocess, allow_damaged: bool) -> NDArray[np.uint8] | VideoError:
    try:
        pictures = read_frames(clip.path, frames, clip.start, clip.end, allow_damaged)
        return preprocess.crop(clip.change(pictures) if isinstance(clip, ChangedClip) else pictures)
    except VideoError as error:
        return error
    except InputError as error:
        return VideoError(f"{clip.path}: {error}")


def _complaint(clip: Clip) -> str | None:
    try:
        check_video(clip.path)
    except VideoError as error:
        return str(error)
    return None

"""A video file to the frames the model was trained on: which frames, and their pixels."""

import math
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tempme_export.errors import InputError, VideoError
from tempme_export.media.video_pictures import decode_pictures
from tempme_export.media.video_scan import scan_video
from tempme_export.media.video_stream import import_av, open_video

# Packets may outnumber frames a little: hidden reference frames, fields stored one by one.
_LEAST_DECODED = 0.9


def decoder_version() -> str:
    """Versions of the decoder that turns a file into pixels: "PyAV 18.1.0, libavcodec 62.28.102, libswscale 9.5.102".

    Raises BackendError without PyAV.
    """
    av = import_av()
    numbers = {name: ".".join(map(str, av.library_versions[name])) for name in ("libavcodec", "libswscale")}
    return ", ".join([f"PyAV {av.__version__}", *(f"{name} {number}" for name, number in numbers.items())])


def sample_positions(
    n_frames: int, fps: float, frames: int, start: float | None = None, end: float | None = None
) -> list[int]:
    """Choose which frames of a video to read, as the original's loader does (spec section 5).

    One frame a second; more than `frames` are thinned out evenly. When there are too few, the
    positions are spread evenly over all frames instead and may repeat. Nothing is ever padded.

    n_frames    frames in the file
    fps         average frame rate, frames per second
    frames      positions to decode
    start, end  seconds; only frames floor(start * fps) to floor(end * fps) are chosen from, both included. An end
                beyond the last frame means the last frame, as in the original: who annotates rounds up.
    Returns `frames` rising positions in [0, n_frames). Raises InputError, also for a range that starts after the
    last frame.
    """
    _check_request(frames, start, end)
    if n_frames < 1:
        raise InputError(f"found {n_frames} frames in the video, expected at least 1.")
    if not (math.isfinite(fps) and fps > 0):
        raise InputError(f"found a frame rate of {fps}, expected a positive number of frames per second.")
    first = 0 if start is None else math.floor(start * fps)
    last = n_frames - 1 if end is None else min(math.floor(end * fps), n_frames - 1)
    if first >= n_frames:
        raise InputError(
            f"found {n_frames / fps:.2f} s of video, expected more than {start:g} s, where the range starts. Mend the "
            "range, or see whether this is the right video."
        )
    stride = max(1, round(fps))
    seconds = np.arange(first, last + 1, stride)
    if len(seconds) < frames:
        return [int(position) for position in np.linspace(first, last, frames, dtype=int)]
    return [int(position) for position in seconds[np.linspace(0, len(seconds) - 1, frames, dtype=int)]]


def _check_request(frames: int, start: float | None, end: float | None) -> None:
    """Refuse what no video can give: no frames, or an empty range of seconds."""
    if frames < 1:
        raise InputError(f"found {frames} frames to read, expected at least 1. Ask for more.")
    for name, second in (("start", start), ("end", end)):
        if second is not None and not (math.isfinite(second) and second >= 0):
            raise InputError(f"found a range whose {name} is {second} s, expected a number of seconds from 0 on.")
    if end is not None and (start or 0) >= end:
        raise InputError(f"found a range from {start or 0:g} s to {end:g} s, expected a start before the end.")


def read_frames(
    path: str | os.PathLike[str],
    frames: int,
    start: float | None = None,
    end: float | None = None,
    allow_damaged: bool = False,
) -> NDArray[np.uint8]:
    """Read the sampled frames of a video file, upright.

    The file is read twice: once without decoding, to count its frames, and once decoding in order
    up to the last requested frame. Only requested frames are kept.

    Damage is what a decoder can know. Of files in which one byte of three packets was changed it passes over, with
    wrong frames: VP8 22 in 25, FFV1 25 in 25, HEVC 1 (7 in a transport stream), H.264, MPEG-2 and MPEG-4 0 to 2; VP9,
    AV1, WMV and FLV none.

    start, end     seconds, as in `sample_positions`; None for the beginning, or the end, of the video
    allow_damaged  take damaged pictures as the decoder shows them
    Returns uint8 [frames, H, W, 3], RGB. Raises VideoError when the file is missing, is not a video,
    is cut short or damaged, or ends before the range starts; BackendError without PyAV; InputError when frames < 1
    or the range is none.
    """
    path = Path(path)
    _check_request(frames, start, end)
    _check_file(path)
    scan = scan_video(path)
    positions = _positions(path, scan.n_frames, scan.fps, frames, start, end)
    pictures, n_decoded = decode_pictures(path, positions, scan, allow_damaged)
    if len(pictures) < len(set(positions)):
        if not scan.torn and n_decoded < _LEAST_DECODED * scan.n_decodable:
            raise VideoError(
                f"{path}: found {n_decoded} decodable frames, expected {scan.n_decodable}, which the file holds. "
                "It is damaged, copy it again or re-encode it."
            )
        positions = _positions(path, n_decoded, scan.fps, frames, start, end)
        pictures, _ = decode_pictures(path, positions, scan, allow_damaged)
    shapes = {picture.shape for picture in pictures.values()}
    if len(shapes) > 1:
        sizes = ", ".join(f"{width}x{height}" for height, width, _ in sorted(shapes))
        raise VideoError(f"{path}: found frames of several sizes ({sizes}), expected one size. Re-encode the video.")
    return np.stack([pictures[position] for position in positions])


def _positions(path: Path, n_frames: int, fps: float, frames: int, start: float | None, end: float | None) -> list[int]:
    """`sample_positions` of a file: what the file forbids is said of the file."""
    try:
        return sample_positions(n_frames, fps, frames, start, end)
    except InputError as error:
        raise VideoError(f"{path}: {error}") from error


def check_video(path: str | os.PathLike[str]) -> int:
    """Count the frames of a video file without decoding them, which finds a file that is missing, empty or cut short.

    Damage inside a frame shows only in `read_frames`. Raises VideoError; BackendError without PyAV.
    """
    path = Path(path)
    _check_file(path)
    return scan_video(path).n_frames


def is_video(path: str | os.PathLike[str]) -> bool:
    """True where a decoder finds a video in the file, by its beginning. Raises BackendError without PyAV."""
    try:
        with open_video(Path(path)):
            return True
    except VideoError:
        return False


def _check_file(path: Path) -> None:
    if not os.path.exists(path):
        raise VideoError(f"{path}: found no such file, expected a video file. Check the path.")
    if not os.path.isfile(path):
        raise VideoError(f"{path}: found a directory or device, expected a video file. Name the file itself.")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: found an empty file, expected a video. Copy or download it again.")

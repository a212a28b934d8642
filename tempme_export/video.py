"""A video file to the frames the model was trained on: which frames, and their pixels."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tempme_export.errors import BackendError, InputError, VideoError

# FFmpeg opens these as videos too: text as an animation, playlists as what they point to.
_REFUSED_FORMATS = {
    "tty": "text",
    "hls": "playlist",
    "dash": "playlist",
    "concat": "playlist",
    "image2": "picture",
}

# Packets may outnumber frames a little (hidden reference frames, frames before the first key frame).
_LEAST_DECODED = 0.9

# Headers round, and count the padding at the end of the sound.
_LENGTH_SLACK = 0.1  # seconds


def import_av() -> ModuleType:
    """Import PyAV. Raises BackendError when it is not installed."""
    try:
        import av
    except ImportError as error:
        raise BackendError(
            "found no PyAV, which reads and writes video files; run: pip install 'tempme-export[video]'"
        ) from error
    return av


def decoder_version() -> str:
    """What turns a file into pixels: "PyAV 18.1.0, libavcodec 62.28.102, libswscale 9.5.102".

    Raises BackendError without PyAV.
    """
    av = import_av()
    numbers = {name: ".".join(map(str, av.library_versions[name])) for name in ("libavcodec", "libswscale")}
    return ", ".join([f"PyAV {av.__version__}", *(f"{name} {number}" for name, number in numbers.items())])


def sample_positions(
    n_frames: int, fps: float, frames: int, start: float | None = None, end: float | None = None
) -> list[int]:
    """Choose which frames of a video to read, as the original's loader does (spec section 5).

    One frame a second; more than wanted are thinned out evenly. When there are too few, the
    positions are spread evenly over all frames instead and may repeat. Nothing is ever padded.

    n_frames    frames in the file
    fps         average frame rate, frames per second
    frames      positions wanted
    start, end  seconds; only frames floor(start * fps) to floor(end * fps) are chosen from, both included. An end
                beyond the last frame means the last frame, as in the original: who annotates rounds up.
    Returns `frames` rising positions in [0, n_frames). Raises InputError, also for a range that starts after the
    last frame.
    """
    _check_request(frames, start, end)
    if n_frames < 1:
        raise InputError(f"found {n_frames} frames in the video; expected at least 1")
    if not (math.isfinite(fps) and fps > 0):
        raise InputError(f"found a frame rate of {fps}; expected a positive number of frames per second")
    first = 0 if start is None else math.floor(start * fps)
    last = n_frames - 1 if end is None else min(math.floor(end * fps), n_frames - 1)
    if first >= n_frames:
        raise InputError(
            f"found {n_frames / fps:.2f} s of video; expected more than {start:g} s, where the range starts; mend the "
            "range, or see whether this is the right video"
        )
    stride = max(1, round(fps))
    seconds = np.arange(first, last + 1, stride)
    if len(seconds) < frames:
        return [int(position) for position in np.linspace(first, last, frames, dtype=int)]
    return [int(position) for position in seconds[np.linspace(0, len(seconds) - 1, frames, dtype=int)]]


def _check_request(frames: int, start: float | None, end: float | None) -> None:
    """Refuse what no video can give: no frames, or an empty range of seconds."""
    if frames < 1:
        raise InputError(f"found {frames} frames wanted; expected at least 1; ask for more")
    for name, second in (("start", start), ("end", end)):
        if second is not None and not (math.isfinite(second) and second >= 0):
            raise InputError(f"found a range whose {name} is {second} s; expected a number of seconds from 0 on")
    if end is not None and (start or 0) >= end:
        raise InputError(f"found a range from {start or 0:g} s to {end:g} s; expected a start before the end")


def read_frames(
    path: str | os.PathLike[str],
    frames: int,
    start: float | None = None,
    end: float | None = None,
    allow_damaged: bool = False,
) -> NDArray[np.uint8]:
    """Read the sampled frames of a video file, upright.

    The file is read twice: once without decoding, to count its frames, and once decoding in order
    up to the last wanted frame. Only wanted frames are kept.

    start, end     seconds, as in `sample_positions`; None for the beginning, or the end, of the video
    allow_damaged  take damaged pictures as the decoder shows them
    Returns uint8 [frames, H, W, 3], RGB. Raises VideoError when the file is missing, is not a video,
    is cut short or damaged, or ends before the range starts; BackendError without PyAV; InputError when frames < 1
    or the range is none.
    """
    path = Path(path)
    _check_request(frames, start, end)
    _check_file(path)
    n_frames, fps = _count_frames(path)
    positions = _positions(path, n_frames, fps, frames, start, end)
    pictures, n_decoded = _decode(path, positions, allow_damaged)
    if len(pictures) < len(set(positions)):
        if n_decoded < _LEAST_DECODED * n_frames:
            raise VideoError(
                f"{path}: found {n_decoded} decodable frames; expected {n_frames}, which the file holds; "
                "it is damaged, copy it again or re-encode it"
            )
        positions = _positions(path, n_decoded, fps, frames, start, end)
        pictures, _ = _decode(path, positions, allow_damaged)
    shapes = {picture.shape for picture in pictures.values()}
    if len(shapes) > 1:
        sizes = ", ".join(f"{width}x{height}" for height, width, _ in sorted(shapes))
        raise VideoError(f"{path}: found frames of several sizes ({sizes}); expected one size; re-encode the video")
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
    return _count_frames(path)[0]


def _check_file(path: Path) -> None:
    if not os.path.exists(path):
        raise VideoError(f"{path}: found no such file; expected a video file; check the path")
    if not os.path.isfile(path):
        raise VideoError(f"{path}: found a directory or device; expected a video file; name the file itself")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: found an empty file; expected a video; copy or download it again")


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open the container and its first video stream; FFmpeg's errors inside the block become VideoError."""
    av = import_av()
    try:
        # "file:" keeps a colon in a name from being taken for a protocol; nothing remote is ever opened.
        with av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="ignore") as container:
            yield container, _video_stream(container, path)
    except av.error.FFmpegError as error:
        raise VideoError(
            f"{path}: found no readable video (FFmpeg: {error.strerror}); expected a whole video file; "
            "it may be cut short, damaged or of another kind: copy it again or re-encode it"
        ) from error


def _video_stream(container: Any, path: Path) -> Any:
    name = container.format.name
    refused = "picture" if name.endswith("_pipe") else _REFUSED_FORMATS.get(name)
    if refused:
        raise VideoError(f"{path}: found a {refused} file; expected a video; name one, or pass a list of PIL images")
    for stream in container.streams.video:
        if not stream.disposition & import_av().stream.Disposition.attached_pic:
            return stream
    kinds = {"cover picture" if stream.type == "video" else stream.type for stream in container.streams}
    raise VideoError(
        f"{path}: found no video stream, only {', '.join(sorted(kinds)) or 'nothing'}; "
        "expected a video; name another file"
    )


def _count_frames(path: Path) -> tuple[int, float]:
    """Count the frames a decoder would show, without decoding, and read the average frame rate."""
    n_frames = 0
    ends: dict[int, float] = {}  # stream index -> seconds
    with _open(path) as (container, stream):
        for packet in container.demux():
            if packet.size == 0:
                continue
            if packet.stream_index == stream.index:
                if packet.is_corrupt:
                    raise VideoError(
                        f"{path}: found an incomplete frame after {n_frames} whole ones; expected whole "
                        "frames to the end; the file is cut short or damaged, copy it again or re-encode it"
                    )
                n_frames += not packet.is_discard
            start = packet.dts if packet.pts is None else packet.pts
            if start is not None:
                end = float((start + (packet.duration or 0)) * packet.time_base)
                ends[packet.stream_index] = max(end, ends.get(packet.stream_index, end))
        if n_frames == 0:
            raise VideoError(f"{path}: found a video stream without frames; expected at least 1; copy the file again")
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise VideoError(f"{path}: found no frame rate; expected frames per second; re-encode the video")
        fps = float(rate)
        _check_length(container, stream, ends, fps, path)
    return n_frames, fps


def _check_length(container: Any, stream: Any, ends: dict[int, float], fps: float, path: Path) -> None:
    """Compare the length that the header declares with the length that was found, in seconds.

    Frame counts do not serve: edit lists hide frames, and AVI counts the gaps between them. MPEG
    streams declare nothing and may end anywhere.
    """
    name = container.format.name
    found = ends.get(stream.index, 0.0)
    if "mp4" in name and stream.duration:
        declared = float(stream.duration * stream.time_base)
    elif name == "avi":
        declared = float(stream.frames * stream.time_base)
    elif ("matroska" in name or name == "flv") and container.duration:
        declared = container.duration / 1e6
        found = max(ends.values(), default=0.0)
    else:
        return
    if declared - found > max(_LENGTH_SLACK, 2 / fps):
        raise VideoError(
            f"{path}: found {found:.2f} s of video; expected {declared:.2f} s, which its header declares; "
            "the file is cut short, copy it again"
        )


def _decode(path: Path, positions: list[int], allow_damaged: bool = False) -> tuple[dict[int, NDArray[np.uint8]], int]:
    """Decode in order up to the last position; return the wanted pictures and how many frames were seen."""
    wanted = set(positions)
    pictures: dict[int, NDArray[np.uint8]] = {}
    n_decoded = 0
    with _open(path) as (container, stream):
        stream.thread_type = "AUTO"
        for position, frame in enumerate(container.decode(stream)):
            n_decoded += 1
            if position in wanted:
                if frame.is_corrupt and not allow_damaged:
                    raise VideoError(
                        f"{path}: found frame {position} damaged; expected whole frames; copy the file again"
                    )
                pictures[position] = _upright(frame, path)
            if len(pictures) == len(wanted):
                break
    return pictures, n_decoded


def _upright(frame: Any, path: Path) -> NDArray[np.uint8]:
    """Convert a decoded frame to RGB [H, W, 3] and apply the rotation or mirroring that the file asks for."""
    picture: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return picture
    # The matrix takes (x, y) to (a x + c y, b x + d y), in fixed point.
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(side_data), np.int32)[:5])
    straight, crossed = min(abs(a), abs(d)), min(abs(b), abs(c))
    if min(straight, crossed) > 0.02 * max(straight, crossed):
        raise VideoError(
            f"{path}: found a video to be shown at {frame.rotation} degrees; expected a multiple of 90; "
            "re-encode it upright"
        )
    if crossed > straight:
        picture = picture.transpose(1, 0, 2)
        a, d = c, b
    return np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])

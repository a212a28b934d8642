"""A video file to the frames the model was trained on: which frames, and their pixels."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tempme_export.errors import InputError, VideoError
from tempme_export.media.video_size import end_of_frames
from tempme_export.media.video_stream import Lost, Shown, decode, import_av, open_video, packets
from tempme_export.media.video_transport import is_whole

# Packets may outnumber frames a little: hidden reference frames, fields stored one by one.
_LEAST_DECODED = 0.9


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
    scan = _scan(path)
    positions = _positions(path, scan.n_frames, scan.fps, frames, start, end)
    pictures, n_decoded = _decode(path, positions, scan, allow_damaged)
    if len(pictures) < len(set(positions)):
        if not scan.torn and n_decoded < _LEAST_DECODED * scan.n_decodable:
            raise VideoError(
                f"{path}: found {n_decoded} decodable frames; expected {scan.n_decodable}, which the file holds; "
                "it is damaged, copy it again or re-encode it"
            )
        positions = _positions(path, n_decoded, scan.fps, frames, start, end)
        pictures, _ = _decode(path, positions, scan, allow_damaged)
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
    return _scan(path).n_frames


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a decoder finds a video in a file, by its beginning. Raises BackendError without PyAV."""
    try:
        with open_video(Path(path)):
            return True
    except VideoError:
        return False


def _check_file(path: Path) -> None:
    if not os.path.exists(path):
        raise VideoError(f"{path}: found no such file; expected a video file; check the path")
    if not os.path.isfile(path):
        raise VideoError(f"{path}: found a directory or device; expected a video file; name the file itself")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: found an empty file; expected a video; copy or download it again")


@dataclass(frozen=True)
class _Scan:
    """What the packets of a video say without being decoded.

    n_frames     frames a decoder would show
    n_decodable  those of them that can be decoded: not before the first key frame, nor behind missing packets
    torn         numbers of the packets of which a part is missing, or what is between them and the next one
    """

    n_frames: int
    fps: float
    n_decodable: int
    torn: frozenset[int]


def _scan(path: Path) -> _Scan:
    n_frames = n_decodable = 0
    seen: list[tuple[int | None, bool]] = []  # where each packet is in the file, whether it holds a key frame
    flagged: list[int] = []
    whole, key_time = False, None  # since the last key frame behind a gap, which is shown at that time
    with open_video(path) as (container, stream):
        for packet in packets(container, stream):
            if packet.is_corrupt:
                whole = False
                flagged.append(len(seen))
            elif packet.is_keyframe and not whole:
                whole, key_time = True, packet.pts
            seen.append((packet.pos, packet.is_keyframe))
            if not packet.is_discard:
                n_frames += 1
                early = key_time is not None and packet.pts is not None and packet.pts < key_time
                n_decodable += whole and not early
        if n_frames == 0:
            raise VideoError(f"{path}: found a video stream without frames; expected at least 1; copy the file again")
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise VideoError(f"{path}: found no frame rate; expected frames per second; re-encode the video")
        container_name = container.format.name
    found, expected = path.stat().st_size, end_of_frames(path, container_name)
    if found < expected:
        raise VideoError(
            f"{path}: found {found} bytes; expected {expected}, up to which its container declares frames; the file is "
            "cut short, copy it again"
        )
    return _Scan(n_frames, float(rate), n_decodable, _torn(path, container_name, flagged, seen))


def _torn(
    path: Path, container_name: str, flagged: Sequence[int], seen: Sequence[tuple[int | None, bool]]
) -> frozenset[int]:
    """What a flag says of a packet, or of the next one where a parser stands between FFmpeg's reader and us.

    A transport stream may go on elsewhere behind a whole packet: nothing is missing if a key frame is next.
    """
    if container_name != "mpegts":
        return frozenset(flagged)
    with open(path, "rb") as file:
        return frozenset(
            torn
            for number in flagged
            for torn in (number, number + 1)
            if not (
                all(is_whole(file, position) for position, _ in seen[number : number + 2])
                and all(is_key for _, is_key in seen[number + 2 : number + 3])
            )
        )


_INTRA = 1  # FFmpeg's picture type I; other key frames are points where refreshed stripes begin

Pictures = dict[int, NDArray[np.uint8]]  # by position
Damage = dict[int, int | None]  # a damaged packet's number -> the key frame that it leads


def _decode(path: Path, positions: Sequence[int], scan: _Scan, allow_damaged: bool) -> tuple[Pictures, int]:
    """Decode in order up to the last position; return the wanted pictures and how many frames were seen.

    A file whose decoder complains of nothing is decoded once, in threads. Another one is decoded again, in one thread,
    which tells the packet that each complaint and each frame belong to.
    """
    found = None if scan.torn else _decode_whole(path, set(positions))
    return found or _decode_damaged(path, sorted(set(positions)), scan, allow_damaged)


def _decode_whole(path: Path, wanted: set[int]) -> tuple[Pictures, int] | None:
    """None at the first sign of damage."""
    pictures: Pictures = {}
    n_decoded = 0
    for item in decode(path, strict=True, threads=True):
        if isinstance(item, Lost) or item.frame.is_corrupt:
            return None
        if n_decoded in wanted:
            pictures[n_decoded] = _upright(item.frame, path)
        n_decoded += 1
        if len(pictures) == len(wanted):
            break
    return pictures, n_decoded


@dataclass(frozen=True)
class _Origin:
    """The packets that a picture was made from, from its key frame's to its own, and when it is shown, in seconds.

    Those that lead its key frame are not among them. Before the first key frame it is -1.
    """

    first: int
    last: int
    time: float


def _decode_damaged(path: Path, wanted: Sequence[int], scan: _Scan, allow_damaged: bool) -> tuple[Pictures, int]:
    """Decode as players do. Raises VideoError for a wanted frame that is damaged or predicted from one that is.

    A frame that was lost keeps its place, so that those behind the next key frame are found where they were; the next
    frame stands in for it.
    """
    pictures: Pictures = {}
    origins: list[_Origin] = []
    damaged: Damage = dict.fromkeys(scan.torn)
    waiting: list[Lost] = []  # to be shown later
    n_shown = n_lost = n_decoded = 0
    key, begin, reason = -1, None, ""
    for item in decode(path, strict=False, threads=False):
        if isinstance(item, Lost):
            damaged[item.number] = item.lead
            reason = reason or item.reason
            if not item.early:
                waiting.append(item)
            continue
        frame, number = item.frame, item.number
        if item.key and frame.pict_type == _INTRA:
            key = number
        if frame.is_corrupt:
            damaged[number] = item.lead
        due = [one for one in waiting if _shown_before(one, item, key)]
        waiting = [one for one in waiting if one not in due]
        n_lost += len(due)
        begin = frame.time if begin is None else begin
        for position in [position for position in wanted if n_decoded <= position <= n_shown + n_lost]:
            pictures[position] = _upright(frame, path)
            if position < n_shown + n_lost:
                origins.append(_Origin(-1, max(number, *(one.number for one in due)), position / scan.fps))
            else:
                origins.append(_Origin(key, number, _seconds(frame, begin, position / scan.fps)))
        n_shown += 1
        n_decoded = n_shown + n_lost
        if len(pictures) == len(wanted):
            break
    if not n_shown and reason:
        raise VideoError(
            f"{path}: found no readable video (FFmpeg: {reason}); expected a whole video file; "
            "it may be damaged or of another kind: copy it again or re-encode it"
        )
    if origins and not allow_damaged:
        damaged |= _found_strictly(path, origins[-1].last + 1)
        for origin in origins:
            if any(origin.first <= number <= origin.last and lead != origin.first for number, lead in damaged.items()):
                raise VideoError(
                    f"{path}: found the frame at {origin.time:.2f} s damaged, or one it is predicted from; expected "
                    "whole frames; copy the file again, or take its pictures as a player shows them: --allow-damaged, "
                    "allow_damaged=True"
                )
    return pictures, n_decoded


def _found_strictly(path: Path, n_packets: int) -> Damage:
    """What the decoder finds against the format in the first so many packets."""
    found = decode(path, strict=True, threads=False, n_packets=n_packets)
    return {one.number: one.lead for one in found if isinstance(one, Lost) or one.frame.is_corrupt}


def _shown_before(lost: Lost, shown: Shown, key: int) -> bool:
    if lost.number < key or lost.pts is None or shown.frame.pts is None:
        return lost.number < shown.number
    return bool(lost.pts < shown.frame.pts)


def _seconds(frame: Any, begin: float | None, otherwise: float) -> float:
    """When a frame is shown, counted from the first one; joined recordings have clocks that go back."""
    if frame.pts is None or begin is None or not frame.time >= begin:
        return otherwise
    return float(frame.time - begin)


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

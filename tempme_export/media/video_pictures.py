"""Requested pictures of a video, upright, and which of them are damaged."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tempme_export.errors import VideoError
from tempme_export.media.video_scan import Scan
from tempme_export.media.video_stream import Lost, Shown, decode

_INTRA = 1  # FFmpeg's picture type I; other key frames are points where refreshed stripes begin

Pictures = dict[int, NDArray[np.uint8]]  # by position
Damage = dict[int, int | None]  # a damaged packet's number -> the key frame that it leads


def decode_pictures(path: Path, positions: Sequence[int], scan: Scan, allow_damaged: bool) -> tuple[Pictures, int]:
    """Decode in order up to the last position; return the requested pictures and how many frames were seen.

    A file whose decoder complains of nothing is decoded once, in threads. Another one is decoded again, in one thread,
    which tells the packet that each complaint and each frame belong to.
    """
    found = None if scan.torn else _decode_whole(path, set(positions))
    return found or _decode_damaged(path, sorted(set(positions)), scan, allow_damaged)


def _decode_whole(path: Path, positions: set[int]) -> tuple[Pictures, int] | None:
    """None at the first sign of damage."""
    pictures: Pictures = {}
    n_decoded = 0
    for item in decode(path, strict=True, threads=True):
        if isinstance(item, Lost) or item.frame.is_corrupt:
            return None
        if n_decoded in positions:
            pictures[n_decoded] = _upright(item.frame, path)
        n_decoded += 1
        if len(pictures) == len(positions):
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


def _decode_damaged(path: Path, positions: Sequence[int], scan: Scan, allow_damaged: bool) -> tuple[Pictures, int]:
    """Decode as players do. Raises VideoError for a requested frame that is damaged or predicted from one that is.

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
        for position in [position for position in positions if n_decoded <= position <= n_shown + n_lost]:
            pictures[position] = _upright(frame, path)
            if position < n_shown + n_lost:
                origins.append(_Origin(-1, max(number, *(one.number for one in due)), position / scan.fps))
            else:
                origins.append(_Origin(key, number, _seconds(frame, begin, position / scan.fps)))
        n_shown += 1
        n_decoded = n_shown + n_lost
        if len(pictures) == len(positions):
            break
    if not n_shown and reason:
        raise VideoError(
            f"{path}: found no readable video (FFmpeg: {reason}), expected a whole video file. "
            "It may be damaged or of another kind: copy it again or re-encode it."
        )
    if origins and not allow_damaged:
        damaged |= _found_strictly(path, origins[-1].last + 1)
        for origin in origins:
            if any(origin.first <= number <= origin.last and lead != origin.first for number, lead in damaged.items()):
                raise VideoError(
                    f"{path}: found the frame at {origin.time:.2f} s damaged, or one it is predicted from, expected "
                    "whole frames. Copy the file again, or take its pictures as a player shows them: --allow-damaged, "
                    "allow_damaged=True."
                )
    return pictures, n_decoded


def _found_strictly(path: Path, n_packets: int) -> Damage:
    """Violations of the format that the decoder finds in the first `n_packets` packets."""
    found = decode(path, strict=True, threads=False, n_packets=n_packets)
    return {one.number: one.lead for one in found if isinstance(one, Lost) or one.frame.is_corrupt}


def _shown_before(lost: Lost, shown: Shown, key: int) -> bool:
    if lost.number < key or lost.pts is None or shown.frame.pts is None:
        return lost.number < shown.number
    return bool(lost.pts < shown.frame.pts)


def _seconds(frame: Any, begin: float | None, otherwise: float) -> float:
    """Time of a frame in seconds, counted from the first one; joined recordings have clocks that go back."""
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
            f"{path}: found a video to be shown at {frame.rotation} degrees, expected a multiple of 90. "
            "Re-encode it upright."
        )
    if crossed > straight:
        picture = picture.transpose(1, 0, 2)
        a, d = c, b
    return np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])

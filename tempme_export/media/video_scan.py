"""A video read through without decoding: its frames counted, its gaps found."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tempme_export.errors import VideoError
from tempme_export.media.video_size import end_of_frames
from tempme_export.media.video_stream import open_video, packets
from tempme_export.media.video_transport import is_whole


@dataclass(frozen=True)
class Scan:
    """Facts that the packets of a video tell without being decoded.

    n_frames     frames a decoder would show
    n_decodable  those of them that can be decoded: not before the first key frame, nor behind missing packets
    torn         numbers of the packets of which a part is missing, or what is between them and the next one
    """

    n_frames: int
    fps: float
    n_decodable: int
    torn: frozenset[int]


def scan_video(path: Path) -> Scan:
    """Read every packet. Raises VideoError for a file without frames or a frame rate, or that is cut short."""
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
            raise VideoError(f"{path}: found a video stream without frames, expected at least 1. Copy the file again.")
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise VideoError(f"{path}: found no frame rate, expected frames per second. Re-encode the video.")
        container_name = container.format.name
    found, expected = path.stat().st_size, end_of_frames(path, container_name)
    if found < expected:
        raise VideoError(
            f"{path}: found {found} bytes, expected {expected}, up to which its container declares frames. The file is "
            "cut short, copy it again."
        )
    return Scan(n_frames, float(rate), n_decodable, _torn(path, container_name, flagged, seen))


def _torn(
    path: Path, container_name: str, flagged: Sequence[int], seen: Sequence[tuple[int | None, bool]]
) -> frozenset[int]:
    """Torn packets: those flagged, or the next ones where a parser stands between FFmpeg's reader and us.

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

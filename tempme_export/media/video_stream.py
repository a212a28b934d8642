"""The video stream of a file: its packets, and the frames a decoder makes of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Any

from tempme_export.errors import BackendError, VideoError

# FFmpeg opens these as videos too: text as an animation, playlists as what they point to.
_REFUSED_FORMATS = {
    "tty": "text",
    "hls": "playlist",
    "dash": "playlist",
    "concat": "playlist",
    "image2": "picture",
}

# Without these a decoder conceals much of what it finds, or does not look for it.
_STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}


def import_av() -> ModuleType:
    """Import PyAV. Raises BackendError when it is not installed."""
    try:
        import av
    except ImportError as error:
        raise BackendError(
            "found no PyAV, which reads and writes video files; run: pip install 'tempme-export[video]'"
        ) from error
    return av


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
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
            if stream.codec_context is None:
                raise VideoError(
                    f"{path}: found a codec that this FFmpeg has no decoder for; expected one that it has; re-encode "
                    "the video as H.264"
                )
            return stream
    kinds = {"cover picture" if stream.type == "video" else stream.type for stream in container.streams}
    raise VideoError(
        f"{path}: found no video stream, only {', '.join(sorted(kinds)) or 'nothing'}; "
        "expected a video; name another file"
    )


def packets(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream, in the order in which they are decoded."""
    reader = container.demux(stream)
    while True:
        try:
            packet = next(reader)
        except StopIteration:
            return
        except IndexError:
            # After the last packet PyAV asks every stream for what it holds back, and knows only those of the header.
            return
        if packet.size:
            yield packet


@dataclass(frozen=True)
class Lost:
    """A packet that the decoder made nothing of: its number, when its frame was to be shown, and why."""

    number: int
    pts: int | None
    reason: str


@dataclass(frozen=True)
class Shown:
    """A frame, av.VideoFrame, and the number of its packet; where the decoder filled a gap, of the newest one."""

    frame: Any
    number: int


def decode(path: Path, strict: bool, threads: bool, n_packets: int | None = None) -> Iterator[Shown | Lost]:
    """Frames in the order of display, and what was lost.

    strict     lose what is against the format, as far as the decoder can know; otherwise it is concealed
    threads    decode faster; numbers are then some packets late
    n_packets  decode no more than these; None decodes all
    Packets are numbered from 0. Raises VideoError.
    """
    FFmpegError = import_av().error.FFmpegError
    with open_video(path) as (container, stream):
        decoder = stream.codec_context
        if strict:
            decoder.options = _STRICT
        if threads:
            decoder.thread_type = "AUTO"
        else:
            decoder.thread_count = 1
            decoder.copy_opaque = True  # never with threads: each would wait for Python's lock, and Python for it
        number, pts = -1, None
        for packet in chain(islice(packets(container, stream), n_packets), [None]):
            if packet is not None:
                number, pts = number + 1, packet.pts
                if not threads:
                    packet.opaque = number
            try:
                frames = decoder.decode(packet)
            except FFmpegError as error:
                yield Lost(number, pts, error.strerror)
            else:
                for frame in frames:
                    origin = None if threads else frame.opaque
                    yield Shown(frame, max(number, 0) if origin is None else origin)

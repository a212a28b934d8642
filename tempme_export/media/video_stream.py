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

# Decoders that make the same frames as FFmpeg's own and find more: whether the data of a frame last to its end.
_STRICTER = {"vp9": "libvpx-vp9"}


def import_av() -> ModuleType:
    """Import PyAV. Raises BackendError when it is not installed."""
    try:
        import av
    except ImportError as error:
        raise BackendError(
            "found no PyAV, which reads and writes video files. Run: pip install 'tempme-export[video]'"
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
            f"{path}: found no readable video (FFmpeg: {error.strerror}), expected a whole video file. "
            "It may be cut short, damaged or of another kind: copy it again or re-encode it."
        ) from error


def _video_stream(container: Any, path: Path) -> Any:
    name = container.format.name
    refused = "picture" if name.endswith("_pipe") else _REFUSED_FORMATS.get(name)
    if refused:
        raise VideoError(f"{path}: found a {refused} file, expected a video. Name one, or pass a list of PIL images.")
    for stream in container.streams.video:
        if not stream.disposition & import_av().stream.Disposition.attached_pic:
            if stream.codec_context is None:
                raise VideoError(
                    f"{path}: found a codec that this FFmpeg has no decoder for, expected one that it has. Re-encode "
                    "the video as H.264."
                )
            return stream
    kinds = {"cover picture" if stream.type == "video" else stream.type for stream in container.streams}
    raise VideoError(
        f"{path}: found no video stream, only {', '.join(sorted(kinds)) or 'nothing'}, "
        "expected a video. Name another file."
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
    """A packet that the decoder made nothing of.

    pts     when its frame was to be shown
    reason  why it was not
    lead    number of the key frame that it is decoded after and shown before; None for most. Nothing shown later is
            predicted from it
    early   it was not to be shown: it is decoded, or shown, before the first key frame
    """

    number: int
    pts: int | None
    reason: str
    lead: int | None
    early: bool


@dataclass(frozen=True)
class Shown:
    """A frame, av.VideoFrame, and the number of its packet; where the decoder filled a gap, of the newest one.

    lead  as of `Lost`
    key   nothing behind it is predicted from what is before it: decoder and container agree
    """

    frame: Any
    number: int
    lead: int | None
    key: bool


def decode(path: Path, strict: bool, threads: bool, n_packets: int | None = None) -> Iterator[Shown | Lost]:
    """Frames in the order of display, and what was lost: refused by the decoder, or passed over without a word.

    strict     lose what is against the format, as far as the decoder can know; otherwise it is concealed
    threads    decode faster; numbers are then some packets late
    n_packets  decode no more than these; None decodes all
    Packets are numbered from 0. Raises VideoError.
    """
    av = import_av()
    FFmpegError = av.error.FFmpegError
    # A user's log takes Python's lock in the decoder's threads, and PyAV holds it while it waits for them to end.
    threads = threads and av.logging.get_level() is None
    with open_video(path) as (container, stream):
        codec = stream.codec_context.name
        decoder = _strict_decoder(stream) if strict else stream.codec_context
        if threads:
            decoder.thread_type = "FRAME"  # threads that share a picture drop each other's complaints
        else:
            decoder.thread_count = 1
            decoder.copy_opaque = True  # never with threads: each would wait for Python's lock, and Python for it
        number, order = -1, _Order(timed=container.format.name != "avi")
        for packet in chain(islice(packets(container, stream), n_packets), [None]):
            if packet is not None:
                number += 1
                order.add(number, packet, _is_hidden(codec, packet))
                if not threads:
                    packet.opaque = number
            try:
                frames = decoder.decode(packet)
            except FFmpegError as error:
                yield order.lose(max(number, 0), error.strerror)
            else:
                for frame in frames:
                    origin = None if threads else frame.opaque
                    yield from order.overtaken(frame, origin)
                    yield order.show(frame, max(number, 0) if origin is None else origin)
        yield from order.rest()


def _strict_decoder(stream: Any) -> Any:
    av = import_av()
    decoder = stream.codec_context
    stricter, pixels = _STRICTER.get(decoder.name), decoder.format
    # Builds differ in whether they know more than 8 bits.
    if stricter in av.codecs_available and pixels and pixels.components[0].bits == 8:
        decoder = av.CodecContext.create(stricter, "r")
    decoder.options = _STRICT
    return decoder


def _is_hidden(codec: str, packet: Any) -> bool:
    """True for a packet that holds only a picture that is predicted from and never shown, as VP8 and VP9 have them."""
    if codec == "vp8":
        return not bytes(packet)[0] & 0x10
    if codec == "vp9":
        content = bytes(packet)
        return not content[0] & 0x0A and content[-1] & 0xE0 != 0xC0  # neither shown, nor old, nor one of several
    return False


_DELAY = 512  # packets; no decoder holds more back


@dataclass(frozen=True)
class _Place:
    """Place of a packet: its time, its clock, and the key frame that it leads."""

    pts: int | None
    clock: int
    is_key: bool
    lead: int | None
    early: bool


class _Order:
    """Frames to be shown, and their order. One that a later frame overtakes was lost without a word."""

    def __init__(self, timed: bool) -> None:
        """timed: the container says when frames are shown; AVI does not."""
        self._timed = timed
        self._places: dict[int, _Place] = {}  # of the newest packets
        self._awaited: dict[int, _Place] = {}  # of those not shown yet
        self._key: int | None = None  # the newest key frame's number
        self._key_pts: int | None = None
        self._first: int | None = None  # when the first one is shown
        self._clock = 0  # joined recordings have clocks that go back
        self._dts: int | None = None

    def add(self, number: int, packet: Any, hidden: bool) -> None:
        pts, dts = packet.pts if self._timed else None, packet.dts
        if dts is not None:
            self._clock += self._dts is not None and dts < self._dts
            self._dts = dts
        if packet.is_keyframe:
            self._first = pts if self._key is None else self._first
            self._key, self._key_pts = number, pts
        early = self._key is None or (self._before(pts, self._first) and not self._clock)
        leads = self._key is not None and self._before(pts, self._key_pts)
        place = _Place(pts, self._clock, packet.is_keyframe, self._key if leads else None, early)
        self._places[number] = place
        self._places.pop(number - _DELAY, None)
        if pts is not None and not (early or hidden or packet.is_discard):
            self._awaited[number] = place

    @staticmethod
    def _before(one: int | None, other: int | None) -> bool:
        return one is not None and other is not None and one < other

    def lose(self, number: int, reason: str) -> Lost:
        place = self._awaited.pop(number, None) or self._places[number]
        return Lost(number, place.pts, reason, place.lead, place.early)

    def show(self, frame: Any, number: int) -> Shown:
        place = self._places[number]
        return Shown(frame, number, place.lead, bool(frame.key_frame and place.is_key))

    def overtaken(self, frame: Any, number: int | None) -> list[Lost]:
        """Frames that should have been shown before this one and were not; `number` is its packet's, if it is known."""
        if number not in self._awaited:
            number = next((one for one, place in self._awaited.items() if place.pts == frame.pts), None)
        if number is None:
            return []
        shown = self._awaited.pop(number)
        if frame.interlaced_frame:  # its second field may be a packet of its own
            self._awaited.pop(number + 1, None)
        late = [
            one
            for one, place in self._awaited.items()
            if place.clock == shown.clock and self._before(place.pts, shown.pts)
        ]
        return [self.lose(one, "no frame") for one in late]

    def rest(self) -> list[Lost]:
        return [self.lose(number, "no frame") for number in list(self._awaited)]

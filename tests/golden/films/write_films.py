"""Write the films beside this file: `python write_films.py [NAME ...]`, with PyAV. Their bytes hang on its encoders."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from barcode import picture

HERE = Path(__file__).parent
RATE = 25


@dataclass(frozen=True)
class Film:
    """How a film is written.

    codec    as `codec` or `codec:pix_fmt`
    times    when each picture is shown, in 25ths of a second
    turned   degrees by which a player turns the pictures
    hidden   pictures that the container says to leave out at the beginning
    """

    codec: str
    options: dict[str, str] = field(default_factory=dict)
    muxer: dict[str, str] = field(default_factory=dict)
    size: tuple[int, int] = (64, 48)
    times: Sequence[int] = range(40)
    turned: int = 0
    hidden: int = 0
    space: int | None = None  # FFmpeg's number of the colour space
    full: bool = False


X265 = (
    "log-level=none:keyint=12:min-keyint=12:bframes=3:frame-threads=1:pools=none:wpp=0"
)
UNEVEN = np.cumsum(np.resize([1, 2, 1, 5], 40)).tolist()
FILMS = {
    "b-frames.mp4": Film("libx264", {"bf": "3"}),
    "open-gop.mp4": Film("libx264", {"x264-params": "open-gop=1:bframes=3"}),
    "interlaced.mp4": Film("libx264", {"x264-params": "tff=1"}),
    "refreshed.mov": Film("libx264", {"x264-params": "intra-refresh=1"}),
    "fragments.mp4": Film("libx264", {}, {"movflags": "frag_keyframe+empty_moov"}),
    "uneven.mp4": Film("libx264", times=UNEVEN),
    "uneven.mkv": Film("libx264", times=UNEVEN),
    "edit-list.mp4": Film("libx264", {"bf": "0"}, hidden=17),
    "late.ts": Film("libx264", times=range(250, 290)),
    "early.mkv": Film(
        "libx264", {"bf": "0"}, {"avoid_negative_ts": "disabled"}, times=range(-30, 10)
    ),
    "turned-90.mp4": Film("libx264", turned=90),
    "turned-180.mov": Film("libx264", turned=180),
    "odd.mp4": Film("libx264:yuv444p", size=(61, 47)),
    "odd-width.avi": Film("mpeg4", size=(61, 48)),
    "ten-bit.mp4": Film("libx264:yuv420p10le"),
    "four-two-two.mkv": Film("libx264:yuv422p"),
    "full-range.mp4": Film("libx264:yuvj420p", full=True),
    "bt709.mp4": Film("libx264", space=1),
    "h264.flv": Film("libx264"),
    "grey.mp4": Film("libx264:gray"),
    "hevc.mp4": Film("libx265", {"x265-params": X265}),
    "hevc-open-gop.mkv": Film("libx265", {"x265-params": X265 + ":open-gop=1"}),
    "hevc-ten-bit.mov": Film("libx265:yuv420p10le", {"x265-params": X265}),
    "hevc.ts": Film("libx265", {"x265-params": X265}),
    "vp8.webm": Film("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "vp9.webm": Film("libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "vp9-444.mkv": Film("libvpx-vp9:yuv444p"),
    "av1.mp4": Film("libsvtav1", {"preset": "8"}),
    "packed.avi": Film("mpeg4", {"bf": "2"}),
    "mpeg4.3gp": Film("mpeg4"),
    "divx3.avi": Film("msmpeg4"),
    "mpeg2.mpg": Film("mpeg2video", {"bf": "2"}),
    "mpeg2-interlaced.mpg": Film("mpeg2video", {"bf": "2", "flags": "+ilme+ildct"}),
    "mpeg1.mpg": Film("mpeg1video", {"bf": "2"}),
    "motion.wmv": Film("wmv2"),
    "sorenson.flv": Film("flv"),
    "motion.avi": Film("mjpeg:yuvj420p", times=range(12)),
    "without-loss.mkv": Film("ffv1", times=range(8)),
    "prores.mov": Film("prores_ks:yuv422p10le", times=range(6)),
    "animation.gif": Film("gif:rgb8", times=range(0, 40, 4)),
}


def encoded(
    film: Film, path: Path
) -> Iterator[tuple[av.container.OutputContainer, av.Packet]]:
    """The packets of a film, and what they go into."""
    codec, _, pixels = film.codec.partition(":")
    with av.open(str(path), "w", options=film.muxer) as container:
        stream = container.add_stream(codec, rate=RATE, options=film.options)
        stream.width, stream.height, stream.pix_fmt = *film.size, pixels or "yuv420p"
        stream.codec_context.gop_size = 12
        stream.codec_context.thread_count = 1
        if film.space is not None:
            stream.codec_context.colorspace = film.space
        if film.full:
            stream.codec_context.color_range = 2
        if film.turned:
            stream.set_display_rotation(film.turned)
        for number, time in enumerate(film.times):
            shown = picture(number, *film.size)
            if film.turned == 90:
                shown = picture(number, *film.size[::-1])
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(np.rot90(shown, -film.turned // 90)),
                format="rgb24",
            )
            frame = frame.reformat(
                format=stream.pix_fmt,
                dst_colorspace=film.space,
                dst_color_range=2 if film.full else 0,
            )
            frame.pts, frame.time_base = time, Fraction(1, RATE)
            for packet in stream.encode(frame):
                yield container, packet
        for packet in stream.encode():
            yield container, packet


def write(name: str) -> None:
    film = FILMS[name]
    for container, packet in encoded(film, HERE / name):
        hidden = int(film.hidden / RATE / packet.time_base)
        packet.pts -= hidden
        packet.dts -= hidden
        container.mux(packet)


if __name__ == "__main__":
    for name in sys.argv[1:] or FILMS:
        write(name)

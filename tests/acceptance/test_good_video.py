"""Files that every player shows whole are read, whatever their headers say; files that end too early are not."""

import struct

import numpy as np
import pytest

from tempme_export.errors import VideoError
from tempme_export.media.video import check_video, read_frames

av = pytest.importorskip("av")


def picture(number):
    found = np.zeros((48, 64, 3), np.uint8) + np.arange(64, dtype=np.uint8)[:, None] * 3
    found[10:30, number % 44 : number % 44 + 20] = (200, 60, number * 4 % 255)
    return found


# x264's AVX-512 code gives other bytes from call to call.
REPEATABLE = {"libx264": {"x264-params": "asm=ssse3"}}


def write(path, codec="libx264", count=60, muxer=(), start=0, pixels="yuv420p", **options):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    with av.open(str(path), "w", options=dict(muxer)) as container:
        stream = container.add_stream(codec, rate=25, options=REPEATABLE.get(codec, {}) | options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        stream.codec_context.gop_size = 12
        stream.codec_context.thread_count = 3  # the same bytes, however many cores there are
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts = number + start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def in_order(path):
    """Every frame as PyAV decodes it, one after the other, in one thread."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 3  # the same bytes, however many cores there are
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])


KINDS = [
    ("b-frames.mp4", "libx264", {"bf": "3"}),
    ("open-gop.mp4", "libx264", {"x264-params": "open-gop=1:bframes=3"}),
    ("interlaced.mp4", "libx264", {"x264-params": "tff=1"}),
    ("refresh.mp4", "libx264", {"x264-params": "intra-refresh=1"}),
    ("a.mkv", "libx264", {}),
    ("a.flv", "libx264", {}),
    ("a.ts", "libx264", {}),
    ("a.3gp", "libx264", {}),
    ("hevc.mp4", "libx265", {"x265-params": "log-level=none"}),
    ("vp9.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    ("vp8.webm", "libvpx", {"deadline": "realtime", "cpu-used": "8"}),
    ("packed.avi", "mpeg4", {"bf": "2"}),
    ("a.mov", "mpeg4", {}),
    ("a.mpg", "mpeg2video", {"bf": "2"}),
    ("mpeg2.ts", "mpeg2video", {"bf": "2"}),
    ("a.wmv", "wmv2", {}),
    ("old.flv", "flv", {}),
    ("ms.avi", "msmpeg4", {}),
    ("old.mpg", "mpeg1video", {}),
]


@pytest.mark.parametrize("name, codec, options", KINDS)
def test_frames_are_those_of_decoding_in_order(tmp_path, name, codec, options):
    path = write(tmp_path / name, codec, **options)
    np.testing.assert_array_equal(read_frames(path, 60), in_order(path))
    np.testing.assert_array_equal(
        read_frames(path, 2), in_order(path)[[0, 25]] if check_video(path) < 51 else in_order(path)[[0, 50]]
    )


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_transport_streams_joined_and_begun_between_key_frames(tmp_path, codec):
    parts = [write(tmp_path / f"{count}.ts", codec, count) for count in (60, 40)]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    np.testing.assert_array_equal(read_frames(joined, 100), np.concatenate([in_order(part) for part in parts]))
    np.testing.assert_array_equal(read_frames(joined, 6)[3], in_order(parts[0])[59])
    late = tmp_path / "late.ts"
    late.write_bytes(parts[0].read_bytes()[188 * (len(parts[0].read_bytes()) // 188 // 9) :])
    np.testing.assert_array_equal(read_frames(late, 48)[-1], in_order(parts[0])[-1])


def test_recording_that_begins_with_pictures_of_the_group_before(tmp_path):
    """Pictures that lead the first key frame cannot be decoded, nor are those behind it predicted from them."""
    options = {"x265-params": "log-level=none:open-gop=1:bframes=4:keyint=12:min-keyint=12"}
    path, late = write(tmp_path / "a.ts", "libx265", **options), tmp_path / "late.ts"
    content = path.read_bytes()
    late.write_bytes(content[188 * (len(content) // 188 // 5) :])
    np.testing.assert_array_equal(read_frames(late, 30)[-1], in_order(path)[-1])


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_transport_stream_that_lost_packets(tmp_path, codec):
    """What came before the loss is right, and what comes after the next key frame is taken."""
    path = write(tmp_path / "a.ts", codec)
    content, lost = path.read_bytes(), tmp_path / "lost.ts"
    third = len(content) // 188 // 3 * 188
    lost.write_bytes(content[:third] + content[third + 188 * 40 :])
    np.testing.assert_array_equal(read_frames(lost, 8, end=0.3), in_order(path)[:8])
    with pytest.raises(VideoError, match=r"found the frame at .* damaged"):
        read_frames(lost, 100)
    assert read_frames(lost, 100, allow_damaged=True).shape == (100, 48, 64, 3)


@pytest.mark.parametrize("name, codec", [("a.mkv", "libx264"), ("a.webm", "libvpx-vp9")])
def test_header_longer_than_the_last_frame(tmp_path, name, codec):
    path = write(tmp_path / name, codec)
    whole, content = read_frames(path, 12), bytearray(path.read_bytes())
    at = content.find(b"\x44\x89\x88") + 3
    content[at : at + 8] = struct.pack(">d", 3 * struct.unpack_from(">d", content, at)[0])
    path.write_bytes(content)
    np.testing.assert_array_equal(read_frames(path, 12), whole)


@pytest.mark.parametrize(
    "name, codec, muxer",
    [
        ("a.mp4", "libx264", {"movflags": "faststart"}),
        ("a.mkv", "libx264", {}),
        ("a.webm", "libvpx-vp9", {}),
        ("a.avi", "mpeg4", {}),
        ("a.flv", "libx264", {}),
        ("a.wmv", "wmv2", {}),
    ],
)
def test_files_that_end_too_early(tmp_path, name, codec, muxer):
    path = write(tmp_path / name, codec, muxer=muxer)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.8)])
    with pytest.raises(VideoError, match="cut short"):
        read_frames(path, 12)


@pytest.mark.parametrize("count", [1, 40])
def test_streams_that_appear_in_mid_file(tmp_path, count):
    """Tracks of sound in a file whose header knows of video only.

    PyAV looks such streams up behind the end of its list of wanted ones. With 40 of them it comes upon something in
    memory that is not 0, and fails when all packets are read.
    """
    path = write(tmp_path / "a.flv", "flv", muxer={"flvflags": "no_duration_filesize"})
    whole, content = read_frames(path, 12), path.read_bytes()
    for track in range(count):
        sound = bytes([0x95, 0x01]) + b"Opus" + bytes([track]) + bytes(6)
        tag = b"\x08" + len(sound).to_bytes(3, "big") + (2300).to_bytes(3, "big") + bytes(4) + sound
        content += tag + len(tag).to_bytes(4, "big")
    path.write_bytes(content)
    np.testing.assert_array_equal(read_frames(path, 12), whole)
    assert check_video(path) == 60


@pytest.mark.parametrize(
    "name, codec", [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.ts", "libx264"), ("a.wmv", "wmv2")]
)
def test_late_starts_and_single_frames(tmp_path, name, codec):
    late, one = write(tmp_path / name, codec, start=250), write(tmp_path / f"one{name}", codec, count=1)
    np.testing.assert_array_equal(read_frames(late, 60), in_order(late))
    np.testing.assert_array_equal(read_frames(one, 2), np.repeat(in_order(one), 2, axis=0))

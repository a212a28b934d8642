"""Which frames are read, which way up, and what is said about files that cannot be."""

import struct
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tempme_export.errors import InputError, VideoError
from tempme_export.media.render import render_clip
from tempme_export.media.video import check_video, decoder_version, read_frames, sample_positions
from tempme_export.media.video_pictures import decode_pictures
from tempme_export.media.video_scan import scan_video

av = pytest.importorskip("av")


def picture(index: int, size: tuple[int, int]) -> np.ndarray:
    """A 4 x 4 board of black and white cells: the bits of the index."""
    width, height = size
    bits = np.array([index >> bit & 1 for bit in range(16)]).reshape(4, 4)
    board = bits[np.arange(height) * 4 // height][:, np.arange(width) * 4 // width]
    return np.repeat(board[..., None] * 255, 3, axis=2).astype(np.uint8)


def index_of(frame: np.ndarray) -> int:
    height, width, _ = frame.shape
    centres = frame[np.ix_((np.arange(4) * 2 + 1) * height // 8, (np.arange(4) * 2 + 1) * width // 8, [1])]
    return sum(int(white) << bit for bit, white in enumerate(centres.reshape(16) > 127))


def render(path, n_frames=60, size=(64, 48), codec=None, pixels="yuv420p", fps=25, pictures=None, **settings):
    """Encode numbered pictures. settings: times (in frames), rotation, flip, muxer, gop, audio."""
    codec = codec or {".avi": "mpeg4", ".webm": "libvpx-vp9"}.get(path.suffix, "libx264")
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    with av.open(str(path), "w", options=settings.get("muxer", {})) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.gop_size = settings.get("gop", 12)
        if "rotation" in settings:
            stream.set_display_rotation(settings["rotation"], hflip=settings.get("flip", False))
        sound = container.add_stream("aac", rate=44100, layout="mono") if settings.get("audio") else None
        for index in range(n_frames):
            pixel = picture(index, size) if pictures is None else pictures[index]
            frame = av.VideoFrame.from_ndarray(pixel, format="rgb24")
            frame.pts = settings["times"][index] if "times" in settings else index
            frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            mux_silence(container, sound, seconds=n_frames / fps)
    return path


def mux_silence(container, stream, seconds):
    for block in range(int(seconds * 44100) // 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 44100, block * 1024
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def packets(path):
    with av.open(str(path)) as container:
        return sorted((packet.pos, packet.size) for packet in container.demux(video=0) if packet.size)


def cut(path: Path, n_bytes: int) -> Path:
    short = path.with_name(f"cut{n_bytes}{path.suffix}")
    short.write_bytes(path.read_bytes()[:n_bytes])
    return short


# sample_positions


@given(
    n_frames=st.integers(1, 3000),
    fps=st.one_of(st.floats(0.01, 200), st.sampled_from([0.5, 1.5, 2.5, 12.5, 23.976, 25.0, 29.97, 90000.0])),
    frames=st.integers(1, 70),
)
def test_positions_equal_brute_force(n_frames, fps, frames):
    stride = max(round(fps), 1)
    positions = list(range(0, n_frames, stride))
    if len(positions) > frames:
        positions = [positions[i] for i in np.linspace(0, len(positions) - 1, frames, dtype=int)]
    elif len(positions) < frames:
        positions = list(np.linspace(0, n_frames - 1, frames, dtype=int))
    found = sample_positions(n_frames, fps, frames)
    assert found == positions
    assert all(type(position) is int for position in found)
    assert found == sorted(found) and found[0] >= 0 and found[-1] < n_frames


def test_positions_by_hand():
    assert sample_positions(100, 25.0, 4) == [0, 25, 50, 75]
    assert sample_positions(200, 25.0, 3) == [0, 75, 175]
    assert sample_positions(5, 25.0, 8) == [0, 0, 1, 1, 2, 2, 3, 4]
    assert sample_positions(1, 25.0, 3) == [0, 0, 0]


@pytest.mark.parametrize(
    "arguments",
    [
        (0, 25.0, 4),
        (-1, 25.0, 4),
        (9, 0.0, 4),
        (9, -1.0, 4),
        (9, float("nan"), 4),
        (9, 25.0, 0),
        (9, 25.0, 4, -1.0, None),
        (9, 25.0, 4, float("nan"), None),
        (9, 25.0, 4, None, float("inf")),
        (9, 25.0, 4, None, 0.0),
        (9, 25.0, 4, 0.2, 0.2),
        (9, 25.0, 4, 0.2, 0.1),
        (9, 25.0, 4, 0.36, None),
    ],
)
def test_positions_refuse_nonsense(arguments):
    with pytest.raises(InputError, match=r"found .* expected"):
        sample_positions(*arguments)


@pytest.mark.parametrize(
    "start, end, expected",
    [
        (3, 9, [75, 125, 175, 225]),  # both ends belong to the range: 75, 100, ... 225
        (3.99, None, [99, 149, 199, 249]),
        (None, 1, [0, 8, 16, 25]),  # two seconds, spread
        (9, 40, [225, 233, 241, 249]),  # an end beyond the video is the video's
        (9.97, 9.98, [249] * 4),
    ],
)
def test_positions_of_a_range(start, end, expected):
    assert sample_positions(250, 25.0, 4, start, end) == expected


def test_positions_of_a_range_at_an_odd_rate():
    """Bounds are floored and the step is rounded, as the original does at 29.97 frames a second."""
    assert sample_positions(1000, 30000 / 1001, 6, 5, 10) == [149, 179, 209, 239, 269, 299]
    assert sample_positions(1000, 30000 / 1001, 3, 5, 10) == [149, 209, 299]


# which frames


@pytest.mark.parametrize(
    "name, codec, pixels, size",
    [
        ("h264.mp4", None, "yuv420p", (64, 48)),
        ("h264.mkv", None, "yuv420p", (64, 48)),
        ("h264.avi", "libx264", "yuv420p", (64, 48)),
        ("mpeg4.avi", None, "yuv420p", (64, 48)),
        ("vp9.webm", None, "yuv420p", (64, 48)),
        ("odd.mp4", None, "yuv444p", (61, 47)),
        ("odd.avi", "mjpeg", "yuvj420p", (61, 47)),
        ("odd-wide.avi", None, "yuv420p", (131, 49)),
        ("grey.mp4", None, "gray", (64, 48)),
        ("ten-bit.mp4", None, "yuv420p10le", (64, 48)),
    ],
)
def test_reads_the_sampled_frames(tmp_path, name, codec, pixels, size):
    path = render(tmp_path / name, 130, size, codec, pixels)
    frames = read_frames(path, 5)
    assert frames.dtype == np.uint8 and frames.shape == (5, size[1], size[0], 3)
    assert [index_of(frame) for frame in frames] == [0, 25, 50, 75, 125] == sample_positions(130, 25.0, 5)


def test_pixels_are_rgb(tmp_path):
    colours = np.array([(200, 30, 60), (30, 200, 60), (30, 60, 200)], np.uint8)
    pictures = [np.tile(colour, (48, 64, 1)) for colour in colours]
    frames = read_frames(render(tmp_path / "a.mp4", 3, pictures=pictures), 3)
    assert np.abs(frames.mean((1, 2)) - colours).max() < 6


def test_short_video_repeats_frames(tmp_path):
    frames = read_frames(render(tmp_path / "a.mp4", 5), 8)
    assert [index_of(frame) for frame in frames] == [0, 0, 1, 1, 2, 2, 3, 4]


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv"])
def test_single_frame(tmp_path, name):
    path = render(tmp_path / name, pictures=[picture(0b1011, (64, 48))], n_frames=1)
    assert [index_of(frame) for frame in read_frames(path, 3)] == [0b1011] * 3


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_variable_frame_rate(tmp_path, name):
    times = np.cumsum(np.resize([1, 1, 5], 90)).tolist()
    path = render(tmp_path / name, 90, times=times)
    with av.open(str(path)) as container:
        fps = float(container.streams.video[0].average_rate)
    found = [index_of(frame) for frame in read_frames(path, 4)]
    assert found == sample_positions(90, fps, 4)


def test_edit_list_hides_frames(tmp_path):
    whole = render(tmp_path / "whole.mp4", 60, gop=60)
    trimmed = tmp_path / "trimmed.mp4"
    with av.open(str(whole)) as source, av.open(str(trimmed), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                hidden = int(20 / 25 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - hidden, packet.dts - hidden, stream
                target.mux(packet)
    assert [index_of(frame) for frame in read_frames(trimmed, 40)] == list(range(20, 60))


def test_a_header_that_counts_too_few_frames(tmp_path):
    """An AVI above 1 GB has several parts, and its header counts the frames of the first alone."""
    path = render(tmp_path / "a.avi", 60)
    content = path.read_bytes()
    for chunk, place in ((b"avih", 24), (b"strh", 40)):  # where the count lies, from the chunk's name on
        at = content.index(chunk) + place
        assert content[at : at + 4] == struct.pack("<I", 60)
        content = content[:at] + struct.pack("<I", 20) + content[at + 4 :]
    path.write_bytes(content)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 20
    assert [index_of(frame) for frame in read_frames(path, 6)] == sample_positions(60, 25.0, 6)


def test_undecodable_start_is_not_counted(tmp_path):
    """A recording that starts between key frames has packets that no decoder can show."""
    path = render(tmp_path / "a.mkv", 60, gop=30)
    late = tmp_path / "late.mkv"
    with av.open(str(path)) as source, av.open(str(late), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size and number >= 28:
                packet.stream = stream
                target.mux(packet)
    found = [index_of(frame) for frame in read_frames(late, 60)]
    assert found == sorted(found) and found[-1] == 59 and found[0] >= 28


def test_audio_is_passed_over(tmp_path):
    path = render(tmp_path / "a.mp4", 60, audio=True)
    assert [index_of(frame) for frame in read_frames(path, 2)] == sample_positions(60, 25.0, 2)


def test_odd_file_names(tmp_path):
    path = render(tmp_path / "a.mp4", 30).rename(tmp_path / "http:é %02d [x].mp4")
    assert index_of(read_frames(str(path), 1)[0]) == 0


def test_range_of_a_file(tmp_path):
    path = render(tmp_path / "a.mp4", 130)
    found = [index_of(frame) for frame in read_frames(path, 3, start=1, end=4.2)]
    assert found == [25, 50, 100] == sample_positions(130, 25.0, 3, 1, 4.2)
    with pytest.raises(VideoError, match=r"a\.mp4: found 5\.20 s of video, expected more than 6 s"):
        read_frames(path, 3, start=6)
    for nonsense in ((2, 1), (-1, None), (None, 0)):
        with pytest.raises(InputError, match="found a range"):
            read_frames(path, 3, *nonsense)


def test_decoder_version_names_what_makes_pixels():
    assert decoder_version().startswith(f"PyAV {av.__version__}, libavcodec ") and "libswscale" in decoder_version()


# upright


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_is_applied(tmp_path, rotation, flip):
    size = (64, 48)
    upright = [picture(0b0001_0010_0011_0111, size)] * 3
    path = render(tmp_path / "a.mp4", 3, pictures=upright, rotation=rotation, flip=flip)
    expected = np.rot90(upright[0], rotation // 90)
    if flip:
        expected = expected[:, ::-1]
    frames = read_frames(path, 3)
    assert frames.shape[1:] == expected.shape
    assert np.abs(frames.astype(int) - expected).mean() < 10


def test_slanted_video_is_refused(tmp_path):
    path = render(tmp_path / "a.mp4", 3, rotation=30)
    with pytest.raises(VideoError, match="multiple of 90"):
        read_frames(path, 1)


# long files


def test_long_video_in_bounded_memory(tmp_path):
    n_frames, frames, size = 8000, 12, (32, 32)
    path = render(tmp_path / "long.mp4", n_frames, size, codec="mpeg4", gop=250)
    tracemalloc.start()
    found = [index_of(frame) for frame in read_frames(path, frames)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == sample_positions(n_frames, 25.0, frames)
    assert peak < 1_000_000  # all frames would be 24 MB


def test_decoding_stops_after_the_last_requested_frame(tmp_path):
    path = render(tmp_path / "a.avi", 60)
    position, _ = packets(path)[40]
    damaged = bytearray(path.read_bytes())
    damaged[position : position + 8] = bytes(8)
    path.write_bytes(damaged)
    _, n_decoded = decode_pictures(path, [0, 25], scan_video(path), allow_damaged=False)
    assert n_decoded == 26


# errors


def refusal(path) -> str:
    with pytest.raises(VideoError) as caught:
        read_frames(path, 4)
    message = str(caught.value)
    assert "found" in message and "expected" in message
    return message


def test_missing_file_directory_and_empty_file(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.mp4")
    assert "directory" in refusal(tmp_path)
    (tmp_path / "empty.mp4").touch()
    assert "empty" in refusal(tmp_path / "empty.mp4")


def test_other_kinds_of_file(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "noise.mp4").write_bytes(rng.bytes(5000))
    (tmp_path / "text.mp4").write_text("not a video\n" * 40)
    (tmp_path / "text.txt").write_text("not a video\n" * 40)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:10,\nhttp://localhost/a.ts\n#EXT-X-ENDLIST\n")
    Image.new("RGB", (32, 32)).save(tmp_path / "still.png")
    assert "no readable video" in refusal(tmp_path / "noise.mp4")
    assert "no readable video" in refusal(tmp_path / "text.mp4")
    assert "text file" in refusal(tmp_path / "text.txt")
    refusal(tmp_path / "list.m3u8")
    assert "picture file" in refusal(tmp_path / "still.png")


def test_audio_only(tmp_path):
    path = tmp_path / "sound.m4a"
    with av.open(str(path), "w") as container:
        mux_silence(container, container.add_stream("aac", rate=44100, layout="mono"), seconds=1)
    assert "only audio," in refusal(path)


def test_audio_with_a_cover_picture(tmp_path):
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=44100, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture(5, (32, 32)), format="rgb24")))
        container.mux(cover.encode())
        mux_silence(container, sound, seconds=1)
    assert "only audio, cover picture," in refusal(path)


def test_unknown_codec(tmp_path):
    path = render(tmp_path / "a.mp4", 30)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    assert "no decoder" in refusal(path)


def test_random_damage_never_shows_ffmpeg_exceptions(tmp_path):
    rng = np.random.default_rng(11)
    for name in ("a.mp4", "a.avi", "a.mkv"):
        path = render(tmp_path / name, 30)
        whole = path.read_bytes()
        for _ in range(25):
            damaged = bytearray(whole)
            for position in rng.integers(0, len(whole), 4):
                damaged[position : position + 6] = rng.bytes(6)
            path.write_bytes(damaged)
            try:
                assert read_frames(path, 4).shape[0] == 4
            except VideoError as error:
                assert "expected" in str(error)


def test_video_stream_without_frames(tmp_path):
    path = render(tmp_path / "a.mkv", 30)
    position, _ = packets(path)[0]
    assert "without frames" in refusal(cut(path, position - 8))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
@pytest.mark.parametrize(
    "name, muxer",
    [
        ("end.mp4", {}),
        ("start.mp4", {"movflags": "faststart"}),
        ("fragments.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.avi", {}),
        ("a.mkv", {}),
        ("a.flv", {}),
    ],
)
def test_cut_anywhere_in_the_frames(tmp_path, name, muxer, share):
    path = render(tmp_path / name, 100, muxer=muxer, gop=25)
    positions = packets(path)
    first, end = positions[0][0], sum(positions[-1])
    refusal(cut(path, int(first + share * (end - first))))


@pytest.mark.parametrize("name, muxer", [("a.mp4", {"movflags": "faststart"}), ("a.avi", {})])
@pytest.mark.parametrize("n_whole", [1, 30, 90])
def test_cut_between_frames(tmp_path, name, muxer, n_whole):
    path = render(tmp_path / name, 100, muxer=muxer)
    assert "cut short" in refusal(cut(path, sum(packets(path)[n_whole - 1])))


def test_cut_after_the_frames_is_harmless(tmp_path):
    path = render(tmp_path / "a.avi", 60)
    short = cut(path, sum(packets(path)[-1]))
    np.testing.assert_array_equal(read_frames(short, 4), read_frames(path, 4))


def test_frames_are_counted_without_decoding(tmp_path):
    """Of a file in which no picture can be decoded."""
    path = render(tmp_path / "a.mp4", 60)
    (tmp_path / "empty.mp4").touch()
    hollow = bytearray(path.read_bytes())
    for position, size in packets(path):
        hollow[position + 4 : position + size] = bytes(size - 4)
    (tmp_path / "hollow.mp4").write_bytes(hollow)
    refusal(tmp_path / "hollow.mp4")
    assert check_video(tmp_path / "hollow.mp4") == check_video(str(path)) == 60
    for broken, said in (
        (cut(path, 900), "no readable video"),
        (tmp_path / "empty.mp4", "empty"),
        (tmp_path, "direct"),
    ):
        with pytest.raises(VideoError, match=said):
            check_video(broken)


def test_damaged_frame(tmp_path):
    path = render(tmp_path / "a.avi", 60, codec="mjpeg", pixels="yuvj420p")
    position, size = packets(path)[39]
    damaged = bytearray(path.read_bytes())
    damaged[position + 8 : position + size] = bytes(size - 8)
    path.write_bytes(damaged)
    assert "frame at 1.56 s damaged" in refusal(path)
    assert read_frames(path, 4, allow_damaged=True).shape == (4, 48, 64, 3)
    assert [index_of(frame) for frame in read_frames(path, 3)] == [0, 25, 50]  # each frame is a key frame


def test_frames_that_change_size(tmp_path):
    """Two raw H.264 streams joined end to end are one stream whose pictures change size."""
    parts = [render(tmp_path / f"{width}.h264", 30, (width, 48)) for width in (64, 96)]
    joined = tmp_path / "joined.h264"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert "64x48, 96x48" in refusal(joined)


def without_pictures(path: Path, packets: list[tuple[int, int]]) -> None:
    """Make MPEG-4 pictures say that they are not coded: whole packets, for which a decoder shows nothing."""
    content = bytearray(path.read_bytes())
    for position, size in packets:
        header = content.index(b"\0\0\1\xb6", position, position + size + 8) + 4
        bits = f"{int.from_bytes(content[header : header + 3]):024b}"
        seconds = bits.index("0", 2)  # behind the kind of picture; then a marker, the time in 5 bits, a marker
        coded = seconds + 8
        bits = f"{bits[:coded]}0{bits[coded + 1 :]}"
        content[header : header + 3] = int(bits, 2).to_bytes(3)
    path.write_bytes(content)


def test_decoder_that_shows_too_few_frames(tmp_path):
    path = render(tmp_path / "a.avi", 100)
    without_pictures(path, packets(path)[60:])
    assert check_video(path) == 100
    with pytest.raises(VideoError, match="found 61 decodable frames, expected 100"):
        read_frames(path, 100)  # 60, and the last one, which the decoder holds back, once more


WITHOUT_PYAV = """
import sys
sys.modules["av"] = None
from tempme_export.errors import BackendError
from tempme_export.media.render import render_clip
from tempme_export.media.video import read_frames

for needs_pyav in (lambda: read_frames(sys.argv[1], 1), lambda: render_clip(sys.argv[2])):
    try:
        needs_pyav()
    except BackendError as error:
        print(error)
"""


def test_without_pyav(tmp_path):
    path = render(tmp_path / "a.mp4", 3)
    command = [sys.executable, "-c", WITHOUT_PYAV, path, tmp_path / "b.mp4"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.count("pip install 'tempme-export[video]'") == 2
    assert not (tmp_path / "b.mp4").exists()


# the demo clip


@pytest.mark.parametrize("name", ["demo.mp4", "demo.avi"])
def test_demo_clip(tmp_path, name):
    render_clip(tmp_path / name, seconds=2, size=(96, 64), seed=3)
    render_clip(tmp_path / f"again-{name}", seconds=2, size=(96, 64), seed=3)
    render_clip(tmp_path / f"other-{name}", seconds=2, size=(96, 64), seed=4)
    frames = read_frames(tmp_path / name, 12)
    assert frames.shape == (12, 64, 96, 3)
    assert np.abs(np.diff(frames.astype(int), axis=0)).mean((1, 2, 3)).min() > 0.1  # everything moves
    np.testing.assert_array_equal(frames, read_frames(tmp_path / f"again-{name}", 12))
    assert np.abs(frames.astype(int) - read_frames(tmp_path / f"other-{name}", 12)).mean() > 5


@pytest.mark.parametrize(
    "name, settings",
    [("a.gif", {}), ("a.mp4", {"seconds": 0}), ("a.mp4", {"size": (97, 64)}), ("a.mp4", {"size": (8, 8)})],
)
def test_demo_clip_refuses(tmp_path, name, settings):
    with pytest.raises(InputError, match=r"found .* expected"):
        render_clip(tmp_path / name, **settings)

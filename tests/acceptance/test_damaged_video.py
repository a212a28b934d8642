"""Damage is what a requested frame was made from: found there, said with its time, and nowhere else."""

import numpy as np
import pytest

from tempme_export.errors import VideoError
from tempme_export.media.video import read_frames

av = pytest.importorskip("av")
FRAMES = 12
SEEDS = 8


def picture(number):
    """Something that moves over something that stays, with noise that a codec has to spend bits on."""
    noise = np.random.default_rng(number).integers(-6, 7, (48, 64, 3))
    found = np.add.outer(np.arange(48) * 3, np.arange(64) * 2)[..., None] + np.array([0, 20, 40])
    found[8:30, number % 44 : number % 44 + 18] = (230, number * 4 % 255, 60)
    return np.clip(found + noise, 0, 255).astype(np.uint8)


# x264's AVX-512 code gives other bytes from call to call.
REPEATABLE = {"libx264": {"x264-params": "asm=ssse3"}}


def write(path, codec, count=60, rate=25, **options):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=REPEATABLE.get(codec, {}) | options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 12
        stream.codec_context.thread_count = 3  # the same bytes, however many cores there are
        for number in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        container.mux(stream.encode())
    return path


def payloads(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def spoil(path, packets, seed=0):
    """Random bytes in place of a stretch of the payload of some packets."""
    rng = np.random.default_rng(seed)
    content = bytearray(path.read_bytes())
    whole = payloads(path)
    for number in packets:
        payload = whole[number]
        start, length = len(payload) // 3, max(4, len(payload) // 4)
        at = content.find(payload[start : start + 12])
        assert at >= 0
        content[at : at + length] = rng.bytes(length)
    spoiled = path.with_name(f"spoiled{path.suffix}")
    spoiled.write_bytes(content)
    return spoiled


CODECS = [
    ("a.mp4", "libx264", {"sc_threshold": "0"}),
    ("h264.flv", "libx264", {"sc_threshold": "0"}),
    ("a.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    ("av1.mp4", "libsvtav1", {"preset": "12"}),
    ("a.avi", "mpeg4", {}),
    ("a.wmv", "wmv2", {}),
    ("a.flv", "flv", {}),
    ("a.mkv", "mpeg2video", {}),
    ("a.mpg", "mpeg1video", {}),
    ("b.avi", "msmpeg4", {}),
]


@pytest.mark.parametrize("name, codec, options", CODECS)
def test_no_wrong_frame_is_accepted(tmp_path, name, codec, options):
    """Three packets a file; whatever is accepted equals the frames before the damage.

    The seeds are fixed: with others a decoder takes a few stretches of noise for pictures.
    """
    path = write(tmp_path / name, codec, **options)
    whole = read_frames(path, FRAMES)
    refused = 0
    for seed in range(SEEDS):
        numbers = np.random.default_rng(seed).choice(60, 3, replace=False)
        try:
            np.testing.assert_array_equal(read_frames(spoil(path, numbers, seed), FRAMES), whole)
        except VideoError as error:
            assert "damaged" in str(error)
            refused += 1
    assert refused >= SEEDS // 2


@pytest.mark.parametrize("name, codec, options", CODECS)
def test_damage_ends_at_the_next_key_frame(tmp_path, name, codec, options):
    """Requested are 0, 25 and 50 of 60, in groups that begin at 0, 12, 24, 36 and 48."""
    path = write(tmp_path / name, codec, bf="0", **options)
    whole = read_frames(path, 3)
    np.testing.assert_array_equal(read_frames(spoil(path, [14]), 3), whole)
    np.testing.assert_array_equal(read_frames(spoil(path, [57]), 3), whole)
    damaged = spoil(path, [24])
    with pytest.raises(VideoError, match=r"found the frame at 1\.00 s damaged"):
        read_frames(damaged, 3)
    shown = read_frames(damaged, 3, allow_damaged=True)
    np.testing.assert_array_equal(shown[[0, 2]], whole[[0, 2]])
    np.testing.assert_array_equal(read_frames(damaged, 1, end=0.9), whole[:1])


def test_frames_lost_without_a_word_keep_their_places(tmp_path):
    """A picture whose header says that it is none gives no frame and no complaint."""
    options = {"x265-params": "log-level=none:bframes=0:keyint=12:min-keyint=12:scenecut=0"}
    path = write(tmp_path / "a.mp4", "libx265", **options)
    whole, content = read_frames(path, 60), bytearray(path.read_bytes())
    content[content.find(payloads(path)[30]) + 4] = 48 << 1  # the type of the unit: unspecified
    path.write_bytes(content)
    shown = read_frames(path, 60, allow_damaged=True)
    np.testing.assert_array_equal(shown[:30], whole[:30])
    np.testing.assert_array_equal(shown[36:], whole[36:])
    np.testing.assert_array_equal(read_frames(path, 3), whole[[0, 25, 50]])
    with pytest.raises(VideoError, match=r"found the frame at 1\.20 s damaged"):
        read_frames(path, 60)


def test_option_of_the_commands(tmp_path, run, mini):
    (tmp_path / "videos").mkdir()
    path = write(tmp_path / "a.avi", "mpeg4", bf="0")
    spoil(path, range(0, 60, 12)).rename(tmp_path / "videos" / "a.avi")
    write(tmp_path / "videos" / "b.avi", "mpeg4")
    (tmp_path / "set.csv").write_text("video,caption\na.avi,a red square\nb.avi,a blue square\n")
    command = ["tempme-eval", mini, "--data", tmp_path / "set.csv", "--videos", tmp_path / "videos", "--json"]
    left_out, taken = run(*command), run(*command, "--allow-damaged")
    assert left_out.returncode == 0 and "damaged" in left_out.stderr, left_out.stderr
    assert taken.returncode == 0 and "damaged" not in taken.stderr, taken.stderr

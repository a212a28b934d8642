"""Colours of pixels against fixed values: BT.601 and BT.709, limited and full range, tagged or not."""

from fractions import Fraction

import numpy as np
import pytest

from tempme_export.media.video import read_frames

av = pytest.importorskip("av")

YCBCR = (120, 90, 180)
BT709, BT601, BT2020 = 1, 5, 9
LIMITED, FULL = 1, 2


@pytest.mark.parametrize(
    "space, full, expected",
    [
        (None, None, (203, 92, 44)),
        (None, FULL, (192, 95, 52)),
        (BT601, None, (203, 92, 44)),
        (BT601, LIMITED, (203, 92, 44)),
        (BT601, FULL, (192, 95, 52)),
        (BT709, None, (214, 101, 40)),
        (BT709, LIMITED, (214, 101, 40)),
        (BT709, FULL, (201, 102, 49)),
        (BT2020, LIMITED, (208, 94, 39)),
    ],
)
def test_colours(tmp_path, space, full, expected):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        if space:
            stream.codec_context.colorspace = space
        if full:
            stream.codec_context.color_range = full
        for number in range(3):
            frame = av.VideoFrame(32, 32, "yuv420p")
            for plane, value in zip(frame.planes, YCBCR, strict=True):
                plane.update(bytes([value]) * plane.buffer_size)
            if space:
                frame.colorspace = space
            if full:
                frame.color_range = full
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    np.testing.assert_array_equal(read_frames(path, 3).reshape(-1, 3), np.tile(expected, (3 * 32 * 32, 1)))

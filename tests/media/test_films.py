"""Frames of many kinds of file beside those of decord and OpenCV, which the field reads videos with.

What these two saw is kept in golden/films/expected.json; `measure_films.py` there wrote it. Each film shows its frames'
numbers, so that where a reader stands apart it can be told who is right.
"""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tempme_export.media.video import check_video, read_frames

pytest.importorskip("av")
FILMS = Path(__file__).parents[1] / "golden" / "films"
EXPECTED = json.loads((FILMS / "expected.json").read_text())
HIDDEN = {"edit-list.mp4": 17}  # frames at the beginning that the container says to leave out

# Where a reader does not see what was drawn, in the order in which it was drawn, upright and in its colours.
APART = {
    ("decord", "animation.gif"): "it finds no length and refuses",
    ("decord", "av1.mp4"): "it has no decoder",
    ("opencv", "av1.mp4"): "it has no decoder",
    ("opencv", "bt709.mp4"): "it takes every colour space for BT.601",
    ("decord", "early.mkv"): "it leaves out frames before the time 0, and repeats the last one instead",
    ("decord", "edit-list.mp4"): "it begins with the right frame, counts hidden ones too, and repeats the last one",
    ("decord", "hevc.ts"): "it loses the beginning of transport streams, and repeats the last frame instead",
    ("decord", "late.ts"): "it loses the beginning of transport streams, and repeats the last frame instead",
    ("decord", "turned-90.mp4"): "it takes the turned picture for one of four channels",
}
# Levels between 0 and 255: one for a decoder's transform, one for rounding to RGB. More bits are cut, not rounded, by
# some versions of the converter.
NEAR, NEAR_OF_TEN_BITS = 2, 4


@pytest.fixture(scope="module")
def seen():
    """What we see in each film: all its frames."""
    digest = runpy.run_path(str(FILMS / "barcode.py"))["digest"]
    return {name: digest(read_frames(FILMS / name, check_video(FILMS / name))) for name in EXPECTED}


def agree(one, other, name):
    near = NEAR_OF_TEN_BITS if "ten-bit" in name else NEAR
    return (
        one["shape"] == other["shape"]
        and one["numbers"] == other["numbers"]
        and np.abs(np.subtract(one["colours"], other["colours"])).max() <= near
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_frames_are_those_that_were_drawn(seen, name):
    numbers, first = seen[name]["numbers"], HIDDEN.get(name, 0)
    assert numbers == list(range(first, first + len(numbers))) and len(numbers) >= 6


@pytest.mark.parametrize("reader", ["decord", "opencv"])
@pytest.mark.parametrize("name", EXPECTED)
def test_frames_are_those_of_other_readers(seen, name, reader):
    theirs = EXPECTED[name][reader]
    same = theirs is not None and agree(seen[name], theirs, name)
    assert same == ((reader, name) not in APART), APART.get((reader, name))


@pytest.mark.parametrize("reader", ["decord", "opencv"])
def test_many_kinds_are_compared(reader):
    assert sum((reader, name) not in APART for name in EXPECTED) >= 25


def test_a_user_who_asks_for_logs(tmp_path):
    """Decoders say much of these films; the damage adds to it."""
    names = ["b-frames.mp4", "hevc.ts", "packed.avi", "vp9.webm"]
    for name in names:
        content = bytearray((FILMS / name).read_bytes())
        content[len(content) // 2 : len(content) // 2 + 40] = bytes(range(40))
        (tmp_path / name).write_bytes(content)
    program = (
        "import sys, av\n"
        "from tempme_export.media.video import read_frames\n"
        "av.logging.set_level(av.logging.DEBUG)\n"
        "for path in sys.argv[1:]:\n"
        "    assert read_frames(path, 40, allow_damaged=True).shape == (40, 48, 64, 3)\n"
    )
    paths = [folder / name for name in names for folder in (tmp_path, FILMS)] * 3
    subprocess.run([sys.executable, "-c", program, *map(str, paths)], check=True, timeout=100)

"""Tiny videos, and files that are none."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tempme_export.media.preprocess import Preprocess


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Paths of five clips of several lengths and sizes; the first takes longest to read. Copy one to change it."""
    pytest.importorskip("av")
    from tempme_export.media.render import render_clip

    folder = tmp_path_factory.mktemp("clips")
    sizes = [(320, 240), (48, 64), (64, 48), (34, 34), (80, 32)]
    lengths = [8, 1, 2, 0.25, 3]  # seconds
    paths = tuple(folder / f"{seed}.mp4" for seed in range(len(sizes)))
    for seed, (path, size, seconds) in enumerate(zip(paths, sizes, lengths, strict=True)):
        render_clip(path, seconds, 8, size, seed)
    return paths


@pytest.fixture(scope="session")
def unreadable(clips, tmp_path_factory) -> dict[str, Path]:
    """Paths of files that cannot be read, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("unreadable")
    paths = {name: folder / f"{name}.mp4" for name in ("missing", "empty", "noise", "cut")}
    paths["empty"].touch()
    paths["noise"].write_bytes(np.random.default_rng(0).bytes(5000))
    whole = clips[0].read_bytes()
    paths["cut"].write_bytes(whole[: len(whole) // 2])
    return paths


@pytest.fixture(scope="session")
def preprocess():
    """Pictures of 30 pixels: no clip's size, and no power of two."""
    return Preprocess(30, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.fixture
def mixed(clips, unreadable):
    """Readable and unreadable paths in turn, and what to expect of each: frames, or None."""
    paths = [clips[0], unreadable["missing"], clips[1], unreadable["noise"], clips[2], unreadable["cut"], clips[3]]
    return paths, [None if path in unreadable.values() else path for path in paths]


@pytest.fixture
def pixels(preprocess):
    """Three frames of a video by definition."""
    from tempme_export.media.video import read_frames

    return lambda path, **more: preprocess.crop(read_frames(path, 3, **more))


@pytest.fixture
def own(clips, tmp_path):
    """Copies of the clips, to be changed."""
    folder = tmp_path / "own"
    folder.mkdir()
    return [Path(shutil.copy2(clip, folder)) for clip in clips]


@pytest.fixture(scope="session")
def torn(tmp_path_factory):
    """Path of a clip with damage inside one of its pictures, which shows when it is decoded, and only then."""
    av = pytest.importorskip("av")
    from tempme_export.media.render import render_clip

    path = tmp_path_factory.mktemp("torn") / "torn.avi"
    render_clip(path, 1, 8, (64, 48), 5)
    with av.open(str(path)) as container:
        position, size = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size][4]
    content = bytearray(path.read_bytes())
    content[position + 16 : position + size] = bytes(size - 16)
    path.write_bytes(content)
    return path


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from tempme_export.data.clip import Clip
from tempme_export.data.decoding import decode
from tempme_export.data.frame_cache import FrameCache
from tempme_export.data.workers import answers
from tempme_export.media.preprocess import Preprocess
from tempme_export.progress import Progress

class KilledAtFour(Progress):
    def advance(self, step):
        if step.done == 4:
            os.kill(os.getpid(), signal.SIGKILL)

def main():
    preprocess = Preprocess(30, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    {body}

{guard}main()
"""
GUARD = "if __name__ == '__main__': "


@pytest.fixture
def start(tmp_path):
    """Start a script in a process group of its own, which is killed at the end."""
    started = []

    def run(body, *arguments, guard=GUARD):
        script = tmp_path / "script.py"
        script.write_text(SCRIPT.format(body=body, guard=guard))
        process = subprocess.Popen(
            [sys.executable, script, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if group_is_alive(process):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def group_is_alive(process):
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def wait_for_the_group():
    """Whether the group of a started process ends within 20 seconds."""

    def wait(process):
        until = time.monotonic() + 20
        while group_is_alive(process) and time.monotonic() < until:
            time.sleep(0.02)
        return not group_is_alive(process)

    return wait

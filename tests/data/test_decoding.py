"""Decoding in processes equals decoding here; what cannot be read is found and said."""

import multiprocessing
import operator
import subprocess
import sys
import threading

import numpy as np
import pytest

from tempme_export.data.clip import Clip
from tempme_export.data.decoding import decode, probe
from tempme_export.errors import InputError, VideoError
from tempme_export.media.preprocess import Preprocess

pytest.importorskip("av")

F = 3


def whole(paths):
    """Each of the files from its beginning to its end."""
    return tuple(map(Clip, paths))


def refusal(error, call, *arguments, **named):
    with pytest.raises(error, match=r"found (.|\n)*expected (.|\n)*\.") as caught:
        call(*arguments, **named)
    return str(caught.value)


def no_processes():
    names = [one.name for one in (*multiprocessing.active_children(), *threading.enumerate())]
    return [name for name in names if name.startswith("decode")] == []


@pytest.mark.parametrize("workers", [0, 2])
def test_frames_in_order_and_what_is_wrong_beside_them(mixed, preprocess, pixels, workers):
    paths, readable = mixed
    answers = list(decode(whole(paths), F, preprocess, workers))
    assert [index for index, _ in answers] == list(range(len(paths)))
    for (_, answer), path, good in zip(answers, paths, readable, strict=True):
        if good is None:
            assert isinstance(answer, VideoError) and str(path) in str(answer) and "expected" in str(answer)
        else:
            assert answer.dtype == np.uint8
            np.testing.assert_array_equal(answer, pixels(good))
    assert no_processes()


def test_nothing_to_decode(preprocess):
    assert list(decode([], F, preprocess, 2)) == list(decode([], F, preprocess, 0)) == []


class Watched(list):
    """A list that knows how many of its items were taken."""

    taken = 0

    def __iter__(self):
        for item in super().__iter__():
            self.taken += 1
            yield item


@pytest.mark.parametrize(("workers", "ahead"), [(0, 1), (2, 6)])
def test_look_ahead_is_bounded(clips, preprocess, workers, ahead):
    paths = Watched([Clip(clips[3])] * 12)
    answers = decode(paths, F, preprocess, workers)
    assert paths.taken == 0
    next(answers)
    assert paths.taken == ahead
    next(answers)
    assert paths.taken == ahead + 1
    answers.close()


def test_an_error_of_the_caller_ends_the_processes(clips, preprocess):
    with pytest.raises(ZeroDivisionError):
        for _ in decode([Clip(clips[3])] * 9, F, preprocess, 1):
            raise ZeroDivisionError
    assert no_processes()


WITHOUT_PYAV = """
import pickle, sys
from pathlib import Path
sys.modules["av"] = None
from tempme_export.data.clip import Clip
from tempme_export.data.decoding import decode, probe
from tempme_export.data.frame_cache import FrameCache
from tempme_export.errors import BackendError
from tempme_export.media.preprocess import Preprocess

clips, folder = [Clip(Path(sys.argv[1]))], Path(sys.argv[2])
preprocess = Preprocess(30, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
for ask in (
    lambda: list(decode(clips, 3, preprocess, 0)),
    lambda: probe(clips),
    lambda: FrameCache.open(folder, clips, 3, preprocess),
):
    try:
        ask()
    except BackendError as error:
        assert type(pickle.loads(pickle.dumps(error))) is BackendError, "as it comes from a worker"
        print("PyAV" in str(error), folder.exists())
"""


def test_missing_pyav_is_no_failure_of_the_video(clips, tmp_path):
    command = [sys.executable, "-c", WITHOUT_PYAV, clips[3], tmp_path / "cache"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == "True False\n" * 3


def test_frames_that_cannot_be_cropped_are_a_failure_of_the_video(clips):
    class Refuses(Preprocess):
        def crop(self, frames):
            raise InputError("found x, expected y. Do z.")

    ((_, answer),) = decode([Clip(clips[3])], F, Refuses(30, (0, 0, 0), (1, 1, 1)), 0)
    assert isinstance(answer, VideoError) and str(answer) == f"{clips[3]}: found x, expected y. Do z."


def test_refused_requests(clips, preprocess):
    assert "0 frames to read" in refusal(InputError, decode, whole(clips), 0, preprocess, 0)
    for call in (lambda: decode(whole(clips), F, preprocess, -1), lambda: probe(whole(clips), -1)):
        assert "-1 worker processes" in refusal(InputError, call)


def test_workers_are_light():
    code = (
        "import sys, tempme_export.data.decoding; sys.exit(len({'torch', 'av', 'onnx', 'polars'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_script_without_a_guard_is_told(start, clips):
    process = start("list(decode([Clip(Path(sys.argv[1]))], 3, preprocess, 1))", clips[3], guard="")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "if __name__ == '__main__':" in said.splitlines()[-1] and str(clips[3]) in said.splitlines()[-1]


# probe


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_files_are_found_without_decoding(mixed, unreadable, clips, workers, torn, recording):
    paths = [*mixed[0], unreadable["empty"], torn]
    told = recording()
    found = probe(whole(paths), workers, told)
    assert list(found) == [1, 3, 5, 7]
    assert all(reason.startswith(str(paths[i])) for i, reason in found.items())
    for i, reason in zip(found, ("no such file", "no readable video", "", "empty file"), strict=True):
        assert reason in found[i]
    assert told.counts == [("looking at videos", done, 9) for done in range(10)]
    assert probe(whole(clips)) == {} and operator.not_(probe([]))


def test_damage_inside_a_picture_is_found_by_decoding(torn, preprocess, pixels):
    ((_, strictly),) = decode([Clip(torn)], F, preprocess, 0)
    assert isinstance(strictly, VideoError) and "damaged" in str(strictly)
    ((_, leniently),) = decode([Clip(torn)], F, preprocess, 0, allow_damaged=True)
    np.testing.assert_array_equal(leniently, pixels(torn, allow_damaged=True))

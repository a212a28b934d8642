"""Frames of files, decoded when they are asked for."""

from pathlib import Path

import numpy as np
import pytest

from tempme_export.data.clip import Clip
from tempme_export.data.frames import FrameFiles
from tempme_export.errors import VideoError

pytest.importorskip("av")

F = 3


@pytest.mark.parametrize("workers", [0, 2])
def test_the_selected_clips_in_their_order(mixed, preprocess, pixels, workers):
    paths, _ = mixed
    source = FrameFiles([Clip(path) for path in paths], F, preprocess)
    assert (len(source), source.frames, source.size, source.allow_damaged) == (7, F, 30, False)
    selected = [4, 1, 0, 4]
    answers = list(source.stream(selected, workers))
    assert [i for i, _ in answers] == selected
    for i, answer in answers:
        if i == 1:
            assert isinstance(answer, VideoError) and str(paths[1]) in str(answer)
        else:
            np.testing.assert_array_equal(answer, pixels(paths[i]))
    assert list(source.stream([], workers)) == []


def test_files_are_decoded_whenever_they_are_asked_for(own, preprocess):
    source = FrameFiles([Clip(own[3])], F, preprocess)
    assert isinstance(dict(source.stream([0]))[0], np.ndarray)
    own[3].unlink()
    assert isinstance(dict(source.stream([0]))[0], VideoError)


@pytest.mark.parametrize("workers", [0, 1])
def test_changes_come_before_the_resize(clips, preprocess, workers):
    """Each for its own clip; a changed clip keeps its range."""
    from tempme_export.media.video import read_frames

    source = FrameFiles([Clip(clips[0], 2.0, 5.0), Clip(clips[1])], F, preprocess)
    answers = list(source.stream([1, 0], workers, [np.fliplr, np.invert]))
    np.testing.assert_array_equal(answers[0][1], preprocess.crop(np.fliplr(read_frames(clips[1], F))))
    np.testing.assert_array_equal(answers[1][1], preprocess.crop(np.invert(read_frames(clips[0], F, 2.0, 5.0))))
    with pytest.raises(ValueError, match="shorter"):
        list(source.stream([1, 0], workers, [np.fliplr]))


def test_damaged_pictures_where_they_are_allowed(torn, preprocess, pixels):
    assert isinstance(dict(FrameFiles([Clip(torn)], F, preprocess).stream([0]))[0], VideoError)
    lenient = dict(FrameFiles([Clip(torn)], F, preprocess, allow_damaged=True).stream([0]))
    np.testing.assert_array_equal(lenient[0], pixels(torn, allow_damaged=True))


def test_a_number_that_no_clip_has(preprocess):
    with pytest.raises(IndexError):
        list(FrameFiles([Clip(Path("a.mp4"))], F, preprocess).stream([1]))

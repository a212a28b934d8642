"""The cache gives back what was decoded, whatever ends a filling, and decodes nothing twice."""

import json
import os
import signal

import numpy as np
import pytest

from tempme_export.data.clip import Clip
from tempme_export.data.frame_cache import FrameCache
from tempme_export.errors import InputError, VideoError
from tempme_export.media.preprocess import Preprocess
from tempme_export.media.video import read_frames
from tempme_export.progress import Progress

pytest.importorskip("av")

F = 3


def whole(paths):
    """Each of the files from its beginning to its end."""
    return tuple(map(Clip, paths))


def refusal(error, call, *arguments, **named):
    with pytest.raises(error, match=r"found (.|\n)*expected (.|\n)*\.") as caught:
        call(*arguments, **named)
    return str(caught.value)


class Amounts(Progress):
    """Keeps how much is done of how much."""

    def __init__(self):
        self.heard = []

    def begin(self, step):
        self.advance(step)

    def advance(self, step):
        self.heard.append((step.done, step.total))


def read_by(cache, retry_failed=False):
    """Fill it in this process: which clips were read."""
    todo, amounts = cache.rows.todo(retry_failed), Amounts()
    cache.fill(0, amounts, retry_failed)
    assert amounts.heard == [(done, len(cache)) for done in range(len(cache) - len(todo), len(cache) + 1)]
    return todo


def batch(cache, indices):
    return np.stack([cache[i] for i in indices])


def contents(folder):
    return [
        (folder / name).read_bytes() for name in ("rows.bin", "done.bin", "made_from/rows.bin", "made_from/done.bin")
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_gives_back_what_was_decoded(mixed, preprocess, pixels, tmp_path, workers):
    paths, readable = mixed
    cache = FrameCache.open(tmp_path / "cache", whole(paths), F, preprocess)
    amounts = Amounts()
    cache.fill(workers, amounts)
    assert amounts.heard == [(done, 7) for done in range(8)]
    again = FrameCache.open(tmp_path / "cache", whole(paths), F, preprocess)
    for found in (cache, again):
        assert (len(found), found.frames, found.size) == (7, F, 30)
        for i, path in enumerate(readable):
            if path is not None:
                assert found[i].dtype == np.uint8
                np.testing.assert_array_equal(found[i], pixels(path))
        assert sorted(found.failures) == [1, 3, 5]
        assert all(reason.startswith(str(paths[i])) for i, reason in found.failures.items())
        for (i, answer), asked in zip(found.stream([6, 1, 6]), (6, 1, 6), strict=True):
            assert i == asked
            if asked == 1:
                assert isinstance(answer, VideoError) and str(answer) == found.failures[1]
            else:
                np.testing.assert_array_equal(answer, pixels(paths[6]))


def test_frames_are_copies(clips, preprocess, pixels, tmp_path):
    cache = FrameCache.open(tmp_path, whole(clips), F, preprocess)
    cache.fill(0)
    for copy in (cache[1], next(cache.stream([1]))[1]):
        assert type(copy) is np.ndarray
        copy[:] = 0
    np.testing.assert_array_equal(cache[1], pixels(clips[1]))


def test_what_is_not_there_is_refused(mixed, preprocess, tmp_path):
    cache = FrameCache.open(tmp_path, whole(mixed[0]), F, preprocess)
    with pytest.raises(InputError, match="Fill it first") as caught:
        cache[0]
    assert not isinstance(caught.value, VideoError)  # nobody may skip it as unreadable
    cache.fill(0)
    with pytest.raises(VideoError, match="noise"):
        cache[3]
    for i in (-1, 7):
        with pytest.raises(IndexError):
            cache[i]
        with pytest.raises(IndexError):
            list(cache.stream([0, i]))
    assert list(cache.stream([])) == []


def test_an_interrupted_fill_goes_on(mixed, preprocess, tmp_path, recording):
    def stop(step):
        if step.done == 3:
            raise KeyboardInterrupt

    paths, _ = mixed
    cache = FrameCache.open(tmp_path / "cache", whole(paths), F, preprocess)
    with pytest.raises(KeyboardInterrupt):
        cache.fill(0, recording(on_step=stop))
    assert read_by(FrameCache.open(tmp_path / "cache", whole(paths), F, preprocess)) == [3, 4, 5, 6]
    full = FrameCache.open(tmp_path / "whole", whole(paths), F, preprocess)
    full.fill(0)
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_fill_goes_on(start, mixed, preprocess, tmp_path, workers):
    paths, _ = mixed
    body = (
        "FrameCache.open(Path(sys.argv[1]), [Clip(Path(name)) for name in sys.argv[3:]], 3, preprocess)"
        ".fill(int(sys.argv[2]), KilledAtFour())"
    )
    process = start(body, tmp_path / "cache", workers, *paths)
    assert process.wait(60) == -signal.SIGKILL, process.stderr.read()
    cache = FrameCache.open(tmp_path / "cache", whole(paths), F, preprocess)
    assert read_by(cache) == [4, 5, 6]
    full = FrameCache.open(tmp_path / "whole", whole(paths), F, preprocess)
    full.fill(0)
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")
    assert cache.failures == full.failures


def test_failures_are_tried_again_when_asked(own, preprocess, pixels, tmp_path):
    content = own[2].read_bytes()
    own[2].write_bytes(content[:500])
    own[4].unlink()
    cache = FrameCache.open(tmp_path / "cache", whole(own), F, preprocess)
    cache.fill(0)
    assert sorted(cache.failures) == [2, 4]
    own[2].write_bytes(content)
    cache = FrameCache.open(tmp_path / "cache", whole(own), F, preprocess)  # a mended file is no changed one
    assert read_by(cache) == [] and sorted(cache.failures) == [2, 4]
    assert read_by(cache, retry_failed=True) == [2, 4]
    cache = FrameCache.open(tmp_path / "cache", whole(own), F, preprocess)
    assert list(cache.failures) == [4] and "no such file" in cache.failures[4]
    np.testing.assert_array_equal(cache[2], pixels(own[2]))


def touch(path):
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def grow(path):
    stat = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", [touch, grow])
def test_a_changed_video_is_read_again(own, preprocess, tmp_path, change):
    FrameCache.open(tmp_path / "cache", whole(own), F, preprocess).fill(0)
    change(own[1])
    change(own[3])
    cache = FrameCache.open(tmp_path / "cache", whole(own), F, preprocess)
    with pytest.raises(InputError, match="Fill it first"):
        cache[3]
    assert read_by(cache) == [1, 3]
    assert batch(cache, range(5)).shape == (5, F, 30, 30, 3)


def test_a_video_that_changes_while_filling_is_noticed(own, preprocess, tmp_path, recording):
    cache = FrameCache.open(tmp_path / "cache", whole(own), F, preprocess)
    cache.fill(0, recording(on_step=lambda step: step.done == 1 and touch(own[2])))
    assert FrameCache.open(tmp_path / "cache", whole(own), F, preprocess).rows.todo() == [2]


def test_a_deleted_video_is_not_missed(own, preprocess, pixels, tmp_path):
    FrameCache.open(tmp_path / "cache", whole(own), F, preprocess).fill(0)
    expected = pixels(own[1])
    own[1].unlink()
    cache = FrameCache.open(tmp_path / "cache", whole(own), F, preprocess)
    np.testing.assert_array_equal(cache[1], expected)
    assert cache.failures == {}


def test_another_request_is_another_key(clips, preprocess, tmp_path):
    FrameCache.open(tmp_path, whole(clips), F, preprocess)
    FrameCache.open(tmp_path, whole(clips), F, Preprocess(30, (0, 0, 0), (1, 1, 1)))  # of no matter to uint8
    for said, frames, size in (
        ("shape [3, 30, 30, 3], frames 3, expected shape [4, 30, 30, 3], frames 4.", 4, 30),
        ("shape [3, 30, 30, 3], size 30, expected shape [3, 28, 28, 3], size 28.", F, 28),
    ):
        other = Preprocess(size, preprocess.mean, preprocess.std)
        assert said in refusal(InputError, FrameCache.open, tmp_path, whole(clips), frames, other)


def test_another_decoder_is_another_key(clips, preprocess, tmp_path):
    """Its frames may differ, so a folder that another one filled is not opened."""
    for folder in (tmp_path, tmp_path / "made_from"):
        FrameCache.open(tmp_path, whole(clips), F, preprocess)
        key = json.loads((folder / "key.json").read_text())
        (folder / "key.json").write_text(json.dumps(key | {"decoder": "another"}))
        said = refusal(InputError, FrameCache.open, tmp_path, whole(clips), F, preprocess)
        assert "found rows kept for decoder another, expected decoder PyAV" in said and ". Delete" in said
        (folder / "key.json").write_text(json.dumps(key))


def test_one_more_clip_reads_one(clips, preprocess, pixels, tmp_path):
    """Also in another order, and a range of a file beside the whole of it."""
    first = FrameCache.open(tmp_path, whole(clips[:3]), F, preprocess)
    first.fill(0)
    part = Clip(clips[0], 2.0, 5.0)
    cache = FrameCache.open(tmp_path, [Clip(clips[2]), part, Clip(clips[0]), Clip(clips[1])], F, preprocess)
    assert read_by(cache) == [1]
    found = batch(cache, range(4))
    expected = [pixels(clips[2]), preprocess.crop(read_frames(part.path, F, 2.0, 5.0)), *map(pixels, clips[:2])]
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(found[1], found[2])
    np.testing.assert_array_equal(first[1], found[3])  # who opened it before reads on


def test_what_was_read_strictly_serves_those_who_allow_damage_and_not_the_other_way(
    own, torn, preprocess, pixels, tmp_path
):
    paths = [own[1], torn, own[2]]
    for allow, read_now in ((False, [0, 1, 2]), (True, [1]), (True, []), (False, [1]), (False, []), (True, [1])):
        cache = FrameCache.open(tmp_path / "cache", whole(paths), F, preprocess, allow)
        assert read_by(cache) == read_now
        assert list(cache.failures) == ([] if allow else [1])
        np.testing.assert_array_equal(batch(cache, (0, 2)), [pixels(paths[0]), pixels(paths[2])])
        if allow:
            np.testing.assert_array_equal(cache[1], pixels(torn, allow_damaged=True))


def test_what_was_read_with_damage_is_read_again_by_those_who_do_not_allow_it(clips, preprocess, pixels, tmp_path):
    """Also where there is none."""
    for allow, read_now in ((True, [0, 1]), (True, []), (False, [0, 1]), (True, [])):
        cache = FrameCache.open(tmp_path / "cache", whole(clips[1:3]), F, preprocess, allow)
        assert read_by(cache) == read_now
        np.testing.assert_array_equal(batch(cache, (0, 1)), [pixels(clips[1]), pixels(clips[2])])


def test_no_frames_or_videos_to_keep(clips, preprocess, tmp_path):
    for paths, frames in (((), F), (clips, 0)):
        refusal(InputError, FrameCache.open, tmp_path / "cache", whole(paths), frames, preprocess)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_fill_one_cache(clips, preprocess, tmp_path, recording):
    first, second = (FrameCache.open(tmp_path, whole(clips), F, preprocess) for _ in range(2))
    said = []
    first.fill(0, recording(on_step=lambda step: said.append(refusal(InputError, second.fill, 0))))
    assert len(said) == 6 and all("being filled by another process" in line for line in said)
    assert read_by(second) == []


@pytest.mark.parametrize(("n", "frames", "size"), [(5, 3, 30), (2, 1, 7)])
def test_the_estimate_is_what_it_takes(clips, tmp_path, n, frames, size):
    FrameCache.open(tmp_path, whole(clips[:n]), frames, Preprocess(size, (0, 0, 0), (1, 1, 1)))
    assert FrameCache.estimate(n, frames, size) == sum(path.stat().st_size for path in tmp_path.rglob("*.bin"))
